"""The training step, and the loop around it."""

import dataclasses
import math
import pathlib
from typing import Any, Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jax.numpy as jnp
from jaxtyping import Array
import ml_collections
import optax

from catsdogs import (augment, config as config_lib, convolution, losses,
                      results)
from catsdogs.checkpoint import Checkpoints, restore_variables
from catsdogs.console import EpochProgress, say
from catsdogs.errors import UserError
from catsdogs.evaluate import (Evaluation, create_eval_step, create_mesh,
                               describe, evaluate)
from catsdogs.input_pipeline import (Batch, Data, check_photos,
                                     create_train_iter, prepare_data)
from catsdogs.interruption import Interrupted
from catsdogs.metric_log import MetricLog
from catsdogs.models import ResNet, create_model
from catsdogs.optimizer import (create_learning_rate_fn, create_optimizer,
                                merge_params, split_params)
from catsdogs.preprocessing import Preprocessing, normalize
from catsdogs.pretrained.initial import initial_variables
from catsdogs.progress import Clock, Timetable, Totals
from catsdogs.train_state import TrainState, create_train_state
from catsdogs.workdir import CONFIG_FILE

Metrics = dict[str, Array]

_DIVERGED = ('lower config.optim.learning_rate or set config.optim.'
             'grad_clip_norm, and begin anew with --restart. Earlier '
             'checkpoints are whole')


def create_train_step(config: ml_collections.ConfigDict, model: ResNet,
                      optimizer: optax.GradientTransformation,
                      learning_rate_fn: optax.Schedule,
                      preprocessing: Preprocessing, mesh: Mesh
                      ) -> Callable[[TrainState, Batch],
                                    tuple[TrainState, Metrics]]:
  """Returns the compiled step from one state to the next, which it consumes.

  All randomness is a function of the seed, the step, and the place in the
  batch. The gradient is that of the mean loss over the batch's mask, in
  however many parts the batch goes through the model.
  """
  parts = config.optim.accumulate_steps

  def prepare(state, batch):
    """Augmented model inputs and targets of the whole batch."""
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    photo_key, mix_key = jax.random.split(key)
    images = augment.augment(photo_key, batch['image'],
                             preprocessing.image_size, config.augment)
    targets = losses.smoothed_targets(batch['label'], model.num_classes,
                                      config.augment.label_smoothing)
    images, targets = augment.mix(mix_key, images, targets, config.augment)
    return normalize(images, preprocessing), targets

  def loss_fn(trainable, frozen, batch_stats, images, targets, batch):
    """Sum of the losses of one part of the batch."""
    variables = {'params': merge_params(frozen, trainable),
                 'batch_stats': batch_stats}
    logits, updates = model.apply(variables, images, train=True,
                                  mutable=['batch_stats'])
    mask = batch['mask']
    loss = losses.cross_entropy(logits, targets) @ mask
    correct = losses.correct(logits, batch['label']) @ mask
    return loss, (correct, updates['batch_stats'])

  def train_step(state: TrainState, batch: Batch
                 ) -> tuple[TrainState, Metrics]:
    trainable, frozen = split_params(state.params, config.model.freeze)
    images, targets = prepare(state, batch)
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    loss = correct = 0.0
    grads = jax.tree.map(jnp.zeros_like, trainable)
    batch_stats = state.batch_stats
    # Unrolled: inside a scan, XLA for CPU leaves the gradients' convolutions
    # in a form that is thirty times slower (jaxlib 0.10.2).
    for i in range(parts):
      # Every part takes its share from every device.
      part = jax.tree.map(lambda x: x[i::parts], (images, targets, batch))
      (part_loss, (part_correct, batch_stats)), part_grads = grad_fn(
          trainable, frozen, batch_stats, *part)
      loss, correct = loss + part_loss, correct + part_correct
      grads = jax.tree.map(jnp.add, grads, part_grads)
    count = batch['mask'].sum()
    grads = jax.tree.map(lambda g: g / jnp.maximum(count, 1), grads)

    updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    new_state = state.replace(
        step=state.step + 1, params=merge_params(frozen, trainable),
        batch_stats=batch_stats, opt_state=opt_state)
    if config.optim.ema_decay:
      new_state = _average(new_state, trainable, config.optim.ema_decay)
    return new_state, {
        'loss': loss, 'correct': correct, 'count': count,
        'grad_norm': optax.tree.norm(grads),
        'learning_rate': learning_rate_fn(state.step)}

  replicated, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))
  return jax.jit(train_step, donate_argnums=0,
                 in_shardings=(replicated, divided), out_shardings=replicated,
                 compiler_options=convolution.compiler_options())


