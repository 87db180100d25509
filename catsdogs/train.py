"""A run, from its data and weights to its results."""

import pathlib
from typing import Any, Callable

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import ml_collections

from catsdogs import (config as config_lib, distributed, linear_probe, lock,
                      results)
from catsdogs.console import say
from catsdogs.evaluate import (Evaluation, create_eval_step, create_mesh,
                               evaluate)
from catsdogs.input_pipeline import prepare_data
from catsdogs.interruption import Interrupted, Interruption
from catsdogs.loop import Loop
from catsdogs.models import create_model
from catsdogs.optimizer import (create_learning_rate_fn, create_optimizer,
                                split_params)
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained.initial import initial_variables, open_pretrained
from catsdogs.progress import Clock, Timetable
from catsdogs.restore import zero_shot_model
from catsdogs.train_state import create_train_state, state_sharding
from catsdogs.train_step import create_train_step
from catsdogs.workdir import begin


@distributed.loss_of_others_ends()
def train(given: ml_collections.ConfigDict | None, workdir: pathlib.Path,
          cache: pathlib.Path, restart: bool, started: float) -> None:
  """Begins a run, goes on with one, or tells how one has ended.

  Args:
    given: the config of the command line; None takes the workdir's.
    workdir: of the run.
    cache: the folder for what is made once and used again.
    restart: removes what a run left there.
    started: when this process did, by `time.monotonic`.

  Raises:
    UserError: what is given cannot be used.
    Interrupted: a signal came; what was learnt is saved.
  """
  finished = None if restart else results.read_finished(workdir)
  if finished:
    begin(workdir, given, cache)  # Refuses another config.
  else:
    with lock.hold(workdir):
      config = begin(workdir, given, cache, restart)
      with Interruption() as signals:
        finished = train_and_evaluate(config, workdir, cache, Clock(started),
                                      signals.check)
  results.tell(finished, workdir)


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
  with distributed.process_0_first():  # It downloads, for all.
    pretrained = open_pretrained(config, cache, check)
  preprocessing = (pretrained.preprocessing if pretrained
                   else Preprocessing(config.data.image_size))
  data = prepare_data(config.data, preprocessing.decoding, cache, check)
  results.introduce(data, workdir)
  distributed.check_same(
      f'{config.to_json()} {data.fingerprint}',
      'config or photos: the processes of this run differ in them; start all '
      'of them with the same command, where they see the same files')

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
  sharding = state_sharding(state, mesh, config.train.fsdp)
  state = jax.device_put(state, sharding)
  parameters = results.ParameterCount.of(trainable, frozen)
  say(f'{origin} {parameters}')

  # What the steps apply: all of a network, or its head, to features.
  probing = linear_probe.applies(config, trainable)
  part = linear_probe.head_of if probing else lambda model: model
  photo_to_model = None if probing else preprocessing
  train_step = create_train_step(config, part(model), photo_to_model,
                                 optimizer, learning_rate_fn, mesh, sharding)
  eval_step = create_eval_step(part(model), photo_to_model, mesh)
  zero_shot = zero_shot_model(config, pretrained, data.class_names)
  config_file = workdir / config_lib.CONFIG_FILE
  with distributed.process_0_first():
    if jax.process_index() == 0:
      config_lib.save(config, config_file)
    shared = config_file.exists()
  distributed.check_everywhere(
      shared, f'--workdir: {workdir} is not one folder to all processes of '
      'the run; choose one that they share')
  check_together = distributed.in_agreement(check, mesh)

  def evaluate_now(variables: Any, step: Callable[..., Any] = eval_step
                   ) -> Evaluation:
    return evaluate(step, jax.device_put(variables, replicated), data.val,
                    data.class_names, config.train.batch_size, mesh,
                    check_together)

  def evaluate_zero_shot() -> Evaluation:
    step = create_eval_step(part(zero_shot.model), photo_to_model, mesh,
                            zero_shot.groups)
    return evaluate_now(zero_shot.variables, step)

  def write_results(status: str, loop: Loop,
                    best: Evaluation | None) -> dict[str, Any]:
    return results.write(workdir, status, config, data, parameters, loop.log,
                         zero_shot.name if zero_shot else origin,
                         loop.best_step(), best, loop.epoch_totals, timetable,
                         clock)

  loop = Loop(config, workdir, mesh, data, preprocessing, timetable, clock,
              state, train_step, evaluate_now,
              evaluate_zero_shot if zero_shot else None, check_together,
              write_results)
  try:
    # Within, as closing the loop would wait for those that are lost.
    with distributed.loss_of_others_ends():
      if probing:  # Now that the backbone is that of the latest checkpoint.
        variables = jax.device_put(loop.state.eval_variables(), replicated)
        data = loop.data = linear_probe.compute_features(
            data, model, variables, preprocessing, config.train.batch_size,
            mesh, check_together)
      loop.run()
      return write_results('finished', loop, loop.best_evaluation())
  except Interrupted:
    with distributed.loss_of_others_ends():
      loop.save()
    raise
  finally:
    loop.close()
