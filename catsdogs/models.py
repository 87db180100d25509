"""The ResNet family: its blocks, its stages, and the whole network."""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import ml_collections
import numpy as np

from catsdogs.architectures import ARCHITECTURES, Architecture
from catsdogs.layers import Conv, ConvNorm, NormRelu
from catsdogs.pooling import max_pool

# The shapes of the parameters do not depend on the size of the pictures.
_ANY_PICTURES = np.zeros((1, 32, 32, 3), np.float32)


class DeepStem(nn.Module):
  """Three 3x3 convolutions, the first of which strides (He et al. 2018)."""

  architecture: Architecture
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w 3'],
               use_running_average: bool) -> Float[Array, 'b h2 w2 c']:
    arch = self.architecture
    for i, channels in enumerate(arch.deep_stem, start=1):
      x = ConvNorm(arch, arch.scaled(channels), 3, 2 if i == 1 else 1,
                   dtype=self.dtype, name=f'conv{i}')(x, use_running_average)
    return x


class Block(nn.Module):
  """A residual block: two 3x3 convolutions, or 1x1, 3x3 and 1x1.

  Attributes:
    architecture: the network that the block belongs to.
    stage: 1, 2, 3 or 4.
    stride: 2 halves the height and the width.
    dtype: of the computation.
  """

  architecture: Architecture
  stage: int
  stride: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'],
               use_running_average: bool) -> Float[Array, 'b h2 w2 f']:
    arch, stage = self.architecture, self.stage
    if arch.bottleneck:
      inner = arch.inner_channels(stage)
      first, second = (self.stride, 1) if arch.stride_first else (
          1, self.stride)
      layers = [(inner, 1, first, 1), (inner, 3, second, arch.groups),
                (arch.out_channels(stage), 1, 1, 1)]
    else:
      layers = [(arch.out_channels(stage), 3, self.stride, 1),
                (arch.out_channels(stage), 3, 1, 1)]

    shortcut = x
    if self.stride > 1 or x.shape[-1] != arch.out_channels(stage):
      stride = self.stride
      if arch.mean_shortcut and stride > 1:
        shortcut, stride = _mean_of_pixels(shortcut), 1
      shortcut = ConvNorm(
          arch, arch.out_channels(stage), 1, stride, relu=False,
          dtype=self.dtype, name='shortcut')(shortcut, use_running_average)
    for i, (features, kernel, stride, groups) in enumerate(layers, start=1):
      last = i == len(layers)
      # A block starts as the identity: Goyal et al. 2017 (arXiv:1706.02677).
      scale_init = nn.initializers.zeros if last else nn.initializers.ones
      x = ConvNorm(arch, features, kernel, stride, groups, True, scale_init,
                   self.dtype, name=f'conv{i}')(
                       x, use_running_average, shortcut if last else None)
    return x


class PreactivationBlock(nn.Module):
  """A bottleneck block whose norms come first; attributes as of `Block`."""

  architecture: Architecture
  stage: int
  stride: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'],
               use_running_average: bool) -> Float[Array, 'b h2 w2 f']:
    arch, dtype = self.architecture, self.dtype
    inner = arch.inner_channels(self.stage)
    features = arch.out_channels(self.stage)

    y = NormRelu(arch, name='preactivation')(x, use_running_average)
    if x.shape[-1] != features:
      shortcut = Conv(arch, features, 1, self.stride, dtype,
                      name='shortcut')(y)
    else:
      shortcut = x[:, ::self.stride, ::self.stride]
    y = ConvNorm(arch, inner, 1, dtype=dtype, name='conv1')(
        y, use_running_average)
    y = ConvNorm(arch, inner, 3, self.stride, arch.groups, dtype=dtype,
                 name='conv2')(y, use_running_average)
    return Conv(arch, features, 1, dtype=dtype, name='conv3')(y, shortcut)


class Stage(nn.Module):
  """The residual blocks of one size; one of them may stride."""

  architecture: Architecture
  stage: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'],
               use_running_average: bool) -> Float[Array, 'b h2 w2 f']:
    arch = self.architecture
    block = PreactivationBlock if arch.preactivation else Block
    for i in range(1, arch.stage_sizes[self.stage - 1] + 1):
      x = block(arch, self.stage, arch.stride(self.stage, i), self.dtype,
                name=f'block{i}')(x, use_running_average)
    return x


