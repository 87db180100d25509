"""Puts the weights of a file into a model's variables, all or none of them."""

import dataclasses
import hashlib
import os
import re
from typing import Any, Mapping

from flax import traverse_util
import ml_dtypes
import numpy as np
import safetensors

from catsdogs import models
from catsdogs.errors import UserError
from catsdogs.pretrained import torch_file
from catsdogs.pretrained import torchvision_names

_HEAD = ('params/head/kernel', 'params/head/bias')
_FLOATS = tuple(np.dtype(dtype) for dtype in (
    np.float32, np.float16, ml_dtypes.bfloat16, np.float64))
# A ResNet-152's takes 100 kB.
_MAX_SAFETENSORS_HEADER_BYTES = 16 * 2**20
# Names that a message lists before it says "and N more".
_LISTED = 5

# By the name of the tensor.
_Shapes = dict[str, tuple[int, ...]]


def read_tensors(path: str | os.PathLike
                 ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Reads a `.pth`, `.pt` or `.safetensors` file.

  The file's content decides how it is read, not its name.

  Returns:
    The tensors by their names, as they are in the file; and its metadata, which
    safetensors files may have.

  Raises:
    UserError: the file cannot be read.
  """
  # A pipe or a device would have us wait for ever.
  if not os.path.isfile(path):
    raise UserError(f'{path}: there is no such file; name a .pth or '
                    '.safetensors file of weights')
  try:
    with open(path, 'rb') as file:
      start = file.read(16)
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}; name a file of weights that '
                    'can be read') from error
  if start[:4] == torch_file.ZIP_START or start[:2] in torch_file.PICKLE_STARTS:
    return torch_file.read_torch_file(path), {}
  # The size of a JSON header in eight bytes, then the header.
  if start[8:9] == b'{':
    return _read_safetensors(path, int.from_bytes(start[:8], 'little'))
  likeness = f'it begins with {start!r}' if start else 'it is empty'
  raise UserError(f'{path}: is neither a torch nor a safetensors file, '
                  f'{likeness}; download it again, or name another')


def fit(path: str | os.PathLike, tensors: Mapping[str, np.ndarray],
        variables: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
  """Puts named tensors into a ResNet's variables.

  Every variable must be among the tensors and every tensor in the model; only a
  head of another number of classes, or none, is passed over.

  Args:
    path: where they are from, for what is told.
    tensors: by torchvision's names, or by our own paths such as
      `params/stem/conv/kernel`.
    variables: `params` and `batch_stats` of the model, arrays or
      `jax.ShapeDtypeStruct`s.

  Returns:
    The variables as contiguous float32 numpy arrays, of which a head that was
    passed over is the one given, as it is; and whether the head came along.

  Raises:
    UserError: they do not fit the model (all that differs is told), or hold a
      number that is not finite.
  """
  tensors = {name: tensor for name, tensor in tensors.items()
             if not name.endswith(torchvision_names.IGNORED_SUFFIX)}
  flat = traverse_util.flatten_dict(dict(variables), sep='/')
  if any(name.startswith('params/') for name in tensors):
    names = {variable: variable for variable in flat}
    shapes = {name: tuple(flat[name].shape) for name in names}
    to_ours = np.asarray
  else:
    names = {variable: torchvision_names.torchvision_name(variable)
             for variable in flat}
    shapes = {name: torchvision_names.torchvision_shape(flat[variable].shape)
              for variable, name in names.items()}
    to_ours = torchvision_names.from_torchvision

  kernel, bias = (names.pop(variable) for variable in _HEAD)
  head_classes = _head_classes(tensors, kernel, bias, shapes)
  head_loaded = head_classes == shapes[bias][0]
  if head_loaded:
    names.update(zip(_HEAD, (kernel, bias)))
  else:
    for name in (kernel, bias):
      tensors.pop(name, None)
      del shapes[name]
  _check_fit(path, tensors, shapes)

  loaded = dict(flat)
  for variable, name in names.items():
    loaded[variable] = _float32(path, name, to_ours(tensors[name]))
  return traverse_util.unflatten_dict(loaded, sep='/'), head_loaded


def sha256(path: str | os.PathLike) -> str:
  """The SHA-256 of a file, in hexadecimal.

  Raises:
    UserError: the file cannot be read.
  """
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}; name a file of weights that '
                    'can be read') from error


def _read_safetensors(path: str | os.PathLike,
                      header_bytes: int
                      ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Tensors, without a prefix of `module.`, and metadata of such a file."""
  try:
    if header_bytes > _MAX_SAFETENSORS_HEADER_BYTES:
      raise ValueError(f'its header claims {header_bytes} bytes')
    with safetensors.safe_open(os.fspath(path), framework='numpy') as file:
      return torch_file.without_prefix(
          {name: file.get_tensor(name) for name in file.keys()}
      ), file.metadata() or {}
  # Beside its own error, the library lets through what numpy says of a type
  # that numpy does not have.
  except (safetensors.SafetensorError, ValueError, TypeError, AttributeError,
          OSError) as error:
    raise UserError(
        f'{path}: cannot be read as safetensors: {torch_file.show(error)}; '
        'download it again, or save it anew') from error


def _head_classes(tensors: Mapping[str, np.ndarray], kernel: str, bias: str,
                  shapes: _Shapes) -> int | None:
  """How many classes the head in a file has; None where there is no head.

  A head that is only half there, or for other features, counts as one of the
  model's classes: then the check of all the tensors tells what is wrong.
  """
  if kernel not in tensors and bias not in tensors:
    return None
  model_classes, = shapes[bias]
  if kernel not in tensors or tensors.get(bias, np.zeros(())).ndim != 1:
    return model_classes
  classes, = tensors[bias].shape
  # The axis of the classes is the last one in our kernel, the first in theirs.
  axis = -1 if kernel == _HEAD[0] else 0
  expected = list(shapes[kernel])
  expected[axis] = classes
  return classes if list(tensors[kernel].shape) == expected else model_classes


def _check_fit(path: str | os.PathLike, tensors: Mapping[str, np.ndarray],
               shapes: _Shapes) -> None:
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
  if not told:
    return
  found = _architecture({name: x.shape for name, x in tensors.items()})
  model = _architecture(shapes)
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


def _listed(names: list[str]) -> str:
  """The first names, and how many more there are."""
  more = len(names) - _LISTED
  return ', '.join(map(torch_file.show, names[:_LISTED])) + (
      f' and {more} more' if more > 0 else '')


def _architecture(shapes: _Shapes) -> str | None:
  """The member of `models.ARCHITECTURES` that has these names and shapes.

  Args:
    shapes: torchvision's by its names, or ours by ours; some may be lacking.

  Returns:
    Its name, with its width where that is not 1; None where none is like it.
  """
  theirs = {}
  for name, shape in shapes.items():
    if name.startswith('params/'):
      try:
        name, shape = (torchvision_names.torchvision_name(name),
                       torchvision_names.torchvision_shape(shape))
      except KeyError:
        continue
    theirs[name] = shape
  stages = [set(), set(), set(), set()]
  for name in theirs:
    if match := re.match(r'layer([1-4])\.(\d+)\.', name):
      stages[int(match[1]) - 1].add(match[2])
  stem = theirs.get('conv1.weight', ())
  inner = theirs.get('layer1.0.conv2.weight', ())
  if len(stem) != 4 or len(inner) != 4:
    return None

  width = stem[0] / 64
  for name, architecture in models.ARCHITECTURES.items():
    architecture = dataclasses.replace(architecture, width=width)
    channels = (architecture.inner_channels(1) if architecture.bottleneck
                else architecture.channels(1))
    if (architecture.stage_sizes == tuple(map(len, stages))
        and architecture.bottleneck == ('layer1.0.conv3.weight' in theirs)
        and inner[:2] == (channels, channels // architecture.groups)):
      return name if width == 1 else f'{name} of width {width:g}'
  return None


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
