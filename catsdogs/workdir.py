"""The folder of a run: begun, continued, or read from."""

import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import ml_collections

from catsdogs import auto, config as config_lib, console, distributed
from catsdogs.errors import UserError

# What a run leaves behind, and what `--restart` removes; not its lock, which
# the run that begins anew holds.
_OUTPUTS = (
    'results.json',  # The first, or what a kill leaves would pass for done.
    'checkpoints', 'damaged_checkpoints', 'metrics.csv', 'predictions',
    'predictions.csv', 'predictions.png', 'skipped_files.csv',
    'diverged_batch.csv', 'evaluation.json', 'report.html',
    'events.out.tfevents.*', '*.partial')
# What may be set anew when a finished run is evaluated or predicted with.
_CHANGEABLE = ('data.source', 'data.cache_gib', 'data.train_split',
               'data.val_split', 'data.label_key', 'model.dtype',
               'train.batch_size')


def given_config(workdir: pathlib.Path,
                 config: ml_collections.ConfigDict | None
                 ) -> ml_collections.ConfigDict:
  """The checked config of the command line; None takes the workdir's.

  Raises:
    UserError: it is wrong, or there is none.
  """
  if config is None:
    return started_config(workdir)
  config_lib.check(config)
  return config


def begin_or_continue(workdir: pathlib.Path,
                      config: ml_collections.ConfigDict | None,
                      restart: bool, platform: str, cache: pathlib.Path,
                      processes: int = 1
                      ) -> tuple[ml_collections.ConfigDict, str | None]:
  """The resolved config of the run that a workdir holds, or is to hold.

  Args:
    workdir: made where it does not exist.
    config: as given on the command line; None takes the workdir's.
    restart: removes what a run left there.
    platform: of the devices: `cpu`, `gpu` or `tpu`.
    cache: the folder for what is made once and used again.
    processes: that take part in the run.

  Returns:
    The config, and what a person should read before a run that begins.

  Raises:
    UserError: the run was started with another config, or cannot begin.
  """
  from_workdir = config is None
  config = given_config(workdir, config)
  file = workdir / config_lib.CONFIG_FILE
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    begun = file.exists() and not restart
    if not begun:  # Told now, not after the photos are read.
      tempfile.TemporaryFile(dir=workdir).close()
  except OSError as e:
    raise UserError(f'--workdir: {workdir} cannot be written '
                    f'({e.strerror}); choose another') from e
  if not begun:
    if _is_same(config.model.weights, workdir):
      raise UserError(f'config.model.weights: {workdir} is the --workdir '
                      'itself; choose another --workdir')
    resolved = auto.resolve(config, platform, cache, processes)
    if restart:  # Only now, so that what is refused leaves the old run be.
      _clear(workdir)
      # The last, so that a kill leaves no other's remains; and not the only
      # place where the config is written down.
      if not from_workdir:
        file.unlink(missing_ok=True)
    return resolved
  started = config_lib.load(file)
  different = config_lib.differences(config, started)
  if different:
    raise UserError(
        f'--workdir: {workdir} holds a run with another config: '
        f'{"; ".join(different)}; choose another --workdir, or begin anew '
        'with --restart')
  return started, None


def begin(workdir: pathlib.Path, config: ml_collections.ConfigDict | None,
          cache: pathlib.Path, restart: bool = False
          ) -> ml_collections.ConfigDict:
  """As `begin_or_continue`, on the devices there are; says what is to be read.

  Args:
    workdir: made where it does not exist.
    config: as given on the command line; None takes the workdir's.
    cache: the folder for what is made once and used again.
    restart: removes what a run left there.
  """
  with distributed.process_0_first():  # It alone removes what was there.
    config, notice = begin_or_continue(
        workdir, config, restart and jax.process_index() == 0,
        jax.default_backend(), cache, jax.process_count())
  if notice:
    console.box(notice)
  return config


def _is_same(weights: str, workdir: pathlib.Path) -> bool:
  path = pathlib.Path(os.path.expanduser(weights))
  return path.is_dir() and path.samefile(workdir)


def holds_run(workdir: pathlib.Path) -> bool:
  """Whether a run has begun there."""
  return (workdir / config_lib.CONFIG_FILE).exists()


def started_config(workdir: pathlib.Path,
                   overrides: dict[str, Any] | None = None
                   ) -> ml_collections.ConfigDict:
  """The config of the run that a workdir holds.

  Args:
    workdir: of the run.
    overrides: values by dotted field, of those that may change afterwards.

  Raises:
    UserError: there is no run, or an override would change its model.
  """
  file = workdir / config_lib.CONFIG_FILE
  if not file.exists():
    raise UserError(f'--workdir: {workdir} holds no run; train one first with '
                    f'--config=FILE --workdir={workdir}')
  config = config_lib.load(file)
  for field, value in (overrides or {}).items():
    if value in ('auto', None):
      continue  # Agrees with the answer that the run found.
    if field in _CHANGEABLE:
      config.update_from_flattened_dict({field: value})
    elif value != (own := config_lib.flatten(config).get(field)):
      raise UserError(f'config.{field}: the run in {workdir} has {own!r}; '
                      'leave it out')
  config_lib.check(config)
  return config


def _clear(workdir: pathlib.Path) -> None:
  try:
    for pattern in _OUTPUTS:
      for path in workdir.glob(pattern):
        if path.is_dir() and not path.is_symlink():
          shutil.rmtree(path)
        else:
          path.unlink()
  except OSError as e:
    raise UserError(f'--restart: {e.filename} cannot be removed '
                    f'({e.strerror}); choose another --workdir') from e
