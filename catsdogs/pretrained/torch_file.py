"""Reads the tensors of a torch file, without torch: both of its formats.

Since torch 1.6 a file is a zip archive: `NAME/data.pkl` says which tensors
there are, `NAME/data/KEY` holds each storage, uncompressed. Before, it was a
row of pickles with the storages behind them. The storages are mapped, not
read, so that a file costs no memory before its tensors are used.
"""

import io
import math
import mmap
import os
import struct
from typing import Any, Callable

import numpy as np

from catsdogs.errors import UserError
from catsdogs.pretrained import torch_pickle
from catsdogs.pretrained import zip_file

# How a pickle of protocol 2 to 5 begins; the legacy format is made of them.
PICKLE_STARTS = tuple(bytes([0x80, protocol]) for protocol in (2, 3, 4, 5))

_LEGACY_MAGIC = 0x1950a86a20f9469cfc6c
_LEGACY_PROTOCOL = 1001
# What training scripts keep a state dict under.
_WRAPPERS = ('state_dict', 'model_state_dict', 'model')
# What data parallelism and torch.compile put before each name.
_PREFIXES = ('module.', '_orig_mod.')
_MAX_RANK = 8

# Given a storage's key and size in bytes, returns its place in the file.
_Locate = Callable[[str, int], int]


