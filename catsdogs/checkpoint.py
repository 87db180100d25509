"""Checkpoints of a run, through Orbax, which is imported here alone.

A checkpoint holds the state and, as JSON, what a person needs to use it: class
names, preprocessing, the resolved config, a fingerprint of the data.
"""

from collections.abc import Collection, Iterator
import contextlib
import errno
import json
import os
import pathlib
import shutil
import time
from typing import Any, Callable

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from catsdogs import checksum, distributed, metric_log
from catsdogs.console import say
from catsdogs.errors import UserError
from catsdogs.train_state import TrainState

Meta = dict[str, Any]
BestOf = Callable[[Collection[int]], int | None]

# What the machine refuses, in whichever layer, and in whatever words around.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM,
             errno.EFBIG, errno.EIO, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
_UNFINISHED = '.orbax-checkpoint-tmp'
_REMOVED = 'removed'


def checkpoint_dir(workdir: pathlib.Path) -> pathlib.Path:
  """Where a run's checkpoints lie; absolute, as Orbax demands."""
  return workdir.absolute() / 'checkpoints'


class _KeepBest(preservation_policy.PreservationPolicy):
  """Keeps the step that is the best of those there are, whatever its age."""

  def __init__(self, best_of: BestOf):
    self._best_of = best_of

  def should_preserve(self, checkpoints, *, context):
    steps = [checkpoint.step for checkpoint in checkpoints]
    best = self._best_of(steps)
    return [step == best for step in steps]


class Checkpoints:
  """The checkpoints of a run that trains: the latest ones and the best.

  A new one is whole on the disk before an old one is removed.
  """

  def __init__(self, workdir: pathlib.Path, keep: int, best_of: BestOf):
    """Opens, or makes, the folder, and removes what a killed run left.

    Args:
      workdir: of the run.
      keep: how many of the latest checkpoints stay.
      best_of: asked at each save for the best of some steps, which stays too.

    Raises:
      UserError: the folder cannot be written.
    """
    self._directory = checkpoint_dir(workdir)
    self._keep = keep
    self._saving: int | None = None
    policy = preservation_policy.AnyPreservationPolicy(
        [preservation_policy.LatestN(keep), _KeepBest(best_of)])
    self._clear(f'*{_UNFINISHED}', _REMOVED)
    with self._refusals_told():
      self._directory.mkdir(parents=True, exist_ok=True)  # Orbax asks later.
      self._manager = ocp.CheckpointManager(
          self._directory,
          options=ocp.CheckpointManagerOptions(
              preservation_policy=policy,
              # Renamed at once: killed on the way, none is left half removed.
              todelete_subdir=_REMOVED,
              async_options=ocp.options.AsyncOptions(
                  post_finalization_callback=self._seal)))

  def steps(self) -> list[int]:
    """Those that have a checkpoint, or will have when it is written."""
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, meta: Meta) -> None:
    """Saves in the background; does nothing where the step is saved already.

    Raises:
      UserError: this, or the save before, cannot be written.
    """
    self.wait()
    step = int(state.step)
    if step in self.steps():
      return
    self._saving = step
    with self._refusals_told():
      self._manager.save(step, args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))

  def restore_latest(self, like: TrainState,
                     check: Callable[[Meta], None] = lambda meta: None
                     ) -> tuple[TrainState, Meta] | None:
    """The newest checkpoint that is whole, or None where there is none.

    Args:
      like: a state of the shapes and shardings to restore to.
      check: called with the JSON before the state is restored; raises where
        the checkpoint is not one of this run.

    Raises:
      UserError: there are checkpoints, but all are damaged.
    """
    self.set_damaged_aside()
    if not self.steps():
      return None
    step = self.steps()[-1]
    meta = json.loads(_meta_file(self._directory / str(step)).read_text())
    check(meta)
    target = jax.tree.map(ocp.tree.to_shape_dtype_struct, like)
    restored = self._manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(target)))
    return restored.state, meta

  def set_damaged_aside(self) -> None:
    """Moves damaged checkpoints away, so that they neither count nor go.

    Raises:
      UserError: all are damaged; they stay where they are.
    """
    with distributed.process_0_first():  # The others then find them gone.
      damaged = {
          step: damage for step in self.steps()
          if (damage := checksum.find_damage(self._directory / str(step)))}
      for step, damage in damaged.items():
        say(f'Checkpoint {self._directory / str(step)} is damaged and passed '
            f'over: {damage}.')
      if damaged and len(damaged) == len(self.steps()):
        raise UserError(f'no checkpoint in {self._directory} is whole; put one '
                        'back, or, losing them, begin anew with --restart')
      if jax.process_index() == 0:
        for step in damaged:
          self._set_aside(step)
    if damaged:
      self._manager.reload()

  def _set_aside(self, step: int) -> None:
    aside = self._directory.with_name('damaged_checkpoints')
    aside.mkdir(exist_ok=True)
    (self._directory / str(step)).rename(aside / f'{step}-{time.time_ns()}')

  def check_room(self, state: TrainState, saves: int) -> None:
    """Raises `UserError` unless the disk has room for all that will be there.

    That is the latest ones, the best, and the one that is being written, less
    what lies there already.

    Args:
      state: as it will be saved; that compression makes it smaller is not
        relied upon.
      saves: how many the run makes at most.
    """
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    count = min(self._keep + 2, saves)
    there = sum(f.stat().st_size for f in self._directory.glob('**/*')
                if f.is_file())
    free = shutil.disk_usage(self._directory).free
    distributed.check_everywhere(
        free >= count * size - there,
        f'{self._directory}: checkpoints take up to {_mib(count * size)} MiB '
        f'({count} of {_mib(size)} MiB), of which {_mib(there)} MiB lie '
        f'there, and the disk has {_mib(free)} MiB left; make room, lower '
        'config.train.keep, or choose another --workdir')

  def wait(self) -> None:
    """Returns when what was saved lies on the disk.

    Raises:
      UserError: it cannot be written.
    """
    with self._refusals_told():
      self._manager.wait_until_finished()
    self._clear(_REMOVED)

  def close(self) -> None:
    """Waits, and lets go of the folder."""
    self.wait()
    self._manager.close()

  def _clear(self, *patterns: str) -> None:
    """Removes folders beside the checkpoints, as far as can be."""
    if jax.process_index() == 0:
      for pattern in patterns:
        for folder in self._directory.glob(pattern):
          shutil.rmtree(folder, ignore_errors=True)

  def _seal(self) -> None:
    """Adds the checksums, before a checkpoint gets its final name."""
    folder = self._directory / f'{self._saving}{_UNFINISHED}'
    checksum.seal(folder, str(self._saving))

  @contextlib.contextmanager
  def _refusals_told(self) -> Iterator[None]:
    """Makes what the disk refuses a `UserError`."""
    try:
      yield
    except Exception as e:  # Orbax raises what its many layers raise.
      refusals = [os.strerror(number) for number in _REFUSALS
                  if getattr(e, 'errno', None) == number
                  or os.strerror(number) in str(e)]
      if not refusals:
        raise
      raise UserError(
          f'{self._directory} cannot be written ({refusals[0]}); make room '
          'there, or make it writable, and the same command goes on from the '
          'checkpoint before') from e


