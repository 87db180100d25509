"""Others' names and axes for our variables: one table each, both ways.

Ours are the paths of the variables joined by '/', such as
`params/stage2/block1/conv1/conv/kernel`; torchvision's, for the same tensor,
`layer2.0.conv1.weight`.
"""

import dataclasses
import functools
from typing import Any, Iterable, Mapping

from flax import traverse_util
import jax
import numpy as np

from catsdogs.architectures import Architecture

Array = np.ndarray | jax.Array

# More than any network of the family has in a stage.
_MAX_BLOCKS = 64
_HEAD_KERNEL = 'params/head/kernel'


@dataclasses.dataclass(frozen=True, eq=False)
class Naming:
  """How someone names the variables of a ResNet.

  Attributes:
    modules: our module and theirs; in braces the numbers of a stage, a block
      and a convolution from one, or, with `0` behind, from zero.
    leaves: their names of what a convolution and the head have.
    norm_leaves: their names of what a norm has.
    separator: what joins a module and a leaf.
    kernels: the axes of their convolutions, `OIHW` or `HWIO`.
    head: the axes of their head's kernel.
    implied: what this naming means for the fields of the architecture.
  """

  modules: tuple[tuple[str, str], ...]
  leaves: Mapping[str, str]
  norm_leaves: Mapping[str, str]
  separator: str
  kernels: str
  head: str
  implied: Mapping[str, Any]

  @functools.cached_property
  def _theirs(self) -> dict[str, str]:
    """Their module by ours, for every block there may be."""
    places = [
        {'stage': stage, 'stage0': stage - 1, 'keras_stage': stage + 1,
         'block': block, 'block0': block - 1,
         'conv': conv, 'conv0': conv - 1, 'letter': '_abc'[conv],
         'next_letter': '_bc_'[conv]}
        for stage in range(1, 5) for block in range(1, _MAX_BLOCKS + 1)
        for conv in range(1, 4)]
    return {ours.format(**numbers): theirs.format(**numbers)
            for ours, theirs in self.modules for numbers in places}

  @functools.cached_property
  def _ours(self) -> dict[str, str]:
    # Where two of ours are one of theirs, the first of the table counts.
    return {theirs: ours for ours, theirs in
            reversed(list(self._theirs.items()))}

  def name(self, path: str) -> str:
    """Their name of one of our variables; ours where they have none such.

    Args:
      path: with the collection, such as `batch_stats/stem/bn/mean`.
    """
    module, _, leaf = path.partition('/')[2].rpartition('/')
    if module not in self._theirs:
      return path
    norm = module.endswith(('/bn', '/gn'))
    leaves = self.norm_leaves if norm else self.leaves
    return f'{self._theirs[module]}{self.separator}{leaves[leaf]}'

  def module(self, name: str) -> str | None:
    """Our module that one of their variables belongs to, if we have it."""
    return self._ours.get(name.rpartition(self.separator)[0])

  def shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that they have where ours is `shape`."""
    if path == _HEAD_KERNEL:
      sizes = {'1': 1, 'I': shape[0], 'O': shape[1]}
      return tuple(sizes[axis] for axis in self.head)
    if len(shape) == 4:
      return tuple(shape['HWIO'.index(axis)] for axis in self.kernels)
    return shape

  def to_ours(self, path: str, array: Array) -> Array:
    """A tensor of theirs with its axes in our order, as a view."""
    if path == _HEAD_KERNEL:
      array = array.reshape(array.shape[-2:])
      return array.transpose([self.head[-2:].index(axis) for axis in 'IO'])
    if array.ndim == 4:
      return array.transpose([self.kernels.index(axis) for axis in 'HWIO'])
    return array

  def to_theirs(self, path: str, array: Array) -> Array:
    """One of our variables with its axes in their order, as a view."""
    if path == _HEAD_KERNEL:
      shape = self.shape(path, array.shape)
      array = array.transpose(['IO'.index(axis) for axis in self.head[-2:]])
      return array.reshape(shape)
    if array.ndim == 4:
      return array.transpose(['HWIO'.index(axis) for axis in self.kernels])
    return array


class _Own:
  """Our own names, with the methods of a `Naming`."""

  implied = {}

  def name(self, path: str) -> str:
    return path

  def module(self, name: str) -> str | None:
    return name.partition('/')[2].rpartition('/')[0]

  def shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    del path
    return shape

  def to_ours(self, path: str, array: Array) -> Array:
    del path
    return array


OWN = _Own()
_TORCH_LEAVES = {'kernel': 'weight', 'bias': 'bias'}
_TORCH_NORM = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean',
               'var': 'running_var'}
_TENSORFLOW_LEAVES = {'kernel': 'kernel', 'bias': 'bias'}
_TENSORFLOW_NORM = {'scale': 'gamma', 'bias': 'beta', 'mean': 'moving_mean',
                    'var': 'moving_variance'}

# Both norms have the same names.
_TORCHVISION_MODULES = (
    ('stem/conv', 'conv1'),
    ('stem/bn', 'bn1'),
    ('stem/gn', 'bn1'),
    ('stage{stage}/block{block}/conv{conv}/conv',
     'layer{stage}.{block0}.conv{conv}'),
    ('stage{stage}/block{block}/conv{conv}/bn',
     'layer{stage}.{block0}.bn{conv}'),
    ('stage{stage}/block{block}/conv{conv}/gn',
     'layer{stage}.{block0}.bn{conv}'),
    ('stage{stage}/block{block}/shortcut/conv',
     'layer{stage}.{block0}.downsample.0'),
    ('stage{stage}/block{block}/shortcut/bn',
     'layer{stage}.{block0}.downsample.1'),
    ('stage{stage}/block{block}/shortcut/gn',
     'layer{stage}.{block0}.downsample.1'),
    # timm counts the norms and the ReLUs of a deep stem too.
    ('stem/conv1/conv', 'conv1.0'),
    ('stem/conv1/bn', 'conv1.1'),
    ('stem/conv2/conv', 'conv1.3'),
    ('stem/conv2/bn', 'conv1.4'),
    ('stem/conv3/conv', 'conv1.6'),
    ('stem/conv3/bn', 'bn1'),
    ('head', 'fc'),
)
_LIKE_TORCHVISION = {
    'preactivation': False, 'stride_first': False, 'epsilon': 1e-5}
TORCHVISION = Naming(
    _TORCHVISION_MODULES, _TORCH_LEAVES, _TORCH_NORM, '.', 'OIHW', 'OI',
    {**_LIKE_TORCHVISION, 'mean_shortcut': False})
# The pooling of a shortcut comes first there, and has no variables.
TIMM_D = Naming(
    tuple((ours, theirs.replace('downsample.1', 'downsample.2').replace(
        'downsample.0', 'downsample.1'))
          for ours, theirs in _TORCHVISION_MODULES),
    _TORCH_LEAVES, _TORCH_NORM, '.', 'OIHW', 'OI',
    {**_LIKE_TORCHVISION, 'mean_shortcut': True})
_LAYERS = 'resnet.encoder.stages.{stage0}.layers.{block0}'
HUGGING_FACE = Naming(
    (('stem/conv', 'resnet.embedder.embedder.convolution'),
     ('stem/bn', 'resnet.embedder.embedder.normalization'),
     ('stage{stage}/block{block}/conv{conv}/conv',
      f'{_LAYERS}.layer.{{conv0}}.convolution'),
     ('stage{stage}/block{block}/conv{conv}/bn',
      f'{_LAYERS}.layer.{{conv0}}.normalization'),
     ('stage{stage}/block{block}/shortcut/conv',
      f'{_LAYERS}.shortcut.convolution'),
     ('stage{stage}/block{block}/shortcut/bn',
      f'{_LAYERS}.shortcut.normalization'),
     ('head', 'classifier.1')),
    _TORCH_LEAVES, _TORCH_NORM, '.', 'OIHW', 'OI',
    {**_LIKE_TORCHVISION, 'mean_shortcut': False, 'deep_stem': ()})
_KERAS_BLOCK = 'conv{keras_stage}_block{block}'
_KERAS_ENDS = (
    ('stem/conv', 'conv1_conv'),
    ('stage{stage}/block{block}/conv{conv}/conv',
     f'{_KERAS_BLOCK}_{{conv}}_conv'),
    ('stage{stage}/block{block}/shortcut/conv', f'{_KERAS_BLOCK}_0_conv'),
    ('stage{stage}/block{block}/conv{conv}/bn', f'{_KERAS_BLOCK}_{{conv}}_bn'),
    ('head', 'predictions'),
)
KERAS_V1 = Naming(
    (*_KERAS_ENDS, ('stem/bn', 'conv1_bn'),
     ('stage{stage}/block{block}/shortcut/bn', f'{_KERAS_BLOCK}_0_bn')),
    _TENSORFLOW_LEAVES, _TENSORFLOW_NORM, '/', 'HWIO', 'IO',
    {'preactivation': False, 'stride_first': True, 'epsilon': 1.001e-5})
KERAS_V2 = Naming(
    (*_KERAS_ENDS, ('norm/bn', 'post_bn'),
     # Their biases are ours of the module around the convolution.
     ('stem', 'conv1_conv'),
     ('stage{stage}/block{block}/conv3', f'{_KERAS_BLOCK}_3_conv'),
     ('stage{stage}/block{block}/shortcut', f'{_KERAS_BLOCK}_0_conv'),
     ('stage{stage}/block{block}/preactivation/bn',
      f'{_KERAS_BLOCK}_preact_bn')),
    _TENSORFLOW_LEAVES, _TENSORFLOW_NORM, '/', 'HWIO', 'IO',
    {'preactivation': True, 'stride_last': True, 'epsilon': 1.001e-5})
_UNIT = 'resnet/block{stage}/unit{block:02d}'
BIT = Naming(
    (('stem/conv', 'resnet/root_block/standardized_conv2d'),
     ('stage{stage}/block{block}/conv{conv}/conv',
      f'{_UNIT}/{{letter}}/standardized_conv2d'),
     ('stage{stage}/block{block}/shortcut/conv',
      f'{_UNIT}/a/proj/standardized_conv2d'),
     ('stage{stage}/block{block}/preactivation/gn', f'{_UNIT}/a/group_norm'),
     # What follows our convolution precedes theirs.
     ('stage{stage}/block{block}/conv{conv}/gn',
      f'{_UNIT}/{{next_letter}}/group_norm'),
     ('norm/gn', 'resnet/group_norm'),
     ('head', 'resnet/head/conv2d')),
    _TENSORFLOW_LEAVES, _TENSORFLOW_NORM, '/', 'HWIO', '11IO',
    {'preactivation': True, 'stride_last': False, 'norm': 'group',
     'standardized': True})


def naming_of(tensors: Iterable[str]) -> Naming | _Own:
  """Whose names these are; torchvision's if they are nobody's."""
  names = set(tensors)
  if any(name.startswith('params/') for name in names):
    return OWN
  if any(name.startswith('resnet/') for name in names):
    return BIT
  if any(name.startswith('resnet.') for name in names):
    return HUGGING_FACE
  if any(name.startswith('conv1_conv/') for name in names):
    return KERAS_V2 if 'post_bn/gamma' in names else KERAS_V1
  if any('.downsample.2.' in name for name in names):
    return TIMM_D
  return TORCHVISION


def of_torch(architecture: Architecture) -> Naming:
  """How torchvision, or else timm, would name a network's variables."""
  return TIMM_D if architecture.mean_shortcut else TORCHVISION


def state_dict(variables: dict[str, Any],
               architecture: Architecture) -> dict[str, Array]:
  """All of our variables, under torchvision's (or timm's) names and axes.

  Args:
    variables: `params` and `batch_stats` of a `models.ResNet`.
    architecture: of it.

  Returns:
    What their `load_state_dict` takes, but for the tensors' type and
    `num_batches_tracked`.
  """
  naming = of_torch(architecture)
  flat = traverse_util.flatten_dict(variables, sep='/')
  return {naming.name(path): naming.to_theirs(path, array)
          for path, array in flat.items()}