def read_torch_file(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads a state dict that `torch.save` wrote, in either format.

  No pickle is executed (see `torch_pickle`). A dict within `{'state_dict':
  ...}` or `{'model': ...}` is unwrapped, and a prefix `module.` that all names
  share is dropped.

  Args:
    path: of the `.pth` or `.pt` file.

  Returns:
    The tensors by name, in the file's dtypes and axes. They are read-only
    views of the mapped file, strided as the file says, not always aligned.

  Raises:
    UserError: the file cannot be opened, is damaged or truncated, contradicts
      itself, or asks for anything but tensors.
  """
  try:
    with open(path, 'rb') as file:
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if data[:4] == zip_file.START:
      content, locate = _read_zip(data)
    elif data[:2] in PICKLE_STARTS:
      content, locate = _read_legacy(data)
    else:
      raise ValueError('it begins like no torch file')
    return without_prefix(
        {name: _view(data, name, tensor, locate)
         for name, tensor in _unwrap(content).items()})
  except OSError as error:
    raise UserError(f'{path}: {error.strerror or error}; name a file of '
                    'weights that can be read') from error
  # `struct.error`: a header at the end of a truncated file.
  except (ValueError, struct.error) as error:
    raise UserError(
        f'{path}: cannot be read as torch weights: {error}; download it again, '
        'or save it anew with torch.save(model.state_dict(), FILE)') from error


def without_prefix(tensors: dict[str, Any]) -> dict[str, Any]:
  """Drops `module.` or `_orig_mod.` where all names begin with it."""
  for prefix in _PREFIXES * 2:  # In either order.
    if tensors and all(name.startswith(prefix) for name in tensors):
      tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
  return tensors


def _read_zip(data: mmap.mmap) -> tuple[Any, _Locate]:
  """The content of a zip archive's pickle, and where its storages are."""
  entries = zip_file.directory(data)
  pickles = [name for name in entries if name.endswith('/data.pkl')]
  if len(pickles) != 1:
    raise ValueError(f'the archive holds {len(pickles)} data.pkl, not one')
  root = pickles[0].removesuffix('data.pkl')

  def place(name: str) -> tuple[int, int]:
    if name not in entries:
      raise ValueError(f'the archive lacks {show(name)}')
    entry = entries[name]
    if entry.deflated:
      raise ValueError(f'its entry {show(name)} is compressed')
    start = zip_file.place(data, entry)
    zip_file.check_crc(memoryview(data)[start:start + entry.size], entry)
    return start, entry.size

  if f'{root}byteorder' in entries:
    start, size = place(f'{root}byteorder')
    if data[start:start + size] != b'little':
      raise ValueError('its numbers are big-endian')
  start, size = place(pickles[0])
  if size > torch_pickle.MAX_PICKLE_BYTES:
    raise ValueError(f'its pickle of {size} bytes is too long')
  content, _ = torch_pickle.read_pickle(io.BytesIO(data[start:start + size]))
  known = {}

  def locate(key: str, nbytes: int) -> int:
    if key not in known:  # Many tensors may share a storage: check it once.
      known[key] = place(f'{root}data/{key}')
    start, size = known[key]
    if nbytes > size:
      raise ValueError(f'storage {show(key)} has {size} bytes, not {nbytes}')
    return start

  return content, locate


def _read_legacy(data: mmap.mmap) -> tuple[Any, _Locate]:
  """The content of a file from before torch 1.6, and its storages' places."""
  stream = io.BytesIO(data[:torch_pickle.MAX_PICKLE_BYTES])
  magic, protocol, system = (
      torch_pickle.read_pickle(stream)[0] for _ in range(3))
  if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
    raise ValueError('it is a pickle, but not one of torch')
  if type(system) is not dict or system.get('little_endian') is not True:
    raise ValueError('its numbers are big-endian')
  content, storages = torch_pickle.read_pickle(stream)
  keys, _ = torch_pickle.read_pickle(stream)
  if type(keys) is not list:
    raise ValueError('it has no list of storages')
  known = {storage.key: storage for storage in storages}
  if any(known[storage.key] != storage for storage in storages):
    raise ValueError('it describes a storage in two ways')

  # The storages follow, in the order of the keys: a count of elements, then
  # the elements.
  places, position = {}, stream.tell()
  for key in keys:
    if type(key) is not str or key not in known:
      raise ValueError('its list of storages is damaged')
    nbytes = known[key].numel * known[key].dtype.itemsize
    numel, = struct.unpack('<q', data[position:position + 8])
    if numel != known[key].numel or position + 8 + nbytes > len(data):
      raise ValueError(f'storage {show(key)} is cut short or damaged')
    places[key] = position + 8
    position += 8 + nbytes

  def locate(key: str, nbytes: int) -> int:
    if key not in places:
      raise ValueError(f'it lacks storage {show(key)}')
    return places[key]

  return content, locate


def _unwrap(content: Any) -> dict[str, torch_pickle.Tensor]:
  """The dict of tensors in what was saved, out of its wrapper."""
  for wrapper in _WRAPPERS:
    if type(content) is dict and type(content.get(wrapper)) is dict:
      content = content[wrapper]
      break
  if type(content) is not dict or not content:
    raise ValueError('it holds no dict of tensors')
  for name, tensor in content.items():
    if type(name) is not str or type(tensor) is not torch_pickle.Tensor:
      raise ValueError(f'its entry {show(name)} is a {type(tensor).__name__}, '
                       'not a tensor')
  return content


def _view(data: mmap.mmap, name: str, tensor: torch_pickle.Tensor,
          locate: _Locate) -> np.ndarray:
  """The tensor's numbers, once what the file claims of them is checked."""
  storage, offset, shape, strides = tensor
  if type(storage) is not torch_pickle.Storage or not _are_sizes((offset,)):
    raise ValueError(f'tensor {show(name)} is damaged')
  if (not _are_sizes(shape) or not _are_sizes(strides)
      or len(shape) != len(strides)):
    raise ValueError(f'tensor {show(name)} has no sound shape and strides')
  # No element may lie outside of the storage, nor any be there twice: a few
  # bytes with a stride of zero could stand for terabytes.
  count = math.prod(shape)
  last = sum((size - 1) * stride for size, stride in zip(shape, strides))
  if not 0 < count <= storage.numel or offset + last >= storage.numel:
    raise ValueError(f'tensor {show(name)} is empty or reaches beyond its '
                     'storage')
  itemsize = storage.dtype.itemsize
  start = locate(storage.key, storage.numel * itemsize)
  flat = np.frombuffer(data, storage.dtype, storage.numel, start)
  return np.lib.stride_tricks.as_strided(
      flat[offset:], shape, [stride * itemsize for stride in strides],
      writeable=False)


def _are_sizes(numbers: Any) -> bool:
  return type(numbers) is tuple and len(numbers) <= _MAX_RANK and all(
      type(n) is int and n >= 0 for n in numbers)


def show(name: Any) -> str:
  """A name from a file, fit for one line of a message."""
  name = str(name)[:80]
  return name if name.isprintable() else repr(name)
