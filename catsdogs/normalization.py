"""BatchNorm by the statistics of the batch, with all that follows it at once.

Ioffe and Szegedy 2015 (arXiv:1502.03167). Differentiated operation by
operation, it would keep and read several arrays as large as its input; stated
as a whole, it reads its input twice and writes its output once, and the same
in its gradient.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from catsdogs.convolution import materialize


def batch_norm(x: Float[Array, 'b h w c'], scale: Float[Array, 'c'],
               bias: Float[Array, 'c'],
               add: Float[Array, 'b h w c'] | None = None, *, epsilon: float,
               relu: bool = False
               ) -> tuple[Float[Array, 'b h w c'], Float[Array, 'c'],
                          Float[Array, 'c']]:
  """Normalises each channel over the batch and the pixels.

  The statistics are float32 where `x` is bfloat16, and no gradient flows
  through them where they are returned: they are to move the running ones.

  Args:
    x: pictures.
    scale: of each channel.
    bias: of each channel.
    add: added to the result, before the ReLU.
    epsilon: added to the variance.
    relu: whether negative results become zero.

  Returns:
    The result, and the mean and the (biased) variance of each channel.
  """
  return _batch_norm(x, scale, bias, add, epsilon, relu)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _batch_norm(x, scale, bias, add, epsilon, relu):
  x32 = _at_least_float32(x)
  mean = x32.mean((0, 1, 2))
  # In one pass over x; rounding must not make a variance negative.
  var = jnp.maximum(jnp.square(x32).mean((0, 1, 2)) - jnp.square(mean), 0)
  factor = scale * lax.rsqrt(var + epsilon)
  y = ((x32 - mean) * factor + bias).astype(x.dtype)
  if add is not None:
    y = y + add
  if relu:
    y = jnp.maximum(y, 0)
  return materialize(y), mean, var


def _forward(x, scale, bias, add, epsilon, relu):
  y, mean, var = _batch_norm(x, scale, bias, add, epsilon, relu)
  saved = x, scale, mean, var, y if relu else None, None if add is None else ()
  return (y, mean, var), saved


def _backward(epsilon, relu, saved, gradients):
  x, scale, mean, var, y, add = saved
  g, _, _ = gradients
  if relu:
    g = jnp.where(y > 0, g, 0)
  g32, count = _at_least_float32(g), x.size // x.shape[-1]
  deviation = lax.rsqrt(var + epsilon)
  normalized = (_at_least_float32(x) - mean) * deviation
  # Ioffe and Szegedy, section 3.
  g_bias = g32.sum((0, 1, 2))
  g_scale = (g32 * normalized).sum((0, 1, 2))
  g_x = scale * deviation * (
      g32 - (g_bias + normalized * g_scale) / count)
  return (g_x.astype(x.dtype), g_scale, g_bias,
          None if add is None else g)


_batch_norm.defvjp(_forward, _backward)


def _at_least_float32(x: Array) -> Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
