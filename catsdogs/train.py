"""A run, from its data and weights to its results: the training loop."""

import dataclasses
import math
import pathlib
from typing import Any, Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import ml_collections

from catsdogs import config as config_lib, linear_probe, results
from catsdogs.checkpoint import Checkpoints, restore_variables
from catsdogs.console import EpochProgress, say
from catsdogs.errors import UserError
from catsdogs.evaluate import (Evaluation, create_eval_step, create_mesh,
                               describe, evaluate)
from catsdogs.input_pipeline import (Data, check_photos, create_train_iter,
                                     prepare_data)
from catsdogs.interruption import Interrupted
from catsdogs.metric_log import MetricLog
from catsdogs.models import create_model
from catsdogs.optimizer import (create_learning_rate_fn, create_optimizer,
                                split_params)
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained.initial import initial_variables, open_pretrained
from catsdogs.progress import Clock, Timetable, Totals
from catsdogs.restore import zero_shot_model
from catsdogs.train_state import TrainState, create_train_state
from catsdogs.train_step import Metrics, create_train_step

_DIVERGED = ('lower config.optim.learning_rate or set config.optim.'
             'grad_clip_norm, and begin anew with --restart. Earlier '
             'checkpoints are whole')


def train_and_evaluate(config: ml_collections.ConfigDict,
                       workdir: pathlib.Path, cache: pathlib.Path,
                       clock: Clock, check: Callable[[], None]
                       ) -> dict[str, Any]:
  """Trains from wherever the workdir left off, to the end.

  Args:
    config: resolved.
    workdir: of the run.
    cache: the folder for what is made once and used again.
    clock: of this process.
    check: raises where a signal asks the run to end.

  Returns:
    What `results.json` holds.

  Raises:
    UserError: the data, the weights or the checkpoints cannot be used, or the
      loss is no longer finite.
    Interrupted: a signal came; what was learnt is saved.
  """
  mesh = create_mesh()
  config_lib.check_devices(config, mesh.size)
  pretrained = open_pretrained(config, cache, check)
  preprocessing = (pretrained.preprocessing if pretrained
                   else Preprocessing(config.data.image_size))
  data = prepare_data(config.data, preprocessing.decoding, cache, check)
  results.introduce(data, workdir)

  model = create_model(config.model, len(data.class_names))
  variables, origin = initial_variables(config, pretrained, model,
                                        data.class_names)
  timetable = Timetable.of(config.train, len(data.train))
  learning_rate_fn = create_learning_rate_fn(
      config.optim, timetable.steps_per_epoch, timetable.total_steps)
  trainable, frozen = split_params(variables['params'], config.model.freeze)
  optimizer = create_optimizer(config.optim, trainable, learning_rate_fn)
  state = create_train_state(variables, trainable, optimizer,
                             ema=config.optim.ema_decay > 0)
  replicated = NamedSharding(mesh, P())
  state = jax.device_put(state, replicated)
  parameters = results.ParameterCount.of(trainable, frozen)
  say(f'{origin} {parameters}')

  # What the steps apply: all of a network, or its head, to features.
  probing = linear_probe.applies(config, trainable)
  part = linear_probe.head_of if probing else lambda model: model
  photo_to_model = None if probing else preprocessing
  train_step = create_train_step(config, part(model), photo_to_model,
                                 optimizer, learning_rate_fn, mesh)
  eval_step = create_eval_step(part(model), photo_to_model, mesh)
  zero_shot = zero_shot_model(config, pretrained, data.class_names)
  config_lib.save(config, workdir / config_lib.CONFIG_FILE)

  def evaluate_now(variables: Any, step: Callable[..., Any] = eval_step
                   ) -> Evaluation:
    return evaluate(step, variables, data.val, data.class_names,
                    config.train.batch_size, mesh, check)

  def evaluate_zero_shot() -> Evaluation:
    step = create_eval_step(part(zero_shot.model), photo_to_model, mesh,
                            zero_shot.groups)
    return evaluate_now(jax.device_put(zero_shot.variables, replicated), step)

  def write_results(status: str, loop: Loop,
                    best: Evaluation | None) -> dict[str, Any]:
    return results.write(workdir, status, config, data, parameters, loop.log,
                         zero_shot.name if zero_shot else origin, best,
                         loop.epoch_totals, timetable, clock)

  loop = Loop(config, workdir, mesh, data, preprocessing, timetable, clock,
              state, train_step, evaluate_now,
              evaluate_zero_shot if zero_shot else None, check, write_results)
  try:
    if probing:  # Now that the backbone is that of the latest checkpoint.
      data = loop.data = linear_probe.compute_features(
          data, model, loop.state.eval_variables(), preprocessing,
          config.train.batch_size, mesh, check)
    loop.run()
    return write_results('finished', loop, loop.best_evaluation())
  except Interrupted:
    loop.save()
    raise
  finally:
    loop.close()


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
                                    lambda: self.log.best_step())
    restored = self._checkpoints.restore_latest(state)
    if restored:
      self._resume(*restored)
    # Nothing restored, what was measured before is of no use either.
    self.log = MetricLog(workdir, self._step if restored else -1,
                         jax.process_index() == 0)

  def _resume(self, state: TrainState, meta: dict[str, Any]) -> None:
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
      if self._step in timetable.eval_steps:
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
      self._tell_left_out()
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
      if (epoch_ends or self._step in timetable.eval_steps
          or self._step % config.checkpoint_every_steps == 0):
        self.save()

  def save(self) -> None:
    """Saves a checkpoint of the current step, unless it has one."""
    self._add_up()
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
    step = self.log.best_step()
    if self._best is None or self._best[0] != step:
      variables, _ = restore_variables(self._workdir, step)
      self._best = step, self._evaluate(variables)
    return self._best[1]

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
        raise UserError(
            f'step {step}: the loss is {loss}, its gradient\'s norm '
            f'{metrics["grad_norm"]}; {_DIVERGED}')
      self._totals.add(metrics)
      self.epoch_totals.add(metrics)
    self._pending.clear()

  def _log_training(self, progress: EpochProgress) -> None:
    learning_rate = float(self._pending[-1]['learning_rate'])
    self._add_up()
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
    self._tell_left_out()
    if not math.isfinite(evaluation.loss):
      raise UserError(f'step {self._step}: the validation loss is '
                      f'{evaluation.loss}; {_DIVERGED}')
    epochs = self._timetable.epochs(self._step)
    self.log.append(self._step, epochs, eval_loss=evaluation.loss,
                    eval_accuracy=evaluation.accuracy)
    if self.log.best_step() == self._step:
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
