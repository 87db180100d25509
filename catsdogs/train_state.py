"""Everything that a step changes, and nothing else."""

from typing import Any

from flax import struct
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
import optax

from catsdogs.optimizer import merge_params

# Numbers of an array below which to spread it would cost more than it spares.
MIN_SPREAD_SIZE = 4096


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


@jax.jit
def all_finite(tree: Any) -> Bool[Array, '']:
  """Whether no number of a tree is infinite or none at all."""
  return jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
                   ).all()


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


def state_sharding(state: Any, mesh: Mesh, fsdp: bool) -> Any:
  """Where each array of a state, or of a part of it, lies.

  Args:
    state: a tree of arrays, or of their shapes.
    mesh: the devices.
    fsdp: whether arrays are spread over the devices, as by Rajbhandari et al.
      2019 (arXiv:1910.02054) and PyTorch's class of that name: each along its
      longest dimension that the devices divide. Small ones, and those without
      such a dimension, are on all devices, as is everything without `fsdp`.
  """
  def sharding(array):
    spread = [axis for axis, length in enumerate(array.shape)
              if length % mesh.size == 0]
    if not (fsdp and spread and array.size >= MIN_SPREAD_SIZE):
      return NamedSharding(mesh, P())
    longest = max(spread, key=lambda axis: array.shape[axis])
    return NamedSharding(mesh, P(*(None,) * longest, 'data'))

  return jax.tree.map(sharding, state)