def saved_steps(workdir: pathlib.Path) -> list[int]:
  """The steps that have a finished checkpoint, in order."""
  directory = checkpoint_dir(workdir)
  if not directory.is_dir():
    return []
  return sorted(int(p.name) for p in directory.iterdir()
                if p.name.isdecimal() and (p / 'meta').is_dir())


def choose_step(workdir: pathlib.Path, which: str) -> int:
  """The saved step that a person means.

  Args:
    workdir: of the run.
    which: `best`, `last`, or a step.

  Raises:
    UserError: there is no such checkpoint.
  """
  steps = saved_steps(workdir)
  if not steps:
    raise UserError(f'--checkpoint: {checkpoint_dir(workdir)} holds no '
                    'checkpoint; train first')
  if which == 'last':
    return steps[-1]
  if which == 'best':
    rows = metric_log.read_rows(workdir / 'metrics.csv')
    best = metric_log.best_step(rows, steps)
    if best is None:
      raise UserError('--checkpoint=best: no checkpoint of this run was '
                      'evaluated so far; choose --checkpoint=last')
    if (better := metric_log.best_step(rows)) != best:
      say(f'Step {better} was better than {best}, but its checkpoint is gone.')
    return best
  if which.isdecimal() and int(which) in steps:
    return int(which)
  raise UserError(f'--checkpoint={which}: there are best, last, pretrained '
                  f'and the steps {", ".join(map(str, steps))}')


def read_meta(workdir: pathlib.Path, step: int) -> Meta:
  """The JSON of a saved step; of it, nothing else is read.

  Raises:
    UserError: the checkpoint is damaged.
  """
  directory = checkpoint_dir(workdir) / str(step)
  file = _meta_file(directory)
  _check_whole(directory, file.relative_to(directory).as_posix())
  return json.loads(file.read_text())


def restore_variables(workdir: pathlib.Path, step: int
                      ) -> tuple[dict[str, Any], Meta]:
  """What the model needs of a checkpoint, as host arrays, and its JSON.

  No optimizer, no data set and none of the devices it was saved on is needed.

  Args:
    workdir: of the run.
    step: a saved one.

  Returns:
    `params` and `batch_stats` as they are evaluated, that is, the averages
    where the run kept some; and the checkpoint's JSON.

  Raises:
    UserError: the checkpoint is damaged.
  """
  directory = checkpoint_dir(workdir) / str(step)
  wanted = ('params', 'batch_stats', 'ema_params', 'ema_batch_stats')
  meta = read_meta(workdir, step)
  _check_whole(directory)
  with ocp.PyTreeCheckpointer() as checkpointer:
    path = epath.Path(directory / 'state')
    saved = checkpointer.metadata(path).item_metadata.tree
    item = {key: saved[key] for key in wanted if saved.get(key)}
    restore_args = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    state = checkpointer.restore(path, args=ocp.args.PyTreeRestore(
        item, restore_args=restore_args, partial_restore=True))
  # A part that is not on the disk would come back without its values.
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
  return TrainState(step=step, opt_state=None, **state).eval_variables(), meta


def _meta_file(directory: pathlib.Path) -> pathlib.Path:
  return directory / 'meta' / 'metadata'


def _check_whole(directory: pathlib.Path, only: str = '') -> None:
  if damage := checksum.find_damage(directory, only):
    raise UserError(f'checkpoint {directory} is damaged ({damage}); choose '
                    'another with --checkpoint=STEP')


def _mib(size_bytes: int) -> str:
  return f'{size_bytes / 2**20:,.1f}'
