"""Checksums of a folder's files, by which damage to any of them is found.

The file `checksums.json` holds the SHA-256 of every file in the folders
inside. So any change to their bytes is found, be it one flipped bit; that a
change passes is as likely as guessing 256 tosses of a coin. The name of the
folder is held too: under another name it is not the one that was sealed.
"""

import hashlib
import json
import pathlib

FILE = 'checksums.json'


def seal(folder: pathlib.Path, name: str) -> None:
  """Writes the checksums of what lies in the folders inside a folder.

  Args:
    folder: complete, but for files right inside, which are left out.
    name: that the folder will have.
  """
  files = {path.relative_to(folder).as_posix(): _sha256(path)
           for path in sorted(folder.glob('*/**/*')) if path.is_file()}
  (folder / FILE).write_text(
      json.dumps({'name': name, 'files': files}, indent=2) + '\n')


def find_damage(folder: pathlib.Path, only: str = '') -> str | None:
  """What is wrong with a folder that was sealed; None where it is whole.

  Args:
    folder: to be checked; files that were added later do no harm.
    only: the one file to be checked, if not all.

  Raises:
    PermissionError: it may be whole, but this user may not read it.
  """
  try:
    sealed = json.loads((folder / FILE).read_text())
    name, files = sealed['name'], sealed['files'].items()
  except PermissionError:
    raise
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
    return f'{FILE}: {_reason(e)}'
  if name != folder.name:
    return f'it was saved as {name}'
  if only not in ('', *dict(files)):
    return f'{only}: no checksum'
  for file, expected in files:
    try:
      if only in ('', file) and _sha256(folder / file) != expected:
        return f'{file}: not the bytes that were saved'
    except PermissionError:
      raise
    except (OSError, ValueError) as e:  # A name may hold a null byte.
      return f'{file}: {_reason(e)}'
  return None


def _sha256(file: pathlib.Path) -> str:
  with file.open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def _reason(error: Exception) -> str:
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return 'not what was written'
