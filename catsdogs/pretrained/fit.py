"""Puts the weights of a file into a model's variables, all or none of them."""

import dataclasses
import os
from typing import Any, Callable, Mapping

from flax import traverse_util
import ml_dtypes
import numpy as np

from catsdogs.architectures import ARCHITECTURES, Architecture
from catsdogs.errors import UserError
from catsdogs.pretrained import keras_layers, names, torch_file

_HEAD = ('params/head/kernel', 'params/head/bias')
_FLOATS = tuple(np.dtype(dtype) for dtype in (
    np.float32, np.float16, ml_dtypes.bfloat16, np.float64))
# A count of training steps, which torch has beside BatchNorm's statistics.
_IGNORED_SUFFIX = 'num_batches_tracked'
# Names that a message lists before it says "and N more".
_LISTED = 5

# By the name of the tensor.
_Shapes = dict[str, tuple[int, ...]]


def fit(path: str | os.PathLike, tensors: Mapping[str, np.ndarray],
        variables: Mapping[str, Any], architecture: Architecture
        ) -> tuple[dict[str, Any], bool]:
  """Puts named tensors into a ResNet's variables.

  Every variable must be among the tensors and every tensor in the model; only a
  head of another number of classes, or none, is passed over.

  Args:
    path: where they are from, for what is told.
    tensors: by the names of torchvision, timm, transformers, Keras or BiT, or
      by our own paths such as `params/stem/conv/kernel`.
    variables: `params` and `batch_stats` of the model, arrays or
      `jax.ShapeDtypeStruct`s.
    architecture: of the model.

  Returns:
    The variables as contiguous float32 numpy arrays, of which a head that was
    passed over is the one given, as it is; and whether the head came along.

  Raises:
    UserError: they do not fit the model (all that differs is told), or hold a
      number that is not finite.
  """
  tensors = keras_layers.plain({
      name: tensor for name, tensor in tensors.items()
      if not name.endswith(_IGNORED_SUFFIX)})
  naming = names.naming_of(tensors)
  flat = traverse_util.flatten_dict(dict(variables), sep='/')
  theirs = {variable: naming.name(variable) for variable in flat}
  shapes = {name: naming.shape(variable, tuple(flat[variable].shape))
            for variable, name in theirs.items()}

  features, classes = flat[_HEAD[0]].shape
  head = [theirs.pop(variable) for variable in _HEAD]
  head_loaded = classes == _head_classes(
      tensors, *head, classes,
      lambda outputs: naming.shape(_HEAD[0], (features, outputs)))
  if head_loaded:
    theirs.update(zip(_HEAD, head))
  else:
    for name in head:
      tensors.pop(name, None)
      del shapes[name]
  _check_fit(path, tensors, shapes, naming, architecture)

  loaded = dict(flat)
  for variable, name in theirs.items():
    loaded[variable] = _float32(
        path, name, naming.to_ours(variable, tensors[name]))
  return traverse_util.unflatten_dict(loaded, sep='/'), head_loaded


def _head_classes(tensors: Mapping[str, np.ndarray], kernel: str, bias: str,
                  model_classes: int,
                  kernel_shape: Callable[[int], tuple[int, ...]]
                  ) -> int | None:
  """How many classes the head in a file has; None where there is no head.

  A head that is only half there, or for other features, counts as one of the
  model's classes: then the check of all the tensors tells what is wrong.
  """
  if kernel not in tensors and bias not in tensors:
    return None
  if kernel not in tensors or tensors.get(bias, np.zeros(())).ndim != 1:
    return model_classes
  classes, = tensors[bias].shape
  fits = tensors[kernel].shape == kernel_shape(classes)
  return classes if fits else model_classes


