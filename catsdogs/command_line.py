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
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC,
             errno.EDQUOT)


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
    return pathlib.Path(flags.FLAGS.workdir).expanduser()
  if flags.FLAGS.config is None:
    raise UserError('give --config=FILE, such as configs/finetune.py, or the '
                    '--workdir of a run')
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  return pathlib.Path('runs') / pathlib.Path(file.partition(':')[0]).stem


def cache() -> pathlib.Path:
  """The folder for what is made once and used again."""
  home = pathlib.Path.home() / '.cache' / 'catsdogs'
  return pathlib.Path(os.environ.get('CATSDOGS_CACHE', home)).expanduser()


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
  except UserError as e:
    _refuse(e)
  except Interrupted as e:
    print(f'{e}: stopped; the same command goes on.', file=sys.stderr)
    _leave(e.exit_status)
  except KeyboardInterrupt:
    _leave(128 + signal.SIGINT)
  except Exception as e:
    if isinstance(e, OSError) and e.errno in _REFUSALS:
      _refuse(f'{e.filename or "the disk"}: {e.strerror}; make room or choose '
              'another --workdir')
    traceback.print_exc()
    _leave(1)


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
  os._exit(status)