class ResNet(nn.Module):
  """`stem`, `stage1` to `stage4`, mean over the picture, linear `head`.

  Attributes:
    architecture: which member of the family.
    num_classes: outputs of the head.
    batch_norm: what normalises while training: `batch`, the statistics of the
      batch, which then also move the running ones; or `running`, those that
      came with the weights, which then stay.
    dtype: of the computation; parameters, statistics and logits are float32.
  """

  architecture: Architecture
  num_classes: int
  batch_norm: str = 'batch'
  dtype: Any = jnp.float32

  def setup(self):
    arch, dtype = self.architecture, self.dtype
    if arch.deep_stem:
      self.stem = DeepStem(arch, dtype)
    elif arch.preactivation:
      self.stem = Conv(arch, arch.channels(1), 7, 2, dtype)
    else:
      self.stem = ConvNorm(arch, arch.channels(1), 7, 2, dtype=dtype)
    self.stage1 = Stage(arch, 1, dtype)
    self.stage2 = Stage(arch, 2, dtype)
    self.stage3 = Stage(arch, 3, dtype)
    self.stage4 = Stage(arch, 4, dtype)
    if arch.preactivation:
      self.norm = NormRelu(arch)
    # From zero, so that a new head's first answer is the same for each class.
    self.head = nn.Dense(
        self.num_classes, kernel_init=nn.initializers.zeros, dtype=jnp.float32)

  def features(self, x: Float[Array, 'b h w 3'],
               train: bool = False) -> dict[str, Float[Array, 'b ...']]:
    """The output of the stem, of each stage, and `pooled`, by name."""
    running = not (train and self.batch_norm == 'batch')
    outputs = {}
    x = x.astype(self.dtype)
    if self.architecture.preactivation:
      x = _max_pool_from_zero(self.stem(x))
    else:
      x = max_pool(self.stem(x, running))
    outputs['stem'] = x
    for name in ('stage1', 'stage2', 'stage3', 'stage4'):
      x = getattr(self, name)(x, running)
      outputs[name] = x
    if self.architecture.preactivation:
      x = self.norm(x, running)
    outputs['pooled'] = x.mean(axis=(1, 2), dtype=jnp.float32)
    return outputs

  def __call__(self, x: Float[Array, 'b h w 3'],
               train: bool = False) -> Float[Array, 'b classes']:
    """Logits, float32, of normalised RGB pictures.

    Args:
      x: pictures, normalised as the weights ask for.
      train: whether `batch_norm` decides which statistics normalise, instead
        of the running ones.
    """
    return self.head(self.features(x, train)['pooled'])


def create_model(config: ml_collections.ConfigDict,
                 num_classes: int) -> ResNet:
  """Returns the member of the family that the config's `model` part names."""
  architecture = ARCHITECTURES[config.name]
  architecture = dataclasses.replace(
      architecture, width=architecture.width * config.width)
  return ResNet(architecture, num_classes, config.batch_norm,
                jnp.dtype(config.dtype))


def init_variables(model: ResNet, seed: int) -> dict[str, Any]:
  """Random `params` and fresh `batch_stats`, in one compiled call."""
  # It runs once: code that is worse, but compiles in a fifth of the time.
  options = {'xla_backend_optimization_level': 0}
  on_cpu = jax.default_backend() == 'cpu'
  init = jax.jit(model.init, compiler_options=options if on_cpu else None)
  return {'batch_stats': {}, **init(jax.random.key(seed), _ANY_PICTURES)}


def variable_shapes(model: ResNet) -> dict[str, Any]:
  """What `init_variables` gives, as `jax.ShapeDtypeStruct`s."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), _ANY_PICTURES)
  return {'batch_stats': {}, **shapes}  # A GroupNorm has none.


def _mean_of_pixels(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """The mean of each 2x2 pixels; at an odd edge, of those that are there."""
  _, height, width, _ = x.shape
  return nn.avg_pool(x, (2, 2), (2, 2), ((0, height % 2), (0, width % 2)),
                     count_include_pad=False)


def _max_pool_from_zero(x: Float[Array, 'b h w c']
                        ) -> Float[Array, 'b h2 w2 c']:
  """As `max_pool`, but the border counts as zeros: no ReLU came before."""
  _, height, width, _ = x.shape
  x = max_pool(jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))))
  return x[:, 1:1 + -(-height // 2), 1:1 + -(-width // 2)]
