"""Which parameters learn, how fast, and how the rate changes with the steps."""

import re
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import optax

from catsdogs import path_pattern
from catsdogs.errors import UserError

# With Nesterov's variant, as in torchvision's and big_vision's recipes.
SGD_MOMENTUM = 0.9


def create_learning_rate_fn(config: ml_collections.ConfigDict,
                            steps_per_epoch: float,
                            total_steps: int) -> optax.Schedule:
  """The learning rate of each step: linear warm-up, then the schedule.

  Args:
    config: the config's `optim` part.
    steps_per_epoch: steps of one pass over the photos.
    total_steps: of the run.
  """
  warmup_steps = round(config.warmup_epochs * steps_per_epoch)

  def learning_rate(step):
    warmup = jnp.minimum(1.0, (step + 1) / (warmup_steps + 1))
    progress = jnp.clip((step - warmup_steps)
                        / max(1, total_steps - warmup_steps), 0, 1)
    decay = {
        'cosine': 0.5 * (1 + jnp.cos(jnp.pi * progress)),
        'linear': 1 - progress,
        'constant': 1.0,
    }[config.schedule]
    return config.learning_rate * warmup * decay

  return learning_rate


def split_params(params: Any, freeze: str) -> tuple[Any, Any]:
  """Divides a tree of parameters into what learns and what is frozen.

  Args:
    params: nested dicts of parameters.
    freeze: regex that is searched in each path, such as `stage1/.*/kernel`;
      empty freezes nothing.

  Returns:
    Two trees, without the other's branches.

  Raises:
    UserError: the regex matches nothing, or everything, or takes too long.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  with path_pattern.within_bounds('config.model.freeze'):
    frozen = {path for path in flat if freeze and re.search(freeze, path)}
  if freeze and not frozen:
    raise UserError(f'config.model.freeze: {freeze!r} matches no parameter; '
                    f'their paths are like {", ".join(sorted(flat)[:3])}')
  if len(frozen) == len(flat):
    raise UserError(f'config.model.freeze: {freeze!r} freezes every '
                    'parameter; leave some to learn')

  def part(paths):
    return traverse_util.unflatten_dict({p: flat[p] for p in paths}, sep='/')

  return part(flat.keys() - frozen), part(frozen)


def merge_params(params: Any, others: Any) -> Any:
  """Puts together what `split_params` divided; the second overrides."""
  flat = (traverse_util.flatten_dict(params)
          | traverse_util.flatten_dict(others))
  return traverse_util.unflatten_dict(flat)


def create_optimizer(config: ml_collections.ConfigDict, params: Any,
                     learning_rate_fn: optax.Schedule
                     ) -> optax.GradientTransformation:
  """SGD with momentum, or AdamW; decay spares biases and BatchNorm.

  Args:
    config: the config's `optim` part.
    params: the parameters that learn; their values do not matter.
    learning_rate_fn: gives the rate of each step.

  Raises:
    UserError: a pattern of `lr_mults` matches no parameter, or takes too long.
  """
  kernels = traverse_util.path_aware_map(
      lambda path, _: path[-1] == 'kernel', params)
  decay = optax.add_decayed_weights(config.weight_decay, mask=kernels)
  if config.name == 'sgd':
    rule = (decay, optax.trace(SGD_MOMENTUM, nesterov=True))
  else:  # Loshchilov and Hutter 2017 (arXiv:1711.05101).
    rule = (optax.scale_by_adam(), decay)
  clip = config.grad_clip_norm
  return optax.chain(
      optax.clip_by_global_norm(clip) if clip else optax.identity(),
      *rule,
      _scale_by(lr_multipliers(params, config.lr_mults)),
      optax.scale_by_learning_rate(learning_rate_fn))


def lr_multipliers(params: Any, lr_mults: tuple[tuple[str, float], ...]
                   ) -> Any:
  """The factor of each parameter: of the first pattern found in its path."""
  used = set()

  def multiplier(path, _):
    for pattern, factor in lr_mults:
      if re.search(pattern, '/'.join(path)):
        used.add(pattern)
        return factor
    return 1.0

  with path_pattern.within_bounds('config.optim.lr_mults'):
    multipliers = traverse_util.path_aware_map(multiplier, params)
  idle = [pattern for pattern, _ in lr_mults if pattern not in used]
  if idle:
    raise UserError(f'config.optim.lr_mults: {idle[0]!r} is the first match '
                    'of no parameter that learns; mend or remove it')
  return multipliers


def _scale_by(multipliers: Any) -> optax.GradientTransformation:
  return optax.stateless(
      lambda updates, _: jax.tree.map(jnp.multiply, updates, multipliers))
