"""Downloads a published file once; what is left of a broken try goes on."""

import contextlib
import fcntl
import http.client
import os
import pathlib
import re
import shutil
import socket
import ssl
import sys
import threading
import time
from typing import BinaryIO, Callable, Iterator
from urllib import error, request

import jax
import tqdm

from catsdogs.console import say
from catsdogs.errors import UserError
from catsdogs.pretrained.load import sha256 as sha256_of

_STALL_SECONDS = 20.0
# How long to wait after each try that broke off.
_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0)
_LOCK_POLL_SECONDS = 0.2
_CHUNK_BYTES = 2**18
# A server that does not like HEAD answers with one of these.
_REFUSES_HEAD = (400, 403, 405, 501)
_SILENT = 'no answer within {:g} s'
# What urllib raises, beside OSError, of an answer or an address it cannot read.
_UNREADABLE = (http.client.HTTPException, ValueError)


class _Broken(Exception):
  """A try that broke off, and may be repeated; says how."""


def offline() -> bool:
  """Whether CATSDOGS_OFFLINE forbids to use the network."""
  return os.environ.get('CATSDOGS_OFFLINE', '') not in ('', '0')


def fetch(url: str, sha256: str, mebibytes: float, folder: pathlib.Path,
          check: Callable[[], None] = lambda: None) -> pathlib.Path:
  """The file of that address, from the folder or else downloaded into it.

  Its hash is checked each time. Of several processes, one downloads and the
  others wait for it.

  Args:
    url: its last part names the file.
    sha256: in hexadecimal; its first digits are enough.
    mebibytes: size of the file, to three decimals.
    folder: made where it does not exist.
    check: called while it takes time; what it raises ends the download, and
      the next one goes on from there.

  Raises:
    UserError: the file cannot be had.
  """
  path = folder / url.rpartition('/')[2]
  if path.is_file() and _matches(path, sha256):
    return path
  if offline():
    there = 'is damaged' if path.exists() else 'is not there'
    raise UserError(f'{path} {there}, and CATSDOGS_OFFLINE is set; unset it, '
                    f'or put {url} there')
  partial = folder / f'{path.name}.partial'
  with _refusals(folder), _locked(folder, partial, check) as file:
    if path.is_file():
      if _matches(path, sha256):  # Another process was faster.
        file.truncate(0)
        return path
      damaged = path.replace(folder / f'{path.name}.damaged')
      say(f'{path} is damaged; it is now {damaged.name}, and downloaded anew.')
    if not _fits(_size(file), mebibytes) or not _matches(partial, sha256):
      _download(url, mebibytes, file, check)
    if not _matches(partial, sha256):
      found = sha256_of(partial)
      file.truncate(0)
      raise UserError(
          f'{url}: what came has SHA-256 {found[:16]}..., not {sha256}..., and '
          'was removed; try again, or download it by other means and set '
          'config.model.weights to that file')
    partial.replace(path)
  return path


def look(url: str, mebibytes: float, seconds: float) -> str:
  """Why a file cannot be downloaded, in a few words; empty where it can.

  Args:
    url: of the file.
    mebibytes: its size, to three decimals; another file does not count.
    seconds: it never takes longer.
  """
  reasons = []
  # Nothing but a thread of its own bounds the time that a name server takes.
  thread = threading.Thread(
      target=lambda: reasons.append(_look(url, mebibytes, seconds)),
      daemon=True)
  thread.start()
  thread.join(seconds)
  return reasons[0] if reasons else _SILENT.format(seconds)


def _look(url: str, mebibytes: float, seconds: float) -> str:
  try:
    try:
      with _open(url, seconds, method='HEAD') as response:
        size = _whole_size(response)
    except error.HTTPError as e:
      if e.code not in _REFUSES_HEAD:
        raise
      size = None
    if size is None:
      with _open(url, seconds, first=0, last=0) as response:
        size = _whole_size(response)
  except (OSError, *_UNREADABLE) as e:
    return _words(e, seconds)
  if size is None or not _fits(size, mebibytes):
    return 'it answers with another file'
  return ''


def _open(url: str, seconds: float, method: str = 'GET', first: int = 0,
          last: int | None = None) -> http.client.HTTPResponse:
  """Asks for a file, or for its bytes from the first to the last."""
  headers = {'User-Agent': 'catsdogs', 'Accept-Encoding': 'identity'}
  if first or last is not None:
    headers['Range'] = f'bytes={first}-{"" if last is None else last}'
  # A new opener, since a shared one keeps the proxies of its first use.
  return request.build_opener().open(
      request.Request(url, headers=headers, method=method), timeout=seconds)


def _whole_size(response: http.client.HTTPResponse) -> int | None:
  """Bytes of the whole file, of which the answer may be a part."""
  if response.status == 206:
    match = re.fullmatch(r'bytes \d+-\d+/(\d+)',
                         response.headers.get('Content-Range', '').strip())
    return int(match[1]) if match else None
  length = response.headers.get('Content-Length', '')
  return int(length) if length.isdecimal() else None


def _fits(size: int, mebibytes: float) -> bool:
  return abs(size / 2**20 - mebibytes) < 0.00051  # Half of the last decimal.