def _average(state: TrainState, trainable: Any, decay: float) -> TrainState:
  """Moves the running averages, faster in the beginning.

  The warm-up, min(decay, (1 + t) / (10 + t)), is that of TensorFlow's
  ExponentialMovingAverage; a short run would else keep its first weights.
  """
  step = state.step.astype(jnp.float32)
  decay = jnp.minimum(decay, (1 + step) / (10 + step))

  def move(average, new):
    return jax.tree.map(lambda a, n: a + (1 - decay) * (n - a), average, new)

  return state.replace(
      ema_params=move(state.ema_params, trainable),
      ema_batch_stats=move(state.ema_batch_stats, state.batch_stats))


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
  preprocessing = Preprocessing(config.data.image_size)
  data = prepare_data(config.data, preprocessing.decoded_size, cache, check)
  results.introduce(data, workdir)

  model = create_model(config.model, len(data.class_names))
  variables, origin = initial_variables(config, model, data.class_names)
  timetable = Timetable.of(config.train, len(data.train))
  learning_rate_fn = create_learning_rate_fn(
      config.optim, timetable.steps_per_epoch, timetable.total_steps)
  trainable, frozen = split_params(variables['params'], config.model.freeze)
  optimizer = create_optimizer(config.optim, trainable, learning_rate_fn)
  state = create_train_state(variables, trainable, optimizer,
                             ema=config.optim.ema_decay > 0)
  state = jax.device_put(state, NamedSharding(mesh, P()))
  parameters = results.ParameterCount.of(trainable, frozen)
  say(f'{origin} {parameters}')

  train_step = create_train_step(config, model, optimizer, learning_rate_fn,
                                 preprocessing, mesh)
  eval_step = create_eval_step(model, preprocessing, mesh)
  config_lib.save(config, workdir / CONFIG_FILE)

  def write_results(status: str, loop: Loop,
                    best: Evaluation | None) -> dict[str, Any]:
    return results.write(workdir, status, config, data, parameters, loop.log,
                         best, loop.epoch_totals, timetable, clock)

  loop = Loop(config, workdir, mesh, data, preprocessing, timetable, clock,
              state, train_step, eval_step, check, write_results)
  try:
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
               train_step: Callable[..., Any], eval_step: Callable[..., Any],
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
      eval_step: of `create_eval_step`.
      check: raises where a signal asks the run to end.
      write_results: called with a status, the loop and the best evaluation,
        after each evaluation.
    """
    self._config, self._workdir, self._mesh = config, workdir, mesh
    self._data, self._preprocessing = data, preprocessing
    self._timetable, self._clock = timetable, clock
    self._train_step, self._eval_step = train_step, eval_step
    self._check, self._write_results = check, write_results
    self._left_out = len(data.skipped)
    self._state, self._step = state, 0
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
    if meta['data_fingerprint'] != self._data.fingerprint:
      raise UserError(
          f'the photos in {self._data.source.name} are not those that '
          f'{self._workdir} was started with; put them back, or begin anew '
          'with --restart')
    self._state, self._step = state, int(state.step)
    self._totals = Totals(**meta['totals'])
    self.epoch_totals = Totals(**meta['epoch_totals'])
    self._clock.go_on(**meta['clock'])
    say(f'Resuming after step {self._step} of {self._timetable.total_steps}.')

  def run(self) -> None:
    """Trains and evaluates until the timetable ends."""
    config, timetable = self._config.train, self._timetable
    batches = create_train_iter(
        self._data.train, self._config.seed, config.batch_size, self._step,
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
      self._state, metrics = self._train_step(self._state, batch)
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
    self._checkpoints.save(self._state, {
        'class_names': list(self._data.class_names),
        'preprocessing': self._preprocessing.to_dict(),
        'config': self._config.to_dict(),
        'data_fingerprint': self._data.fingerprint,
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
    evaluation = self._evaluate(self._state.eval_variables())
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
    if len(self._data.skipped) > self._left_out:
      self._left_out = len(self._data.skipped)
      results.tell_left_out(self._data, self._workdir)
      check_photos(self._data.source, self._data.train, self._data.val)

  def _evaluate(self, variables: Any) -> Evaluation:
    return evaluate(self._eval_step, variables, self._data.val,
                    self._data.class_names, self._config.train.batch_size,
                    self._mesh, self._check)
