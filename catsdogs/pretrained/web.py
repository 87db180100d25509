"""Asks web servers, and says in a few words what goes wrong."""

import http.client
import os
import re
import socket
import ssl
import time
from typing import Callable, TypeVar
from urllib import error, request

from catsdogs.console import say
from catsdogs.errors import UserError

STALL_SECONDS = 20.0
# How long to wait after each try that broke off.
PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0)
OTHERWISE = ('download the file by other means, and set '
             'config.model.weights to it')
SILENT = 'no answer within {:g} s'
# What urllib raises, beside OSError, of an answer or an address it cannot read.
UNREADABLE = (http.client.HTTPException, ValueError)

_Answer = TypeVar('_Answer')


class Broken(Exception):
  """A try that broke off, and may be repeated; says how."""


def offline() -> bool:
  """Whether CATSDOGS_OFFLINE forbids to use the network."""
  return os.environ.get('CATSDOGS_OFFLINE', '') not in ('', '0')


class _NoRedirect(request.HTTPRedirectHandler):
  """Leaves a redirection to who asked."""

  def redirect_request(self, *_):
    return None


def open_url(url: str, seconds: float, method: str = 'GET', first: int = 0,
             last: int | None = None,
             redirects: bool = True) -> http.client.HTTPResponse:
  """Asks for a file, or for its bytes from the first to the last.

  Without `redirects`, an answer that leads elsewhere is an `HTTPError`, as are
  those from 400 on.
  """
  headers = {'User-Agent': 'catsdogs', 'Accept-Encoding': 'identity'}
  if first or last is not None:
    headers['Range'] = f'bytes={first}-{"" if last is None else last}'
  # A new opener, since a shared one keeps the proxies of its first use.
  opener = request.build_opener(*([] if redirects else [_NoRedirect]))
  return opener.open(request.Request(url, headers=headers, method=method),
                     timeout=seconds)


def whole_size(response: http.client.HTTPResponse) -> int | None:
  """Bytes of the whole file, of which the answer may be a part."""
  if response.status == 206:
    match = re.fullmatch(r'bytes \d+-\d+/(\d+)',
                         response.headers.get('Content-Range', '').strip())
    return int(match[1]) if match else None
  length = response.headers.get('Content-Length', '')
  return int(length) if length.isdecimal() else None


def persist(url: str, attempt: Callable[[], _Answer], check: Callable[[], None],
            so_far: Callable[[], str] = str) -> _Answer:
  """Tries several times, with pauses between.

  Args:
    url: that is asked.
    attempt: raises `Broken` where another try may help.
    check: called while it pauses; what it raises ends it.
    so_far: what came, and what to do, for what is told in the end.

  Raises:
    UserError: no try helped.
  """
  for pause in (*PAUSES_SECONDS, None):
    try:
      return attempt()
    except Broken as e:
      if pause is None:
        raise UserError(f'{url}: {e}{so_far()}') from e
      say(f'{url}: {e}; trying again.')
      until = time.monotonic() + pause
      while time.monotonic() < until:
        check()
        time.sleep(min(pause, 0.1))
  raise AssertionError('the last try has no pause')


def refused(url: str, e: Exception) -> Exception:
  """What to raise where a server cannot be asked: `Broken` or `UserError`."""
  if isinstance(e, error.HTTPError):
    if e.code in (408, 429) or e.code >= 500:
      return Broken(f'the server answers {e.code}')
    return UserError(f'{url}: the server answers {e.code}; {OTHERWISE}')
  words, cause = in_words(e, STALL_SECONDS), _cause(e)
  if isinstance(cause, (TimeoutError, ConnectionError)) and not isinstance(
      cause, ConnectionRefusedError):
    return Broken(words)
  return UserError(
      f'{url}: {words}; connect to the network (a proxy is named by '
      f'HTTPS_PROXY), or {OTHERWISE}')


def in_words(e: Exception, seconds: float) -> str:
  """What went wrong, in a few words."""
  if isinstance(e, error.HTTPError):
    return f'it answers {e.code}'
  e = _cause(e)
  if isinstance(e, socket.gaierror):
    return 'no such host'
  if isinstance(e, TimeoutError):
    return SILENT.format(seconds)
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
