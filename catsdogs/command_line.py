"""How the program begins and ends: flags, signals, exit statuses."""

import errno
import os
import pathlib
import signal
import sys
import traceback
from typing import Any, Callable

from absl import app, flags
from ml_collections import config_flags

from catsdogs.errors import UserError
from catsdogs.interruption import Interrupted

# What the machine refuses a person, rather than what we did wrong.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_PATHS = (errno.ENAMETOOLONG, errno.ELOOP)
# What XLA and TensorFlow say of devices and hosts.
_NO_MEMORY = ('RESOURCE_EXHAUSTED', 'ResourceExhaustedError')


def parse_flags(argv: list[str]) -> list[str]:
  """As absl does, but what is wrong is told on one line, with status 2."""
  try:
    arguments = app.parse_flags_with_usage(argv) if '--help' in ' '.join(
        argv) else flags.FLAGS(argv)
    if flags.FLAGS.config is not None:
      flags.FLAGS.config.keys()  # A file that failed to load says so only now.
  except AttributeError as e:
    field = str(e).strip('"').replace('\\n', '. ').replace('\\', '')
    _refuse(f'--config: there is no field {field}; configs/finetune.py has '
            'them all')
  except OSError as e:
    _refuse(f'--config: {str(e).splitlines()[-1].strip()}; check the path')
  except Exception as e:  # Also whatever a person's own config file raises.
    _refuse(f'{e}')
  if arguments[1:]:
    _refuse(f'{arguments[1]!r} is no flag; see --help')
  return arguments


def workdir() -> pathlib.Path:
  """The --workdir, or the one that is named after the --config."""
  if flags.FLAGS.workdir:
    return pathlib.Path(os.path.expanduser(flags.FLAGS.workdir))
  if flags.FLAGS.config is None:
    raise UserError('give --config=FILE, such as configs/finetune.py, or the '
                    '--workdir of a run')
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  return pathlib.Path('runs') / pathlib.Path(file.partition(':')[0]).stem


def cache() -> pathlib.Path:
  """The folder for what is made once and used again."""
  home = pathlib.Path.home() / '.cache' / 'catsdogs'
  return pathlib.Path(os.path.expanduser(
      os.environ.get('CATSDOGS_CACHE', home)))


def overrides() -> dict[str, Any]:
  """What was set by --config.FIELD=VALUE, by dotted field."""
  if flags.FLAGS.config is None:
    return {}
  return config_flags.get_override_values(flags.FLAGS['config'])


def run(action: Callable[[], None]) -> None:
  """Runs what the command asks for, and ends as the README promises.

  Status 0: done; 2: what the person gave was wrong, which one line tells; 130
  or 143: interrupted; 1: a fault of ours, with a traceback.
  """
  for signum in (signal.SIGTERM, signal.SIGINT):  # Until a run takes over.
    signal.signal(signum, lambda signum, _: _leave(128 + signum))
  try:
    action()
  except Interrupted as e:
    print(f'{e}: stopped; the same command goes on.', file=sys.stderr)
    _leave(e.exit_status)
  except KeyboardInterrupt:
    _leave(128 + signal.SIGINT)
  except Exception as e:
    if problem := refusal(e):
      _refuse(problem)
    traceback.print_exc()
    _leave(1)


def refusal(error: Exception) -> str | None:
  """The line that tells a person of it; None where the fault is ours."""
  if isinstance(error, UserError):
    return str(error)
  if isinstance(error, OSError) and error.errno in _NO_ROOM:
    return (f'{error.filename or "the disk"}: {error.strerror}; make room, or '
            'choose another --workdir')
  if isinstance(error, OSError) and error.filename:
    if error.errno in _NO_PERMISSION:
      return (f'{error.filename}: {error.strerror}; mend its permissions, or '
              'choose another path')
    if error.errno in _NO_PATHS:
      return f'{error.filename}: {error.strerror}; choose another path'
  if isinstance(error, MemoryError) or any(
      words in f'{type(error).__name__} {error}' for words in _NO_MEMORY):
    details = ' '.join(str(error).split())[:200]
    return (f'no memory left{details and f" ({details})"}; lower '
            'config.train.batch_size, config.data.image_size or '
            'config.data.cache_gib, or raise config.optim.accumulate_steps')
  return None


def _refuse(problem: object) -> None:
  """Ends the process: the person's input was wrong."""
  print('Error:', ' '.join(str(problem).split()), file=sys.stderr)
  _leave(2)


def _leave(status: int) -> None:
  """Ends the process as it is.

  An orderly end would wait for tf.data's threads, which may wait for us.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  # Where this process has joined others; else this is not imported.
  if distributed := sys.modules.get('catsdogs.distributed'):
    distributed.part()
  os._exit(status)
