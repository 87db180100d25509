"""The ResNet family (He et al. 2015, arXiv:1512.03385), as torchvision has it.

"v1.5": where a bottleneck block halves the picture, its 3x3 convolution does,
not its first 1x1. Padding is explicit, since `SAME` pads a strided convolution
on the other side than torch does, and no pretrained weights reproduce then.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import ml_collections
import numpy as np

from catsdogs.convolution import conv2d
from catsdogs.normalization import batch_norm
from catsdogs.pooling import max_pool

# torchvision's BatchNorm: epsilon 1e-5, and a momentum of 0.1 for the new
# value, which is 0.9 for the old one in Flax's terms.
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9
# He et al. 2015 (arXiv:1502.01852), by what goes out, as torchvision does.
KERNEL_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

# The shapes of the parameters do not depend on the size of the pictures.
_ANY_PICTURES = np.zeros((1, 32, 32, 3), np.float32)


@dataclasses.dataclass(frozen=True)
class Architecture:
  """What tells one member of the family from another.

  Attributes:
    stage_sizes: residual blocks in each of the four stages.
    bottleneck: blocks of 1x1, 3x3, 1x1 convolutions, or of two 3x3.
    groups: groups of the 3x3 convolution (ResNeXt's cardinality).
    base_width: channels a group in the first stage, 64 in a plain ResNet.
    width: multiplies every channel count; 0.5 makes a network of a quarter of
      the parameters.
  """

  stage_sizes: tuple[int, ...]
  bottleneck: bool
  groups: int = 1
  base_width: int = 64
  width: float = 1.0

  def channels(self, stage: int) -> int:
    """Channels of the stem (stage 1) and of the basic blocks of a stage."""
    return max(8, round(64 * self.width)) * 2 ** (stage - 1)

  def out_channels(self, stage: int) -> int:
    """Channels that leave a stage: a bottleneck block multiplies by four."""
    return self.channels(stage) * (4 if self.bottleneck else 1)

  def inner_channels(self, stage: int) -> int:
    """Channels of a bottleneck's 3x3 convolution.

    Zagoruyko 2016 (arXiv:1605.07146) widens it, Xie et al. 2016
    (arXiv:1611.05431) divides it into groups.
    """
    return self.channels(stage) * self.base_width // 64 * self.groups


ARCHITECTURES = {
    'resnet18': Architecture((2, 2, 2, 2), bottleneck=False),
    'resnet34': Architecture((3, 4, 6, 3), bottleneck=False),
    'resnet50': Architecture((3, 4, 6, 3), bottleneck=True),
    'resnet101': Architecture((3, 4, 23, 3), bottleneck=True),
    'resnet152': Architecture((3, 8, 36, 3), bottleneck=True),
    'wide_resnet50_2': Architecture((3, 4, 6, 3), True, base_width=128),
    'wide_resnet101_2': Architecture((3, 4, 23, 3), True, base_width=128),
    'resnext50_32x4d': Architecture((3, 4, 6, 3), True, 32, 4),
    'resnext101_32x8d': Architecture((3, 4, 23, 3), True, 32, 8),
    'resnext101_64x4d': Architecture((3, 4, 23, 3), True, 64, 4),
}


class Kernel(nn.Module):
  """A convolution's parameter, in Linen's layout and under Linen's name."""

  features: int
  size: int
  groups: int

  @nn.compact
  def __call__(self, in_features: int) -> Float[Array, 'k k i/g f']:
    shape = (self.size, self.size, in_features // self.groups, self.features)
    return self.param('kernel', KERNEL_INIT, shape, jnp.float32)


class BatchNorm(nn.Module):
  """The variables of a BatchNorm and what it does with a batch (Ioffe 2015).

  Attributes:
    features: channels.
    scale_init: of the scale.
  """

  features: int
  scale_init: nn.initializers.Initializer

  def setup(self):
    shape, zeros, ones = (self.features,), jnp.zeros, jnp.ones
    self.scale = self.param('scale', self.scale_init, shape, jnp.float32)
    self.bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
    self.mean = self.variable('batch_stats', 'mean', zeros, shape, jnp.float32)
    self.var = self.variable('batch_stats', 'var', ones, shape, jnp.float32)

  def running_affine(self) -> tuple[Float[Array, 'c'], Float[Array, 'c']]:
    """What the running statistics come to: a factor, and a summand."""
    factor = self.scale * jax.lax.rsqrt(self.var.value + BATCH_NORM_EPSILON)
    return factor, self.bias - self.mean.value * factor

  def __call__(self, x: Float[Array, 'b h w c'],
               add: Float[Array, 'b h w c'] | None,
               relu: bool) -> Float[Array, 'b h w c']:
    """Normalises by the batch's statistics, which move the running ones."""
    x, mean, var = batch_norm(x, self.scale, self.bias, add,
                              epsilon=BATCH_NORM_EPSILON, relu=relu)
    if not self.is_initializing():
      for running, new in ((self.mean, mean), (self.var, var)):
        running.value = (BATCH_NORM_MOMENTUM * running.value
                         + (1 - BATCH_NORM_MOMENTUM) * new)
    return x


class ConvNorm(nn.Module):
  """A convolution without bias, its BatchNorm, and a ReLU.

  Attributes:
    features: output channels.
    kernel: height and width of the kernel; it is padded by kernel // 2.
    stride: of the convolution, in both directions.
    groups: the convolution's groups.
    relu: whether negative values become zero at the end.
    scale_init: of BatchNorm's scale.
    dtype: of the computation; parameters and statistics are float32.
  """

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
    kernel = Kernel(self.features, self.kernel, self.groups,
                    name='conv')(x.shape[-1])
    norm = BatchNorm(self.features, self.scale_init, name='bn')
    if use_running_average:  # BatchNorm becomes a part of the kernel.
      factor, bias = norm.running_affine()
      return conv2d(x, (kernel * factor).astype(self.dtype),
                    bias.astype(self.dtype), shortcut, stride=self.stride,
                    groups=self.groups, relu=self.relu)
    x = conv2d(x, kernel.astype(self.dtype), stride=self.stride,
               groups=self.groups)
    return norm(x, shortcut, self.relu)


class Block(nn.Module):
  """A residual block: two 3x3 convolutions, or 1x1, 3x3 and 1x1.

  Attributes:
    architecture: the network that the block belongs to.
    stage: 1, 2, 3 or 4.
    stride: 2 halves the height and the width, in the (first) 3x3 convolution.
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
      layers = [(inner, 1, 1, 1), (inner, 3, self.stride, arch.groups),
                (arch.out_channels(stage), 1, 1, 1)]
    else:
      layers = [(arch.out_channels(stage), 3, self.stride, 1),
                (arch.out_channels(stage), 3, 1, 1)]

    shortcut = x
    if self.stride > 1 or x.shape[-1] != arch.out_channels(stage):
      shortcut = ConvNorm(
          arch.out_channels(stage), 1, self.stride, relu=False,
          dtype=self.dtype, name='shortcut')(x, use_running_average)
    for i, (features, kernel, stride, groups) in enumerate(layers, start=1):
      last = i == len(layers)
      # A block starts as the identity: Goyal et al. 2017 (arXiv:1706.02677).
      scale_init = nn.initializers.zeros if last else nn.initializers.ones
      x = ConvNorm(features, kernel, stride, groups, True, scale_init,
                   self.dtype, name=f'conv{i}')(
                       x, use_running_average, shortcut if last else None)
    return x


class Stage(nn.Module):
  """The residual blocks of one size; the first one may stride."""

  architecture: Architecture
  stage: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'],
               use_running_average: bool) -> Float[Array, 'b h2 w2 f']:
    for i in range(self.architecture.stage_sizes[self.stage - 1]):
      stride = 2 if i == 0 and self.stage > 1 else 1
      x = Block(self.architecture, self.stage, stride, self.dtype,
                name=f'block{i + 1}')(x, use_running_average)
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
    self.stem = ConvNorm(arch.channels(1), 7, 2, dtype=dtype)
    self.stage1 = Stage(arch, 1, dtype)
    self.stage2 = Stage(arch, 2, dtype)
    self.stage3 = Stage(arch, 3, dtype)
    self.stage4 = Stage(arch, 4, dtype)
    # From zero, so that a new head's first answer is the same for each class.
    self.head = nn.Dense(
        self.num_classes, kernel_init=nn.initializers.zeros, dtype=jnp.float32)

  def features(self, x: Float[Array, 'b h w 3'],
               train: bool = False) -> dict[str, Float[Array, 'b ...']]:
    """The output of the stem, of each stage, and `pooled`, by name."""
    running = not (train and self.batch_norm == 'batch')
    outputs = {}
    x = max_pool(self.stem(x.astype(self.dtype), running))
    outputs['stem'] = x
    for name in ('stage1', 'stage2', 'stage3', 'stage4'):
      x = getattr(self, name)(x, running)
      outputs[name] = x
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
  architecture = dataclasses.replace(ARCHITECTURES[config.name],
                                     width=config.width)
  return ResNet(architecture, num_classes, config.batch_norm,
                jnp.dtype(config.dtype))


def init_variables(model: ResNet, seed: int) -> dict[str, Any]:
  """Random `params` and fresh `batch_stats`, in one compiled call."""
  # It runs once: code that is worse, but compiles in a fifth of the time.
  options = {'xla_backend_optimization_level': 0}
  on_cpu = jax.default_backend() == 'cpu'
  init = jax.jit(model.init, compiler_options=options if on_cpu else None)
  return init(jax.random.key(seed), _ANY_PICTURES)


def variable_shapes(model: ResNet) -> dict[str, Any]:
  """What `init_variables` gives, as `jax.ShapeDtypeStruct`s."""
  return jax.eval_shape(model.init, jax.random.key(0), _ANY_PICTURES)
