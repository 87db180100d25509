"""A ResNet of plain Linen layers, as one would write it first: a contender."""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from catsdogs.architectures import Architecture


class LinenResNet(nn.Module):
  """The networks of `catsdogs.models`, of `nn.Conv` and `nn.BatchNorm`."""

  architecture: Architecture
  num_classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train):
    arch = self.architecture

    def conv_norm(x, features, kernel, stride=1, groups=1):
      x = nn.Conv(features, (kernel, kernel), stride, padding=kernel // 2,
                  feature_group_count=groups, use_bias=False,
                  dtype=self.dtype)(x)
      return nn.BatchNorm(not train, momentum=arch.momentum,
                          epsilon=arch.epsilon, dtype=self.dtype)(x)

    x = nn.relu(conv_norm(x.astype(self.dtype), arch.channels(1), 7, 2))
    x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for stage, blocks in enumerate(arch.stage_sizes, start=1):
      for block in range(blocks):
        stride = 2 if block == 0 and stage > 1 else 1
        out = arch.out_channels(stage)
        if arch.bottleneck:
          inner = arch.inner_channels(stage)
          y = nn.relu(conv_norm(x, inner, 1))
          y = nn.relu(conv_norm(y, inner, 3, stride, arch.groups))
          y = conv_norm(y, out, 1)
        else:
          y = nn.relu(conv_norm(x, out, 3, stride))
          y = conv_norm(y, out, 3)
        if x.shape != y.shape:
          x = conv_norm(x, out, 1, stride)
        x = nn.relu(x + y)
    x = x.mean((1, 2), dtype=jnp.float32)
    return nn.Dense(self.num_classes, dtype=jnp.float32)(x)
