"""The members of the ResNet family, and what tells them from one another.

He et al. 2015 (arXiv:1512.03385), as torchvision has them, which is "v1.5":
where a bottleneck block halves the picture, its 3x3 convolution does, not its
first 1x1. The variants of other publishers are fields, not copies.
"""

import dataclasses


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
    deep_stem: channels of the stem's three 3x3 convolutions, the first of
      which strides; empty for one 7x7 (He et al. 2018, arXiv:1812.01187, C).
    mean_shortcut: where a block strides, its shortcut takes the mean of 2x2
      pixels, instead of every second one (the same, D).
    stride_first: a bottleneck block strides in its first 1x1 convolution, as
      He et al. published it.
    preactivation: norm and ReLU precede the convolutions of a bottleneck block
      (He et al. 2016, arXiv:1603.05027).
    stride_last: the last block of the first three stages strides, not the
      first one of the last three.
    biases: the convolutions of a pre-activation network that no norm follows
      have biases.
    norm: `batch` (Ioffe and Szegedy 2015, arXiv:1502.03167) or `group` (Wu and
      He 2018, arXiv:1803.08494).
    epsilon: added to the variance by the norm.
    momentum: how much of their old value BatchNorm's running statistics keep.
    standardized: kernels are used with mean 0 and deviation 1 (Qiao et al.
      2019, arXiv:1903.10520).
  """

  stage_sizes: tuple[int, ...]
  bottleneck: bool
  groups: int = 1
  base_width: int = 64
  width: float = 1.0
  deep_stem: tuple[int, ...] = ()
  mean_shortcut: bool = False
  stride_first: bool = False
  preactivation: bool = False
  stride_last: bool = False
  biases: bool = False
  norm: str = 'batch'
  epsilon: float = 1e-5
  momentum: float = 0.9
  standardized: bool = False

  def channels(self, stage: int) -> int:
    """Channels of the stem (stage 1) and of the basic blocks of a stage."""
    return self.scaled(64) * 2 ** (stage - 1)

  def out_channels(self, stage: int) -> int:
    """Channels that leave a stage: a bottleneck block multiplies by four."""
    return self.channels(stage) * (4 if self.bottleneck else 1)

  def inner_channels(self, stage: int) -> int:
    """Channels of a bottleneck's 3x3 convolution.

    Zagoruyko 2016 (arXiv:1605.07146) widens it, Xie et al. 2016
    (arXiv:1611.05431) divides it into groups.
    """
    return self.channels(stage) * self.base_width // 64 * self.groups

  def scaled(self, channels: int) -> int:
    """A number of channels, times the width."""
    return max(8, round(channels * self.width))

  def stride(self, stage: int, block: int) -> int:
    """Of a stage's block, both counted from one."""
    if self.stride_last:
      return 2 if stage < 4 and block == self.stage_sizes[stage - 1] else 1
    return 2 if stage > 1 and block == 1 else 1


_SIZES = {
    10: (1, 1, 1, 1), 14: (1, 1, 1, 1), 18: (2, 2, 2, 2), 26: (2, 2, 2, 2),
    34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
    152: (3, 8, 36, 3), 200: (3, 24, 36, 3),
}
_BASIC = (10, 18, 34)
# By the letter that timm and GluonCV add to the name.
_VARIANTS = {
    '': {},
    'c': {'deep_stem': (32, 32, 64)},
    'd': {'deep_stem': (32, 32, 64), 'mean_shortcut': True},
    's': {'deep_stem': (64, 64, 128)},
    't': {'deep_stem': (24, 32, 64), 'mean_shortcut': True},
}
_LAYERS_OF_VARIANTS = {
    '': (18, 26, 34, 50, 101, 152, 200),
    'c': (50, 101, 152),
    'd': (18, 26, 34, 50, 101, 152, 200),
    's': (50, 101, 152),
    't': (10, 14, 26, 50),
}
# Keras applications: https://keras.io/api/applications/resnet/.
_KERAS = {'epsilon': 1.001e-5, 'momentum': 0.99}
_KERAS_V2 = {**_KERAS, 'preactivation': True, 'stride_last': True,
             'biases': True}
# Kolesnikov et al. 2019 (arXiv:1912.11370).
_BIT = {'preactivation': True, 'norm': 'group', 'standardized': True}


def _resnet(layers: int, **fields) -> Architecture:
  return Architecture(_SIZES[layers], layers not in _BASIC, **fields)


ARCHITECTURES = {
    **{f'resnet{layers}{letter}': _resnet(layers, **_VARIANTS[letter])
       for letter, several in _LAYERS_OF_VARIANTS.items()
       for layers in several},
    'wide_resnet50_2': _resnet(50, base_width=128),
    'wide_resnet101_2': _resnet(101, base_width=128),
    'resnext50_32x4d': _resnet(50, groups=32, base_width=4),
    'resnext50d_32x4d': _resnet(50, groups=32, base_width=4, **_VARIANTS['d']),
    **{f'resnext101_{groups}x{width}d': _resnet(101, groups=groups,
                                                base_width=width)
       for groups, width in ((32, 4), (32, 8), (32, 16), (32, 32), (32, 48),
                             (64, 4))},
    'resnet50_gn': _resnet(50, norm='group'),
    **{f'resnet{layers}v1': _resnet(layers, stride_first=True, **_KERAS)
       for layers in (50, 101, 152)},
    **{f'resnet{layers}v2': _resnet(layers, **_KERAS_V2)
       for layers in (50, 101, 152)},
    **{f'bit_r{layers}x{width}': _resnet(layers, width=width, **_BIT)
       for layers, width in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2),
                             (152, 4))},
}
