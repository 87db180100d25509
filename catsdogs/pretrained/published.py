"""Files whose server tells their hash: it is asked once, and remembered."""

import base64
import dataclasses
from email.message import Message
import json
import os
import pathlib
import re
from typing import Callable
from urllib import error, parse

from catsdogs.errors import UserError
from catsdogs.pretrained import download, web

_REDIRECTIONS = (301, 302, 303, 307, 308)
_MAX_REDIRECTIONS = 5
# What the Hugging Face hub calls its refusals.
_REFUSALS = {
    'RepoNotFound': 'there is no such repository, or it is not public',
    'GatedRepo': 'its owner wants to be asked for it first',
}


class Missing(UserError):
  """The server has no such file."""


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a server says of a file.

  Attributes:
    url: of the file.
    digest: its hash, of `download.matches`.
    size: in bytes; None where the server does not say.
    commit: the version of the repository that it is from, or empty.
  """

  url: str
  digest: str
  size: int | None
  commit: str


def fetch(url: str, folder: pathlib.Path,
          check: Callable[[], None] = lambda: None) -> pathlib.Path:
  """The file of that address, from the folder or else downloaded into it.

  What is in the folder stays as it was at first, whatever the server has by
  now; it is checked each time against the hash that the server told then.

  Args:
    url: its last part names the file.
    folder: made where it does not exist.
    check: called while it takes time; what it raises ends the download.

  Raises:
    Missing: there is no such file.
    UserError: the file cannot be had, or its server tells no hash.
  """
  path = folder / url.rpartition('/')[2]
  if is_whole(path):
    return path
  download.refuse_offline(path, web.OTHERWISE)
  answer = web.persist(url, lambda: _ask(url), check)
  with download.refusals(folder):
    _remember(path, answer)
  mebibytes = None if answer.size is None else answer.size / 2**20
  return download.fetch(url, answer.digest, mebibytes, folder, check)


def is_whole(path: pathlib.Path) -> bool:
  """Whether a file is there, with the hash that was told of it."""
  try:
    digest = json.loads(_note(path).read_text())['digest']
    return path.is_file() and download.matches(path, digest)
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return False


def _note(path: pathlib.Path) -> pathlib.Path:
  """Where the answer is remembered."""
  return path.with_name(f'{path.name}.published')


def _remember(path: pathlib.Path, answer: Answer) -> None:
  note = _note(path)
  note.parent.mkdir(parents=True, exist_ok=True)
  # Another process may be about the same.
  partial = note.with_name(f'{note.name}.{os.getpid()}')
  partial.write_text(json.dumps(dataclasses.asdict(answer), indent=2) + '\n')
  partial.replace(note)


def _ask(url: str) -> Answer:
  """Asks once.

  Raises:
    web.Broken: another try may help.
    Missing: there is no such file.
    UserError: another try would not help.
  """
  headers, location, asked = _head(url)
  for _ in range(_MAX_REDIRECTIONS):
    # The hub sends us elsewhere for what is large, but tells the hash itself;
    # within its own house, it has only moved.
    if (not location or _digest(headers)
        or parse.urlsplit(location).netloc != parse.urlsplit(asked).netloc):
      break
    headers, location, asked = _head(location)
  digest = _digest(headers)
  if not digest:
    raise UserError(f'{url}: the answer tells no hash of the file; the network '
                    f'may want you to log in first, or else {web.OTHERWISE}')
  size = headers.get('X-Linked-Size') or (
      '' if location else headers.get('Content-Length', ''))
  return Answer(url, digest, int(size) if size.isdecimal() else None,
                headers.get('X-Repo-Commit', ''))


def _head(url: str) -> tuple[Message, str, str]:
  """What is said of a file, where it leads to instead, and what was asked."""
  try:
    with web.open_url(url, web.STALL_SECONDS, 'HEAD',
                      redirects=False) as response:
      return response.headers, '', url
  except error.HTTPError as e:
    location = e.headers.get('Location')
    if e.code in _REDIRECTIONS and location:
      return e.headers, parse.urljoin(url, location), url
    code = e.headers.get('X-Error-Code', '')
    if code in _REFUSALS or e.code in (401, 403):
      reason = _REFUSALS.get(code, 'it is not public')
      raise UserError(f'{url}: the server answers {e.code}, {reason}; check '
                      f'the name, or {web.OTHERWISE}') from e
    if e.code == 404:
      raise Missing(f'{url}: the server answers 404, there is no such file; '
                    f'check the name, or {web.OTHERWISE}') from e
    raise web.refused(url, e) from e
  except (OSError, *web.UNREADABLE) as e:
    raise web.refused(url, e) from e


def _digest(headers: Message) -> str:
  """The hash that an answer tells; empty where there is none.

  Google's storage tells MD5. The hub tells SHA-256, and the hash of git itself
  for small files:
  https://huggingface.co/docs/huggingface_hub/package_reference/file_download.
  """
  for value in ','.join(headers.get_all('x-goog-hash', [])).split(','):
    if match := re.fullmatch('md5=([A-Za-z0-9+/]{22}==)', value.strip()):
      return f'md5:{base64.b64decode(match[1]).hex()}'
  tag = headers.get('X-Linked-Etag') or headers.get('ETag', '')
  tag = tag.removeprefix('W/').strip('"').lower()
  for algorithm, digits in (('sha256', 64), ('git', 40)):
    if re.fullmatch(f'[0-9a-f]{{{digits}}}', tag):
      return f'{algorithm}:{tag}'
  return ''
