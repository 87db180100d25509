"""Downloads a published file once; what is left of a broken try goes on."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import pathlib
import shutil
import sys
import threading
import time
from typing import BinaryIO, Callable, Iterator
from urllib import error

import jax
import tqdm

from catsdogs.console import say
from catsdogs.errors import UserError
from catsdogs.pretrained import web

_LOCK_POLL_SECONDS = 0.2
_CHUNK_BYTES = 2**18
_HASH_NAMES = {'sha256': 'SHA-256', 'md5': 'MD5', 'git': 'the git hash'}
# A server that does not like HEAD answers with one of these.
_REFUSES_HEAD = (400, 403, 405, 501)


def fetch(url: str, digest: str, mebibytes: float | None, folder: pathlib.Path,
          check: Callable[[], None] = lambda: None) -> pathlib.Path:
  """The file of that address, from the folder or else downloaded into it.

  Its hash is checked each time. Of several processes, one downloads and the
  others wait for it.

  Args:
    url: its last part names the file.
    digest: the file's hash, of `matches`.
    mebibytes: size of the file, to three decimals; None for what the server
      says.
    folder: made where it does not exist.
    check: called while it takes time; what it raises ends the download, and
      the next one goes on from there.

  Raises:
    UserError: the file cannot be had.
  """
  path = folder / url.rpartition('/')[2]
  if path.is_file() and matches(path, digest):
    return path
  refuse_offline(path, f'put {url} there')
  partial = folder / f'{path.name}.partial'
  with refusals(folder), _locked(folder, partial, check) as file:
    if path.is_file():
      if matches(path, digest):  # Another process was faster.
        file.truncate(0)
        return path
      damaged = path.replace(folder / f'{path.name}.damaged')
      say(f'{path} is damaged; it is now {damaged.name}, and downloaded anew.')
    if not _fits(_size(file), mebibytes) or not matches(partial, digest):
      _download(url, mebibytes, file, check)
    if not matches(partial, digest):
      algorithm, _, expected = digest.partition(':')
      found = _digits(partial, algorithm)
      file.truncate(0)
      raise UserError(
          f'{url}: what came has {_HASH_NAMES[algorithm]} {found[:16]}..., not '
          f'{expected[:16]}..., and was removed; try again, or '
          f'{web.OTHERWISE}')
    partial.replace(path)
  return path


def refuse_offline(path: pathlib.Path, mend: str) -> None:
  """Raises `UserError` where a file is lacking and the network forbidden."""
  if web.offline():
    there = 'is damaged' if path.exists() else 'is not there'
    raise UserError(f'{path} {there}, and CATSDOGS_OFFLINE is set; unset it, '
                    f'or {mend}')


def matches(path: pathlib.Path, digest: str) -> bool:
  """Whether a file has a hash.

  Args:
    path: of the file.
    digest: `sha256:`, `md5:` or `git:` and its hexadecimal digits, of which the
      first are enough. `git` is the name that git gives to the content.

  Raises:
    UserError: the file cannot be read.
  """
  algorithm, _, digits = digest.partition(':')
  return _digits(path, algorithm).startswith(digits.lower())


def md5(path: pathlib.Path) -> str:
  """The MD5 of a file, in hexadecimal; raises as `matches` does."""
  return _digits(path, 'md5')


def _digits(path: pathlib.Path, algorithm: str) -> str:
  try:
    with open(path, 'rb') as file:
      if algorithm != 'git':
        return hashlib.file_digest(file, algorithm).hexdigest()
      # Only small files are in git itself.
      return hashlib.sha1(b'blob %d\0' % _size(file) + file.read()).hexdigest()
  except OSError as e:
    raise UserError(f'{path}: {e.strerror}; name a file of weights that can be '
                    'read') from e


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
  return reasons[0] if reasons else web.SILENT.format(seconds)


def _look(url: str, mebibytes: float, seconds: float) -> str:
  try:
    try:
      with web.open_url(url, seconds, method='HEAD') as response:
        size = web.whole_size(response)
    except error.HTTPError as e:
      if e.code not in _REFUSES_HEAD:
        raise
      size = None
    if size is None:
      with web.open_url(url, seconds, first=0, last=0) as response:
        size = web.whole_size(response)
  except (OSError, *web.UNREADABLE) as e:
    return web.in_words(e, seconds)
  if size is None or not _fits(size, mebibytes):
    return 'it answers with another file'
  return ''


def _fits(size: int, mebibytes: float | None) -> bool:
  if mebibytes is None:
    return True
  return abs(size / 2**20 - mebibytes) < 0.00051  # Half of the last decimal.


def _size(file: BinaryIO) -> int:
  return os.fstat(file.fileno()).st_size


@contextlib.contextmanager
def refusals(folder: pathlib.Path) -> Iterator[None]:
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


def _download(url: str, mebibytes: float | None, file: BinaryIO,
              check: Callable[[], None]) -> None:
  """Fills the file up, from where it ends; tries several times.

  Raises:
    UserError: it cannot be downloaded. The file keeps what came.
  """
  begun = f'from {_size(file) / 2**20:.1f} on' if _size(file) else ''
  whole = '' if mebibytes is None else f'{mebibytes:.1f} MiB'
  told = ', '.join(filter(None, (whole, begun)))
  say(f'Downloading {url}{told and f" ({told})"}.')
  web.persist(
      url, lambda: _try(url, mebibytes, file, check), check,
      lambda: (f', {_size(file) / 2**20:.1f} {whole and f"of {whole}" or "MiB"}'
               ' came; the same command goes on from there, once the network '
               'is better'))


def _try(url: str, mebibytes: float | None, file: BinaryIO,
         check: Callable[[], None]) -> None:
  """Asks once for what the file lacks.

  Raises:
    web.Broken: the connection broke off, or the server is out of order.
    UserError: another try would not help.
  """
  first = _size(file)
  try:
    response = web.open_url(url, web.STALL_SECONDS, first=first)
  except (OSError, *web.UNREADABLE) as e:
    if isinstance(e, error.HTTPError) and e.code == 416:
      file.truncate(0)  # Too long already: not the beginning of that file.
      raise web.Broken('the server answers 416') from e
    raise web.refused(url, e) from e
  with response:
    size = web.whole_size(response)
    if size is None or not _fits(size, mebibytes):
      raise UserError(
          f'{url}: another file came, of {size or "unknown"} bytes'
          + (f' instead of {mebibytes:.3f} MiB' if mebibytes else '')
          + '; the network may want you to log in first')
    if response.status == 206:
      start = response.headers.get('Content-Range', '')
      if not start.startswith(f'bytes {first}-'):
        file.truncate(0)
        raise web.Broken('the server answers with another part of the file')
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
      except (OSError, *web.UNREADABLE) as e:
        raise web.Broken(web.in_words(e, web.STALL_SECONDS)) from e
      if not chunk:
        raise web.Broken('the connection was cut')
      file.write(chunk)
      file.flush()
      bar.update(len(chunk))
