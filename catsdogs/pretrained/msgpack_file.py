"""Reads what `flax.serialization.to_bytes(variables)` wrote, with bounds.

MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md) is a row of
values, each led by a byte that says what it is. The package that Flax reads it
with makes room for as many values as a few bytes claim, level by level; here
the bytes are walked instead, and the arrays are views of the mapped file.
"""

import math
import mmap
from typing import NamedTuple

import ml_dtypes
import numpy as np

from catsdogs.pretrained.torch_file import show

# Flax's own: an array, as a list of its shape, its dtype and its bytes.
_ARRAY_TYPE = 1
_DTYPES = {dtype.name: dtype for dtype in map(np.dtype, (
    'f2', 'f4', 'f8', ml_dtypes.bfloat16, 'i1', 'i2', 'i4', 'i8', 'u1', 'u2',
    'u4', 'u8', '?'))}
# Of a ResNet: 5 levels, 1,600 arrays, names of 50 letters.
_MAX_DEPTH = 16
_MAX_ARRAYS = 20_000
_MAX_NAME = 500
_MAX_RANK = 8

# First bytes whose lower bits are the size (a number's value), from ... on.
_SHORT = ((0x00, 0x80, 'number'), (0x80, 0x90, 'map'), (0x90, 0xa0, 'list'),
          (0xa0, 0xc0, 'text'))
# First bytes that so many bytes of size (a number's value) follow.
_LONG = {
    0xc4: ('bytes', 1), 0xc5: ('bytes', 2), 0xc6: ('bytes', 4),
    0xc7: ('extension', 1), 0xc8: ('extension', 2), 0xc9: ('extension', 4),
    0xcc: ('number', 1), 0xcd: ('number', 2), 0xce: ('number', 4),
    0xcf: ('number', 8), 0xd9: ('text', 1), 0xda: ('text', 2),
    0xdb: ('text', 4), 0xdc: ('list', 2), 0xdd: ('list', 4), 0xde: ('map', 2),
    0xdf: ('map', 4),
}
# Extensions of 1, 2, 4, 8 and 16 bytes.
_EXTENSIONS = range(0xd4, 0xd9)
# How a dict of at least one value begins.
STARTS = tuple(bytes([byte]) for byte in (*range(0x81, 0x90), 0xde, 0xdf))


class _Value(NamedTuple):
  """What a value begins with.

  Attributes:
    kind: as in the tables above, or 'other'.
    size: bytes of it that follow, or how many values do, or a number's value.
    start: the place behind this beginning.
  """

  kind: str
  size: int
  start: int


def read_msgpack(data: mmap.mmap) -> dict[str, np.ndarray]:
  """The arrays by the keys that lead to them, joined by '/'; read-only.

  Args:
    data: the mapped file.

  Raises:
    ValueError: it is damaged, cut short, or holds anything but dicts of arrays.
  """
  arrays = {}
  end = _read_map(data, _beginning(data, 0), '', 0, arrays)
  if end != len(data):
    raise ValueError(f'{len(data) - end} bytes follow its end')
  if not arrays:
    raise ValueError('it holds no arrays')
  return arrays


def _read_map(data: mmap.mmap, value: _Value, prefix: str, depth: int,
              arrays: dict[str, np.ndarray]) -> int:
  """Collects the arrays of a dict; returns where it ends."""
  if value.kind != 'map':
    raise ValueError(f'its entry {show(prefix[:-1])} is a {value.kind}, not an '
                     'array')
  if depth > _MAX_DEPTH:
    raise ValueError(f'it has over {_MAX_DEPTH} levels')
  position = value.start
  for _ in range(value.size):
    key = _beginning(data, position)
    name = prefix + _text(data, key)
    if len(name) > _MAX_NAME:
      raise ValueError(f'a name is over {_MAX_NAME} letters long: {show(name)}')
    content = _beginning(data, key.start + key.size)
    if content.kind == 'extension':
      arrays[name] = _array(data, name, content)
      position = content.start + content.size
    else:
      position = _read_map(data, content, f'{name}/', depth + 1, arrays)
    if len(arrays) > _MAX_ARRAYS:
      raise ValueError(f'it holds over {_MAX_ARRAYS} arrays')
  return position


def _beginning(data: mmap.mmap, position: int) -> _Value:
  """What the value at a place is; what follows it may lie beyond the end."""
  if position >= len(data):
    raise ValueError('it is cut short')
  first = data[position]
  for low, high, kind in _SHORT:
    if low <= first < high:
      return _Value(kind, first % (32 if kind == 'text' else high - low),
                    position + 1)
  if first in _EXTENSIONS:
    # Its type, a byte, counts as a part of it.
    return _Value('extension', 1 + 2**(first - _EXTENSIONS[0]), position + 1)
  kind, nbytes = _LONG.get(first, ('other', 0))
  end = position + 1 + nbytes
  size = int.from_bytes(data[position + 1:end], 'big')
  return _Value(kind, size + (kind == 'extension'), end)


def _text(data: mmap.mmap, value: _Value) -> str:
  if value.kind != 'text' or value.size > _MAX_NAME:
    raise ValueError(f'a name is a {value.kind} of size {value.size}')
  return data[value.start:value.start + value.size].decode('utf-8')


def _array(data: mmap.mmap, name: str, value: _Value) -> np.ndarray:
  """The array of an extension, once what it claims is checked."""
  end = value.start + value.size
  if end > len(data):
    raise ValueError('it is cut short')
  if data[value.start] != _ARRAY_TYPE:
    raise ValueError(f'its entry {show(name)} is a number of its own, not an '
                     'array')
  parts = _beginning(data, value.start + 1)
  sizes = _beginning(data, parts.start)
  if (parts[:2] != ('list', 3) or sizes.kind != 'list'
      or sizes.size > _MAX_RANK):
    raise ValueError(f'array {show(name)} has no sound shape')
  shape, position = [], sizes.start
  for _ in range(sizes.size):
    number = _beginning(data, position)
    if number.kind != 'number':
      raise ValueError(f'array {show(name)} has no sound shape')
    shape.append(number.size)
    position = number.start
  dtype_name = _beginning(data, position)
  dtype = _DTYPES.get(_text(data, dtype_name))
  if dtype is None:
    raise ValueError(f'array {show(name)} holds other things than real numbers')
  content = _beginning(data, dtype_name.start + dtype_name.size)
  count = math.prod(shape)
  if (not count or content.kind != 'bytes'
      or content.size != count * dtype.itemsize
      or content.start + content.size != end):
    raise ValueError(f'array {show(name)} is empty or not of the size that it '
                     'claims')
  return np.frombuffer(data, dtype, count, content.start).reshape(shape)
