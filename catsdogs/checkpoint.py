"""Checkpoints of a run, through Orbax, which is imported here alone.

A checkpoint holds the state and, as JSON, what a person needs to use it: class
names, preprocessing, the resolved config, a fingerprint of the data.
"""

import json
import pathlib
import time
from typing import Any, Callable

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from catsdogs import metric_log
from catsdogs.console import say
from catsdogs.errors import UserError
from catsdogs.train_state import TrainState

Meta = dict[str, Any]


def checkpoint_dir(workdir: pathlib.Path) -> pathlib.Path:
  """Where a run's checkpoints lie; absolute, as Orbax demands."""
  return workdir.absolute() / 'checkpoints'


class _KeepBest(preservation_policy.PreservationPolicy):
  """Keeps the step that is the best so far, whatever its age."""

  def __init__(self, best_step: Callable[[], int | None]):
    self._best_step = best_step

  def should_preserve(self, checkpoints, *, context):
    best = self._best_step()
    return [checkpoint.step == best for checkpoint in checkpoints]


class Checkpoints:
  """The checkpoints of a run that trains: the latest ones and the best."""

  def __init__(self, workdir: pathlib.Path, keep: int,
               best_step: Callable[[], int | None]):
    """Opens, or makes, the folder.

    Args:
      workdir: of the run.
      keep: how many of the latest checkpoints stay.
      best_step: asked at each save for the best step so far, which stays too.
    """
    self._directory = checkpoint_dir(workdir)
    policy = preservation_policy.AnyPreservationPolicy(
        [preservation_policy.LatestN(keep), _KeepBest(best_step)])
    self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(preservation_policy=policy))

  def save(self, state: TrainState, meta: Meta) -> None:
    """Saves in the background; does nothing where the step is saved already."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    self._manager.save(step, args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))

  def restore_latest(self, like: TrainState) -> tuple[TrainState, Meta] | None:
    """The newest checkpoint that is whole, or None where there is none.

    Args:
      like: a state of the shapes and shardings to restore to.

    Raises:
      UserError: there are checkpoints, but none can be read.
    """
    target = jax.tree.map(ocp.tree.to_shape_dtype_struct, like)
    steps = sorted(self._manager.all_steps(), reverse=True)
    damaged = []
    for step in steps:
      try:
        restored = self._manager.restore(step, args=ocp.args.Composite(
            state=ocp.args.StandardRestore(target),
            meta=ocp.args.JsonRestore()))
        self._set_aside(damaged)
        return restored.state, restored.meta
      except Exception as e:  # Orbax raises what its many layers raise.
        say(f'Checkpoint {self._directory / str(step)} is damaged and passed '
            f'over: {_one_line(e)}')
        damaged.append(step)
    if steps:
      raise UserError(f'no checkpoint in {self._directory} can be read; begin '
                      'the run anew with --restart')
    return None

  def _set_aside(self, steps: list[int]) -> None:
    """Moves damaged checkpoints away, so that their steps are saved anew."""
    for step in steps:
      aside = self._directory.with_name('damaged_checkpoints')
      aside.mkdir(exist_ok=True)
      (self._directory / str(step)).rename(aside / f'{step}-{time.time_ns()}')
    if steps:
      self._manager.reload()

  def wait(self) -> None:
    """Returns when what was saved lies on the disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and lets go of the folder."""
    self._manager.close()


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
    best = metric_log.best_step(metric_log.read_rows(workdir / 'metrics.csv'))
    if best not in steps:
      raise UserError('--checkpoint=best: no checkpoint of this run was '
                      'evaluated so far; choose --checkpoint=last')
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
  try:
    return json.loads((directory / 'meta' / 'metadata').read_text())
  except (OSError, ValueError) as e:
    raise _unreadable(directory, e) from e


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
  try:
    with ocp.PyTreeCheckpointer() as checkpointer:
      path = epath.Path(directory / 'state')
      saved = checkpointer.metadata(path).item_metadata.tree
      item = {key: saved[key] for key in wanted if saved.get(key)}
      restore_args = jax.tree.map(
          lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
      state = checkpointer.restore(path, args=ocp.args.PyTreeRestore(
          item, restore_args=restore_args, partial_restore=True))
  except Exception as e:  # Orbax raises what its many layers raise.
    raise _unreadable(directory, e) from e
  # A part that is not on the disk would come back without its values.
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
  return TrainState(step=step, opt_state=None, **state).eval_variables(), meta


def _unreadable(directory: pathlib.Path, error: Exception) -> UserError:
  return UserError(f'checkpoint {directory} cannot be read '
                   f'({_one_line(error)}); choose another with '
                   '--checkpoint=STEP')


def _one_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return lines[0][:200] if lines else type(error).__name__
