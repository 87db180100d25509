"""torchvision's names and axes for our variables: one table, both ways.

Ours are the paths of the variables joined by '/', such as
`params/stage2/block1/conv1/conv/kernel`; torchvision's, for the same tensor,
`layer2.0.conv1.weight`. Every question goes from our path to theirs, since the
model says which paths there are.
"""

import re
from typing import Any

from flax import traverse_util
import jax
import numpy as np

Array = np.ndarray | jax.Array

# Our module, and theirs with what the groups matched in the braces; `block`
# counts from one here and from zero there.
_MODULES = (
    (r'stem/conv', 'conv1'),
    (r'stem/bn', 'bn1'),
    (r'stage(?P<stage>\d)/block(?P<block>\d{1,3})/conv(?P<conv>\d)/conv',
     'layer{stage}.{block}.conv{conv}'),
    (r'stage(?P<stage>\d)/block(?P<block>\d{1,3})/conv(?P<conv>\d)/bn',
     'layer{stage}.{block}.bn{conv}'),
    (r'stage(?P<stage>\d)/block(?P<block>\d{1,3})/shortcut/conv',
     'layer{stage}.{block}.downsample.0'),
    (r'stage(?P<stage>\d)/block(?P<block>\d{1,3})/shortcut/bn',
     'layer{stage}.{block}.downsample.1'),
    (r'head', 'fc'),
)
_LEAVES = {
    'kernel': 'weight', 'scale': 'weight', 'bias': 'bias',
    'mean': 'running_mean', 'var': 'running_var',
}
# By the number of axes: ours in the order of theirs (HWIO as OIHW, a Dense
# kernel transposed), and theirs in the order of ours.
_TO_TORCHVISION = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_FROM_TORCHVISION = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}

# A count of training steps, which nothing here needs.
IGNORED_SUFFIX = 'num_batches_tracked'


def torchvision_name(path: str) -> str:
  """torchvision's name of one of our variables.

  Args:
    path: with the collection, such as `batch_stats/stem/bn/mean`.

  Raises:
    KeyError: it is no variable of a `models.ResNet`.
  """
  _, _, path = path.partition('/')
  module, _, leaf = path.rpartition('/')
  for ours, theirs in _MODULES:
    if match := re.fullmatch(ours, module):
      numbers = {key: int(value) for key, value in match.groupdict().items()}
      if 'block' in numbers:
        numbers['block'] -= 1
      return f'{theirs.format(**numbers)}.{_LEAVES[leaf]}'
  raise KeyError(path)


def torchvision_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape that torchvision has where ours is `shape`."""
  return tuple(shape[axis] for axis in _TO_TORCHVISION[len(shape)])


def from_torchvision(array: Array) -> Array:
  """A tensor of torchvision's with its axes in our order, as a view."""
  return array.transpose(_FROM_TORCHVISION[array.ndim])


def to_torchvision(array: Array) -> Array:
  """One of our variables with its axes in torchvision's order, as a view."""
  return array.transpose(_TO_TORCHVISION[array.ndim])


def state_dict(variables: dict[str, Any]) -> dict[str, Array]:
  """All of our variables, under torchvision's names and in its axes.

  Args:
    variables: `params` and `batch_stats` of a `models.ResNet`.

  Returns:
    What torchvision's `load_state_dict` takes, but for the tensors'
    type and `num_batches_tracked`.
  """
  flat = traverse_util.flatten_dict(variables, sep='/')
  return {torchvision_name(path): to_torchvision(array)
          for path, array in flat.items()}
