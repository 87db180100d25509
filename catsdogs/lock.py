"""One process trains in a workdir at a time; a second is refused."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import time
from typing import Iterator, TextIO

import jax

from catsdogs.console import say
from catsdogs.errors import UserError

FILE = '.lock'
# Of file systems without locks, such as some that are mounted over a network.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
# A process that has the lock names itself within an instant; waited for so
# often, and so long each time.
_LOOKS, _LOOK_SECONDS = 20, 0.05


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps a workdir, which is made if need be, to this process.

  The lock is the kernel's, which lets go of it with the process, whatever ends
  that. So the file alone, which stays, says nothing. Of several processes of
  one run, the first holds it for all.

  Args:
    workdir: of a run that trains.

  Raises:
    UserError: another process has it, or it cannot be written.
  """
  if jax.process_index():
    yield
    return
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / FILE).open('a+', errors='replace')
  except OSError as e:
    raise UserError(f'--workdir: {workdir} cannot be written '
                    f'({e.strerror}); choose another') from e
  with file:
    _take(file, workdir)
    # A child would keep the lock when this process is gone.
    os.register_at_fork(after_in_child=file.close)
    _name_self(file)
    try:
      yield
    finally:
      file.truncate(0)


def _take(file: TextIO, workdir: pathlib.Path) -> None:
  """Locks the file, or raises `UserError` that names who has done so."""
  for look in range(_LOOKS):
    try:
      return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = _holder(file)
    except OSError as e:
      if e.errno not in _NO_LOCKS:
        raise
      return say(f'Note: {workdir} lies on a disk without locks '
                 f'({e.strerror}): start no second run in it.')
    if holder and _may_live(holder):
      break
    time.sleep(_LOOK_SECONDS)  # It is just about to write its name, or to end.
  who = ('process {pid} on {host} since {began}'.format_map(holder) if holder
         else 'another process')
  raise UserError(f'--workdir: {workdir} is in use by {who}; wait for it, stop '
                  'it, or choose another --workdir')


def _name_self(file: TextIO) -> None:
  now = datetime.datetime.now().astimezone()
  file.truncate(0)
  json.dump({'pid': os.getpid(), 'host': socket.gethostname(),
             'began': f'{now:%Y-%m-%d %H:%M:%S %z}'}, file)
  file.flush()


def _holder(file: TextIO) -> dict[str, object] | None:
  """Who holds the lock, as the file says; None where it does not say."""
  file.seek(0)
  try:
    said = json.load(file)
    return {'pid': int(said['pid']), 'host': said['host'],
            'began': said['began']}
  except (ValueError, TypeError, KeyError):
    return None


def _may_live(holder: dict[str, object]) -> bool:
  """False for a process of this machine that has ended: it left its name."""
  if holder['host'] != socket.gethostname():
    return True
  try:
    os.kill(holder['pid'], 0)
  except ProcessLookupError:
    return False
  except OSError:
    pass  # Another person's.
  return True
