"""Keras's ResNets: names of their layers, and what they do otherwise.

https://github.com/keras-team/keras, applications/resnet.py. The convolutions
of their first version have biases, which BatchNorm takes away again: they are
folded into its mean. It also sees the channels in the order blue, green, red.
"""

from typing import Iterator, Mapping

import numpy as np

# Residual blocks of each stage, by the number of convolutions.
_STAGE_SIZES = {53: (3, 4, 6, 3), 104: (3, 4, 23, 3), 155: (3, 8, 36, 3)}
# In what order a `.weights.h5` file holds the variables of a layer.
_LEAVES = {'conv2d': ('kernel', 'bias'), 'dense': ('kernel', 'bias'),
           'batch_normalization': ('gamma', 'beta', 'moving_mean',
                                   'moving_variance')}


def plain(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Tensors as one would expect them, where they are of a Keras file.

  Args:
    tensors: by the names of a file, perhaps of Keras: of a `.h5` file, such as
      `conv1_conv/conv1_conv/kernel:0`; of a `.weights.h5` file, which counts
      the layers of a kind, `layers/conv2d_1/vars/0`.

  Returns:
    By `conv1_conv/kernel`, for photos whose channels are red, green and blue,
    and without biases that a BatchNorm follows; others as they are.
  """
  if 'layers/conv2d/vars/0' in tensors:
    tensors = _named(tensors)
  elif any(name.startswith('conv1_conv/') for name in tensors):
    tensors = {_short(name): tensor for name, tensor in tensors.items()}
  if 'conv1_bn/gamma' in tensors:  # The first version.
    tensors = _without_biases(tensors)
    kernel = tensors.get('conv1_conv/kernel', np.zeros(()))
    if kernel.ndim == 4:
      tensors['conv1_conv/kernel'] = kernel[:, :, ::-1]
  return dict(tensors)


def _short(name: str) -> str:
  layer, leaf = name.partition('/')[0], name.rpartition('/')[2]
  return f'{layer}/{leaf.removesuffix(":0")}'


def _without_biases(tensors: Mapping[str, np.ndarray]
                    ) -> dict[str, np.ndarray]:
  tensors = dict(tensors)
  for name in [*tensors]:
    layer, _, leaf = name.rpartition('/')
    mean = f'{layer.removesuffix("_conv")}_bn/moving_mean'
    if leaf == 'bias' and mean in tensors and (
        tensors[name].shape == tensors[mean].shape):
      tensors[mean] = tensors[mean] - tensors.pop(name)
  return tensors


def _named(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """By the names that the layers have in the model, instead of their numbers.

  What is none of a ResNet's keeps its name.
  """
  numbered = {name.split('/')[1] for name in tensors if name.count('/') == 3}
  convs = sum(name.startswith('conv2d') for name in numbered)
  norms = sum(name.startswith('batch_normalization') for name in numbered)
  if convs not in _STAGE_SIZES:
    return dict(tensors)
  layers = {'dense': 'predictions'}
  for kind, names in (('conv2d', _convs(_STAGE_SIZES[convs])),
                      ('batch_normalization',
                       _norms(_STAGE_SIZES[convs], first=norms == convs))):
    layers |= {f'{kind}_{i}' if i else kind: name
               for i, name in enumerate(names)}
  named = {}
  for name, tensor in tensors.items():
    _, layer, _, number = (name.split('/') + 3 * [''])[:4]
    leaves = _LEAVES[layer.rstrip('_0123456789')] if layer in layers else ()
    if number.isdecimal() and int(number) < len(leaves):
      name = f'{layers[layer]}/{leaves[int(number)]}'
    named[name] = tensor
  return named


def _blocks(stage_sizes: tuple[int, ...]) -> Iterator[tuple[str, bool]]:
  """The blocks' names, and whether they are the first of their stage."""
  for stage, size in enumerate(stage_sizes, start=2):
    for block in range(1, size + 1):
      yield f'conv{stage}_block{block}', block == 1


def _convs(stage_sizes: tuple[int, ...]) -> Iterator[str]:
  """In the order of the model's layers; a shortcut's comes late."""
  yield 'conv1_conv'
  for block, is_first in _blocks(stage_sizes):
    for conv in (1, 2, 0, 3) if is_first else (1, 2, 3):
      yield f'{block}_{conv}_conv'


def _norms(stage_sizes: tuple[int, ...], first: bool) -> Iterator[str]:
  """Likewise, of the first or of the second version."""
  if first:
    yield from (name.replace('_conv', '_bn') for name in _convs(stage_sizes))
    return
  for block, _ in _blocks(stage_sizes):
    yield from (f'{block}_preact_bn', f'{block}_1_bn', f'{block}_2_bn')
  yield 'post_bn'
