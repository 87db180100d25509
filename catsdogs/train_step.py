"""The training step: from one state and a batch to the next state."""

from typing import Any, Callable

from flax import linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jax.numpy as jnp
from jaxtyping import Array
import ml_collections
import optax

from catsdogs import augment, convolution, losses
from catsdogs.input_pipeline import Batch
from catsdogs.optimizer import merge_params, split_params
from catsdogs.preprocessing import Preprocessing, normalize
from catsdogs.train_state import TrainState, state_sharding

Metrics = dict[str, Array]


def create_train_step(config: ml_collections.ConfigDict, model: nn.Module,
                      preprocessing: Preprocessing | None,
                      optimizer: optax.GradientTransformation,
                      learning_rate_fn: optax.Schedule, mesh: Mesh,
                      sharding: TrainState | None = None
                      ) -> Callable[[TrainState, Batch],
                                    tuple[TrainState, Metrics]]:
  """Returns the compiled step from one state to the next, which it consumes.

  All randomness is a function of the seed, the step, and the place in the
  batch. The gradient is that of the mean loss over the batch's mask, in
  however many parts the batch goes through the model.

  Args:
    config: resolved.
    model: a `ResNet`, or the head of one.
    preprocessing: between a photo and the model; None where a batch holds
      features, which are neither augmented nor normalised.
    optimizer: of the parameters that learn.
    learning_rate_fn: gives the rate of each step.
    mesh: the devices.
    sharding: of `state_sharding`; None where all devices hold all of a state.
  """
  replicated, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))
  sharding = replicated if sharding is None else sharding
  parts = config.optim.accumulate_steps

  def prepare(state, batch):
    """Augmented model inputs and targets of the whole batch."""
    targets = losses.smoothed_targets(batch['label'], model.num_classes,
                                      config.augment.label_smoothing)
    if preprocessing is None:
      return batch['image'], targets
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    photo_key, mix_key = jax.random.split(key)
    images = augment.augment(photo_key, batch['image'],
                             preprocessing.image_size, config.augment)
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
    return loss, (correct, updates.get('batch_stats', batch_stats))

  def train_step(state: TrainState, batch: Batch
                 ) -> tuple[TrainState, Metrics]:
    trainable, frozen = split_params(state.params, config.model.freeze)
    applied = trainable, frozen
    if config.train.fsdp:  # Put together for the model, and only for that.
      applied = jax.lax.with_sharding_constraint(applied, replicated)
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
          *applied, batch_stats, *part)
      loss, correct = loss + part_loss, correct + part_correct
      grads = jax.tree.map(jnp.add, grads, part_grads)
    count = batch['mask'].sum()
    grads = jax.tree.map(lambda g: g / jnp.maximum(count, 1), grads)
    if config.train.fsdp:  # Each device updates what it holds.
      grads = jax.lax.with_sharding_constraint(
          grads, state_sharding(grads, mesh, fsdp=True))

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

  return jax.jit(train_step, donate_argnums=0,
                 in_shardings=(sharding, divided),
                 out_shardings=(sharding, replicated),
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