def _check_fit(path: str | os.PathLike, tensors: Mapping[str, np.ndarray],
               shapes: _Shapes, naming: names.Naming,
               architecture: Architecture) -> None:
  """Holds the tensors of a file against the names and shapes of the model.

  Raises:
    UserError: with all that is missing, unexpected, or of another shape or
      type, and the architecture that would fit.
  """
  both = [name for name in shapes if name in tensors]
  problems = {
      'missing': [name for name in shapes if name not in tensors],
      'unexpected': [name for name in tensors if name not in shapes],
      'of another shape': [
          f'{name} {tensors[name].shape} instead of {shapes[name]}'
          for name in both if tensors[name].shape != shapes[name]],
      'of another type': [
          f'{name} {tensors[name].dtype} instead of float32'
          for name in both if tensors[name].dtype not in _FLOATS],
  }
  told = [f'{len(names)} {problem}: {_listed(names)}'
          for problem, names in problems.items() if names]
  # Two networks may have the same variables and yet compute otherwise.
  told = told or [f'they are made for {field} = {value}'
                  for field, value in naming.implied.items()
                  if getattr(architecture, field) != value]
  if not told:
    return
  found, model = _architecture(tensors, naming), _name(architecture)
  mend = 'name weights of that architecture'
  if found is None:
    likeness = f'the model is {model}, they look like no ResNet'
  elif found != model:
    likeness = f'the model is {model}, they look like {found}'
    mend = f'set model.name = {found}, or {mend}'
  else:
    likeness = f'they look like {found}, as the model, and yet differ'
    mend = 'name an unchanged file'
  raise UserError(f'{path}: the weights do not fit: {likeness}; {mend}. '
                  f'{"; ".join(told)}.')


def _listed(names_: list[str]) -> str:
  """The first names, and how many more there are."""
  more = len(names_) - _LISTED
  return ', '.join(map(torch_file.show, names_[:_LISTED])) + (
      f' and {more} more' if more > 0 else '')


def _name(architecture: Architecture) -> str:
  """The architecture's name, with its width where that is another."""
  for name, known in ARCHITECTURES.items():
    if dataclasses.replace(architecture, width=known.width) == known:
      width = architecture.width / known.width
      return name if width == 1 else f'{name} of width {width:g}'
  raise KeyError(architecture)


def _architecture(tensors: Mapping[str, np.ndarray],
                  naming: names.Naming) -> str | None:
  """The member of the family that has such tensors, of which some may lack.

  Returns:
    Its name, with its width where that is another; None where none is like it.
  """
  modules, kernels, has_statistics = set(), {}, False
  for name, tensor in tensors.items():
    if (module := naming.module(name)) is None:
      continue
    modules.add(module)
    has_statistics |= name.endswith(('mean', 'var', 'variance'))
    if tensor.ndim == 4:
      kernels[module] = naming.to_ours(module, tensor).shape
  stages = [len({module.split('/')[1] for module in modules
                 if module.startswith(f'stage{stage}/')})
            for stage in range(1, 5)]
  stem = tuple(kernels[name][-1] for name in (
      'stem/conv', 'stem/conv1/conv', 'stem/conv2/conv', 'stem/conv3/conv')
               if name in kernels)
  inner = kernels.get('stage1/block1/conv2/conv')
  if not stem or inner is None:
    return None

  likely = []
  for name, known in ARCHITECTURES.items():
    first = known.deep_stem or (64,)
    like = dataclasses.replace(known, width=stem[-1] / first[-1])
    channels = (like.inner_channels(1) if like.bottleneck
                else like.channels(1))
    if (like.stage_sizes == tuple(stages)
        and like.bottleneck == ('stage1/block1/conv3/conv' in kernels)
        and like.preactivation == ('stage1/block1/preactivation/bn' in modules
                                   or 'stage1/block1/preactivation/gn'
                                   in modules)
        and (like.norm == 'batch') == has_statistics
        and stem == tuple(like.scaled(c) for c in first)
        and inner[2:] == (channels // like.groups, channels)
        and all(getattr(like, field) == value
                for field, value in naming.implied.items())):
      likely.append(_name(like))
  # Of width 1, rather.
  return min(likely, key=lambda name: ' of width ' in name, default=None)


def _float32(path: str | os.PathLike, name: str,
             tensor: np.ndarray) -> np.ndarray:
  """A contiguous float32 copy, which needs the file no more.

  Raises:
    UserError: a number is not finite.
  """
  with np.errstate(over='ignore'):  # float64 beyond float32's range
    array = np.array(tensor, np.float32, order='C')
  if not np.isfinite(array).all():
    raise UserError(f'{path}: {name} holds numbers that are not finite; '
                    'name weights from before the training failed')
  return array
