"""What a ResNet is made of: convolutions, norms, and both in one.

Padding is explicit, since `SAME` pads a strided convolution on the other side
than torch does, and no pretrained weights reproduce then.
"""

import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from catsdogs.architectures import Architecture
from catsdogs.convolution import conv2d
from catsdogs.normalization import batch_norm

# He et al. 2015 (arXiv:1502.01852), by what goes out, as torchvision does.
KERNEL_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# Of a GroupNorm, in all published weights.
_GROUPS = 32
# As the release of BiT's weights has it: bit_pytorch/models.py.
_STANDARDIZED_EPSILON = 1e-10


class Kernel(nn.Module):
  """A convolution's parameter, in Linen's layout and under Linen's name."""

  features: int
  size: int
  groups: int
  standardized: bool

  @nn.compact
  def __call__(self, in_features: int) -> Float[Array, 'k k i/g f']:
    shape = (self.size, self.size, in_features // self.groups, self.features)
    kernel = self.param('kernel', KERNEL_INIT, shape, jnp.float32)
    if not self.standardized:
      return kernel
    var = kernel.var((0, 1, 2))
    return ((kernel - kernel.mean((0, 1, 2)))
            * jax.lax.rsqrt(var + _STANDARDIZED_EPSILON))


class BatchNorm(nn.Module):
  """The variables of a BatchNorm, and what it does (Ioffe 2015).

  Attributes:
    architecture: says epsilon and momentum.
    features: channels.
    scale_init: of the scale.
  """

  architecture: Architecture
  features: int
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  def setup(self):
    shape, zeros, ones = (self.features,), jnp.zeros, jnp.ones
    self.scale = self.param('scale', self.scale_init, shape, jnp.float32)
    self.bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
    self.mean = self.variable('batch_stats', 'mean', zeros, shape, jnp.float32)
    self.var = self.variable('batch_stats', 'var', ones, shape, jnp.float32)

  def running_affine(self) -> tuple[Float[Array, 'c'], Float[Array, 'c']]:
    """What the running statistics come to: a factor, and a summand."""
    factor = self.scale * jax.lax.rsqrt(
        self.var.value + self.architecture.epsilon)
    return factor, self.bias - self.mean.value * factor

  def __call__(self, x: Float[Array, 'b h w c'],
               add: Float[Array, 'b h w c'] | None,
               relu: bool) -> Float[Array, 'b h w c']:
    """Normalises by the batch's statistics, which move the running ones."""
    x, mean, var = batch_norm(x, self.scale, self.bias, add,
                              epsilon=self.architecture.epsilon, relu=relu)
    if not self.is_initializing():
      momentum = self.architecture.momentum
      for running, new in ((self.mean, mean), (self.var, var)):
        running.value = momentum * running.value + (1 - momentum) * new
    return x


def _group_norm(architecture: Architecture, x: Float[Array, 'b h w c'],
                add: Float[Array, 'b h w c'] | None, relu: bool,
                scale_init: nn.initializers.Initializer
                ) -> Float[Array, 'b h w c']:
  """Normalises each photo alone, in groups of channels (Wu and He 2018).

  The module within which it is called gets its parameters, as `gn`.
  """
  # A narrow network may not have channels for as many groups.
  y = nn.GroupNorm(math.gcd(_GROUPS, x.shape[-1]),
                   epsilon=architecture.epsilon,
                   dtype=jnp.promote_types(x.dtype, jnp.float32),
                   scale_init=scale_init, use_fast_variance=False,
                   name='gn')(x).astype(x.dtype)
  y = y if add is None else y + add
  return jax.nn.relu(y) if relu else y


class Conv(nn.Module):
  """A convolution that no norm follows.

  Attributes:
    architecture: the network that it belongs to.
    features: output channels.
    kernel: height and width of the kernel; it is padded by kernel // 2.
    stride: in both directions.
    dtype: of the computation.
  """

  architecture: Architecture
  features: int
  kernel: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'],
               add: Float[Array, 'b h2 w2 f'] | None = None
               ) -> Float[Array, 'b h2 w2 f']:
    kernel = Kernel(self.features, self.kernel, 1,
                    self.architecture.standardized, name='conv')(x.shape[-1])
    bias = None
    if self.architecture.biases:
      bias = self.param('bias', nn.initializers.zeros, (self.features,),
                        jnp.float32).astype(self.dtype)
    return conv2d(x, kernel.astype(self.dtype), bias, add, stride=self.stride)


class NormRelu(nn.Module):
  """The norm and the ReLU that precede convolutions (He et al. 2016)."""

  architecture: Architecture

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'],
               use_running_average: bool) -> Float[Array, 'b h w c']:
    if self.architecture.norm == 'group':
      return _group_norm(self.architecture, x, None, True,
                         nn.initializers.ones)
    norm = BatchNorm(self.architecture, x.shape[-1], name='bn')
    if use_running_average:
      factor, bias = norm.running_affine()
      return jax.nn.relu(x * factor.astype(x.dtype) + bias.astype(x.dtype))
    return norm(x, None, True)


class ConvNorm(nn.Module):
  """A convolution without bias, its norm, and a ReLU.

  Attributes:
    architecture: the network that it belongs to.
    features: output channels.
    kernel: height and width of the kernel; it is padded by kernel // 2.
    stride: of the convolution, in both directions.
    groups: the convolution's groups.
    relu: whether negative values become zero at the end.
    scale_init: of the norm's scale.
    dtype: of the computation; parameters and statistics are float32.
  """

  architecture: Architecture
  features: int
  kernel: int
  stride: int = 1
  groups: int = 1
  relu: bool = True
  scale_init: nn.initializers.Initializer = nn.initializers.ones
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], use_running_average: bool,
               shortcut: Float[Array, 'b h2 w2 f'] | None = None
               ) -> Float[Array, 'b h2 w2 f']:
    """Adds the shortcut, if there is one, before the ReLU."""
    arch = self.architecture
    kernel = Kernel(self.features, self.kernel, self.groups, arch.standardized,
                    name='conv')(x.shape[-1])
    conv = functools.partial(conv2d, stride=self.stride, groups=self.groups)
    if arch.norm == 'group':
      x = conv(x, kernel.astype(self.dtype))
      return _group_norm(arch, x, shortcut, self.relu, self.scale_init)
    norm = BatchNorm(arch, self.features, self.scale_init, name='bn')
    if use_running_average:  # BatchNorm becomes a part of the kernel.
      factor, bias = norm.running_affine()
      return conv(x, (kernel * factor).astype(self.dtype),
                  bias.astype(self.dtype), shortcut, relu=self.relu)
    return norm(conv(x, kernel.astype(self.dtype)), shortcut, self.relu)