def _words(e: Exception, seconds: float) -> str:
  """What went wrong, in a few words."""
  if isinstance(e, error.HTTPError):
    return f'it answers {e.code}'
  e = _cause(e)
  if isinstance(e, socket.gaierror):
    return 'no such host'
  if isinstance(e, TimeoutError):
    return _SILENT.format(seconds)
  if isinstance(e, ConnectionRefusedError):
    return 'it refuses the connection'
  if isinstance(e, ssl.SSLCertVerificationError):
    return 'its certificate is not trusted'
  if isinstance(e, (ConnectionError, ssl.SSLError)):
    return 'it breaks the connection off'
  if isinstance(e, OSError) and e.strerror:
    return e.strerror.lower()
  return str(e) or type(e).__name__


def _cause(e: Exception) -> Exception | str:
  """What urllib wrapped, where it did."""
  return e.reason if isinstance(e, error.URLError) else e


def _size(file: BinaryIO) -> int:
  return os.fstat(file.fileno()).st_size


def _matches(path: pathlib.Path, sha256: str) -> bool:
  return sha256_of(path).startswith(sha256.lower())


@contextlib.contextmanager
def _refusals(folder: pathlib.Path) -> Iterator[None]:
  """Tells what the disk refuses us."""
  try:
    yield
  except OSError as e:
    raise UserError(
        f'{folder} cannot be written ({e.strerror}); make room there, or set '
        'CATSDOGS_CACHE to another folder') from e


@contextlib.contextmanager
def _locked(folder: pathlib.Path, partial: pathlib.Path,
            check: Callable[[], None]) -> Iterator[BinaryIO]:
  """The partial file, which no other process gets meanwhile.

  It is removed if it is empty in the end.
  """
  folder.mkdir(parents=True, exist_ok=True)
  told = False
  while True:
    check()
    with open(partial, 'ab') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        if not told:
          say(f'Another process downloads {partial.stem}; waiting for it.')
          told = True
        time.sleep(_LOCK_POLL_SECONDS)
        continue
      # Who had the lock may have renamed or removed what we opened.
      if partial.exists() and os.path.samestat(os.stat(partial),
                                               os.fstat(file.fileno())):
        try:
          yield file
        finally:
          if not _size(file):
            partial.unlink()
        return


def _download(url: str, mebibytes: float, file: BinaryIO,
              check: Callable[[], None]) -> None:
  """Fills the file up, from where it ends; tries several times.

  Raises:
    UserError: it cannot be downloaded. The file keeps what came.
  """
  begun = f', from {_size(file) / 2**20:.1f} on' if _size(file) else ''
  say(f'Downloading {url} ({mebibytes:.1f} MiB{begun}).')
  for pause in (*_PAUSES_SECONDS, None):
    try:
      return _try(url, mebibytes, file, check)
    except _Broken as e:
      if pause is None:
        raise UserError(
            f'{url}: {e}, {_size(file) / 2**20:.1f} of {mebibytes:.1f} MiB '
            'came; the same command goes on from there, once the network is '
            'better') from e
      say(f'{url}: {e}; trying again.')
      until = time.monotonic() + pause
      while time.monotonic() < until:
        check()
        time.sleep(min(pause, 0.1))


def _try(url: str, mebibytes: float, file: BinaryIO,
         check: Callable[[], None]) -> None:
  """Asks once for what the file lacks.

  Raises:
    _Broken: the connection broke off, or the server is out of order.
    UserError: another try would not help.
  """
  first = _size(file)
  try:
    response = _open(url, _STALL_SECONDS, first=first)
  except error.HTTPError as e:
    if e.code == 416:  # Too long already: not the beginning of that file.
      file.truncate(0)
    if e.code in (408, 416, 429) or e.code >= 500:
      raise _Broken(f'the server answers {e.code}') from e
    raise UserError(f'{url}: the server answers {e.code}; download the file '
                    'by other means, and set config.model.weights to it') from e
  except (OSError, *_UNREADABLE) as e:
    words, cause = _words(e, _STALL_SECONDS), _cause(e)
    if isinstance(cause, (TimeoutError, ConnectionError)) and not isinstance(
        cause, ConnectionRefusedError):
      raise _Broken(words) from e
    raise UserError(
        f'{url}: {words}; connect to the network (a proxy is named by '
        'HTTPS_PROXY), or download the file by other means and set '
        'config.model.weights to it') from e
  with response:
    size = _whole_size(response)
    if size is None or not _fits(size, mebibytes):
      raise UserError(
          f'{url}: another file came, of {size or "unknown"} bytes '
          f'instead of {mebibytes:.3f} MiB; the network may want you to log in '
          'first')
    if response.status == 206:
      start = response.headers.get('Content-Range', '')
      if not start.startswith(f'bytes {first}-'):
        file.truncate(0)
        raise _Broken('the server answers with another part of the file')
    elif first:
      say('The server cannot go on from the middle; from the beginning.')
      file.truncate(0)
    _copy(response, file, size, check)


def _copy(response: http.client.HTTPResponse, file: BinaryIO, size: int,
          check: Callable[[], None]) -> None:
  """Appends what comes up to a size of the file, with a bar on a terminal."""
  silent = jax.process_index() != 0 or not sys.stdout.isatty()
  with tqdm.tqdm(desc='Download', total=size, initial=_size(file), unit='B',
                 unit_scale=True, file=sys.stdout, disable=silent,
                 ncols=shutil.get_terminal_size().columns) as bar:
    while (left := size - _size(file)) > 0:
      check()
      try:
        chunk = response.read1(min(_CHUNK_BYTES, left))
      except (OSError, *_UNREADABLE) as e:
        raise _Broken(_words(e, _STALL_SECONDS)) from e
      if not chunk:
        raise _Broken('the connection was cut')
      file.write(chunk)
      file.flush()
      bar.update(len(chunk))
