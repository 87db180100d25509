"""Everything that a step changes, and nothing else."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import optax

from catsdogs.optimizer import merge_params


@struct.dataclass
class TrainState:
  """The state of a run between two steps; a plain pytree.

  Attributes:
    step: steps taken so far.
    params: all parameters, those that learn and the frozen ones.
    batch_stats: running means and variances of BatchNorm.
    opt_state: the optimizer's, of the parameters that learn.
    ema_params: running average of the parameters that learn, or None.
    ema_batch_stats: likewise of `batch_stats`, or None.
  """

  step: Int[Array, '']
  params: Any
  batch_stats: Any
  opt_state: optax.OptState
  ema_params: Any = None
  ema_batch_stats: Any = None

  def eval_variables(self) -> dict[str, Any]:
    """What `model.apply` evaluates: the averages, where they are kept."""
    if self.ema_params is None:
      return {'params': self.params, 'batch_stats': self.batch_stats}
    return {'params': merge_params(self.params, self.ema_params),
            'batch_stats': self.ema_batch_stats}


def create_train_state(variables: dict[str, Any], trainable: Any,
                       optimizer: optax.GradientTransformation,
                       ema: bool) -> TrainState:
  """The state before the first step.

  Args:
    variables: `params` and `batch_stats` of the model.
    trainable: the part of the parameters that learns.
    optimizer: of the parameters that learn.
    ema: whether running averages are kept.
  """
  params, batch_stats = variables['params'], variables['batch_stats']
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=batch_stats,
      opt_state=optimizer.init(trainable),
      # Copies, because the step gives each buffer of the state away.
      ema_params=jax.tree.map(jnp.copy, trainable) if ema else None,
      ema_batch_stats=jax.tree.map(jnp.copy, batch_stats) if ema else None)
