"""The training loop: steps, evaluations and checkpoints, in their order."""

import dataclasses
import math
import pathlib
from typing import Any, Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import ml_collections

from catsdogs import config as config_lib, results
from catsdogs.checkpoint import Checkpoints, restore_variables
from catsdogs.console import EpochProgress, printable, say
from catsdogs.errors import UserError
from catsdogs.evaluate import Evaluation, describe
from catsdogs.input_pipeline import (Data, check_photos, create_train_iter,
                                     train_indices)
from catsdogs.metric_log import MetricLog
from catsdogs.preprocessing import Preprocessing
from catsdogs.progress import Clock, Timetable, Totals
from catsdogs.train_state import TrainState, all_finite
from catsdogs.train_step import Metrics

# Photos that the message names; the file names all of them.
_NAMED = 3
_DIVERGED = ('lower config.optim.learning_rate or set config.optim.'
             'grad_clip_norm, and begin anew with --restart. Earlier '
             'checkpoints are whole')


class Loop:
  """Goes through the timetable, from wherever the workdir left off.

  The order at a step is fixed: save, evaluate, train. So what is evaluated is
  on the disk already, and a run that is killed meanwhile evaluates again.
  """

  def __init__(self, config: ml_collections.ConfigDict, workdir: pathlib.Path,
               mesh: Mesh, data: Data, preprocessing: Preprocessing,
               timetable: Timetable, clock: Clock, state: TrainState,
               train_step: Callable[..., Any],
               evaluate_now: Callable[[Any], Evaluation],
               evaluate_before: Callable[[], Evaluation] | None,
               check: Callable[[], None], write_results: Callable[..., Any]):
    """Restores the newest whole checkpoint, if there is one.

    Args:
      config: resolved.
      workdir: of the run.
      mesh: the devices.
      data: ready to be trained and evaluated on.
      preprocessing: between the data and the model.
      timetable: of the run.
      clock: of this process.
      state: before the first step.
      train_step: of `create_train_step`.
      evaluate_now: evaluates variables on the validation split.
      evaluate_before: evaluates another model in place of the first state.
      check: raises where a signal asks the run to end.
      write_results: called with a status, the loop and the best evaluation,
        after each evaluation.
    """
    self._config, self._workdir, self._mesh = config, workdir, mesh
    self.data, self._preprocessing = data, preprocessing
    self._timetable, self._clock = timetable, clock
    self._train_step, self._evaluate = train_step, evaluate_now
    self._evaluate_before = evaluate_before
    self._check, self._write_results = check, write_results
    self._left_out = len(data.skipped)
    self.state, self._step = state, 0
    self._totals, self.epoch_totals = Totals(), Totals()
    self._pending: list[Metrics] = []  # What steps measured; on the devices.
    self._best: tuple[int, Evaluation] | None = None

    self._checkpoints = Checkpoints(workdir, config.train.keep,
                                    lambda steps: self.log.best_step(steps))
    restored = self._checkpoints.restore_latest(state, self._check_own)
    self._checkpoints.check_room(
        state, timetable.most_saves(config.train.checkpoint_every_steps))
    if restored:
      self._resume(*restored)
    # Nothing restored, what was measured before is of no use either.
    self.log = MetricLog(workdir, self._step if restored else -1,
                         jax.process_index() == 0)

  def _check_own(self, meta: dict[str, Any]) -> None:
    """Raises `UserError` where a checkpoint is of another run than this."""
    different = config_lib.differences(
        self._config, config_lib.from_dict(meta['config']))
    if different:
      raise UserError(
          f'the newest checkpoint in {self._workdir} is of a run with another '
          f'config: {"; ".join(different)}; put back its own, or begin '
          'anew with --restart')
    saved = Preprocessing.from_dict(meta['preprocessing'])
    if saved != self._preprocessing:
      raise UserError(
          f'the weights of {self._workdir} ask for another preprocessing than '
          'when it was started; put them back, or begin anew with --restart')
    if meta['data_fingerprint'] != self.data.fingerprint:
      raise UserError(
          f'the photos in {self.data.source.name} are not those that '
          f'{self._workdir} was started with; put them back, or begin anew '
          'with --restart')

  def _resume(self, state: TrainState, meta: dict[str, Any]) -> None:
    self.state, self._step = state, int(state.step)
    self._totals = Totals(**meta['totals'])
    self.epoch_totals = Totals(**meta['epoch_totals'])
    self._clock.go_on(**meta['clock'])
    say(f'Resuming after step {self._step} of {self._timetable.total_steps}.')

  def run(self) -> None:
    """Trains and evaluates until the timetable ends."""
    config, timetable = self._config.train, self._timetable
    batches = create_train_iter(
        self.data.train, self._config.seed, config.batch_size, self._step,
        timetable.total_steps, NamedSharding(self._mesh, P('data')))
    epoch = progress = None
    while True:
      self._check()
      if timetable.evaluates_at(self._step):
        self._evaluate_once()
      if self._step == timetable.total_steps:
        break

      if progress is None:
        epoch = timetable.epoch_at(self._step)
        if self._step == epoch.first_step:
          self.epoch_totals = Totals()
        progress = EpochProgress(epoch.number, config.epochs,
                                 epoch.first_step, self._step,
                                 epoch.last_step)
      batch = next(batches)
      self.state, metrics = self._train_step(self.state, batch)
      self._step += 1
      self._pending.append(metrics)
      self._clock.count(config.batch_size, metrics)
      progress.advance()

      epoch_ends = self._step == epoch.last_step
      if epoch_ends or self._step % config.log_every_steps == 0:
        self._log_training(progress)
      if epoch_ends:
        progress = progress.close()
      if (epoch_ends or timetable.evaluates_at(self._step)
          or self._step % config.checkpoint_every_steps == 0):
        self.save()

  def save(self) -> None:
    """Saves a checkpoint of the current step, unless it has one.

    Raises:
      UserError: the state is not finite; it is not saved.
    """
    self._add_up()
    if not all_finite(self.state):
      raise self._diverged(self._step, 'the parameters are no longer finite')
    self._checkpoints.save(self.state, {
        'class_names': list(self.data.class_names),
        'preprocessing': self._preprocessing.to_dict(),
        'config': self._config.to_dict(),
        'data_fingerprint': self.data.fingerprint,
        'totals': dataclasses.asdict(self._totals),
        'epoch_totals': dataclasses.asdict(self.epoch_totals),
        'clock': self._clock.to_dict()})
    self._clock.start_lap()

  def best_evaluation(self) -> Evaluation:
    """The evaluation of the best checkpoint, once more if need be."""
    self._checkpoints.wait()
    if self._best is None or self._best[0] != self.best_step():
      self._checkpoints.set_damaged_aside()  # For those since the start.
      step = self.best_step()
      if step is None:
        raise UserError(
            f'no checkpoint in {self._workdir} that was evaluated is whole any '
            'more; the same command goes on from the newest that is')
      variables, _ = restore_variables(self._workdir, step)
      self._best = step, self._evaluate(variables)
    return self._best[1]

  def best_step(self) -> int | None:
    """The best of the steps that have a checkpoint; None before there is."""
    return self.log.best_step(self._checkpoints.steps())

  def close(self) -> None:
    """Returns when all that was saved lies on the disk."""
    self._checkpoints.close()
    self.log.close()

  def _add_up(self) -> None:
    """Fetches what the latest steps measured, and adds it to the totals."""
    first = self._step - len(self._pending)
    for step, metrics in enumerate(jax.device_get(self._pending), first + 1):
      loss = float(metrics['loss']) / max(1.0, float(metrics['count']))
      if not (math.isfinite(loss) and math.isfinite(metrics['grad_norm'])):
        self._pending.clear()
        raise self._diverged(step, f'the loss is {loss}, its gradient\'s norm '
                             f'{metrics["grad_norm"]}')
      self._totals.add(metrics)
      self.epoch_totals.add(metrics)
    self._pending.clear()

  def _diverged(self, step: int, how: str) -> UserError:
    """What to tell, with the photos of the step; a file names all of them."""
    photos, file = self.data.train, self._workdir / results.DIVERGED_FILE
    indices = train_indices(self._config.seed, len(photos), step - 1,
                            self._config.train.batch_size)
    split = photos.split.select(indices)
    results.write_batch(file, split, self.data.class_names)
    names = ', '.join(printable(name) for name in split.ids[:_NAMED])
    return UserError(f'step {step}: {how}, with {names}'
                     f'{" ..." if len(indices) > _NAMED else ""} ({file} names '
                     f'the {len(indices)} photos of the step); {_DIVERGED}')

  def _log_training(self, progress: EpochProgress) -> None:
    learning_rate = float(self._pending[-1]['learning_rate'])
    self._add_up()
    self.data.gather_skipped()
    self._tell_left_out()
    speed = self._clock.lap()
    means = self._totals.means()
    self._totals = Totals()
    self.log.append(self._step, self._timetable.epochs(self._step), **means,
                    learning_rate=learning_rate, **speed)
    progress.report(means['train_loss'], means['train_accuracy'],
                    speed.get('images_per_sec'))

  def _evaluate_once(self) -> None:
    """Evaluates the current step, unless that is on record already."""
    if self._step in self.log.evaluations():
      return
    if self._step == 0 and self._evaluate_before:
      evaluation = self._evaluate_before()
    else:
      evaluation = self._evaluate(self.state.eval_variables())
    self.data.gather_skipped()
    self._tell_left_out()
    if not math.isfinite(evaluation.loss):
      raise UserError(f'step {self._step}: the validation loss is '
                      f'{evaluation.loss}; {_DIVERGED}')
    epochs = self._timetable.epochs(self._step)
    self.log.append(self._step, epochs, eval_loss=evaluation.loss,
                    eval_accuracy=evaluation.accuracy)
    if self.best_step() == self._step:
      self._best = self._step, evaluation
    when = f'At epoch {epochs:.3g}' if self._step else 'Before training'
    say(f'{when}: val_loss {evaluation.loss:.4f}, val_accuracy '
        f'{describe(evaluation.accuracy, evaluation.count)}')
    self._write_results('running', self, self._best and self._best[1])
    self._clock.start_lap()

  def _tell_left_out(self) -> None:
    """Tells of photos that were good at the start and are not any more."""
    if len(self.data.skipped) > self._left_out:
      self._left_out = len(self.data.skipped)
      results.tell_left_out(self.data, self._workdir)
      check_photos(self.data.source, self.data.train, self.data.val)
