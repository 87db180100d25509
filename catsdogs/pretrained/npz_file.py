"""Reads the arrays of a numpy `.npz` file, such as BiT's weights.

That is a zip archive of `NAME.npy`, stored or deflated. What is stored is
mapped, not read. The headers of numpy, Python literals, are compared with the
one form that `numpy.save` writes, and never evaluated.
"""

import math
import mmap
import re

import numpy as np

from catsdogs.pretrained import inflate, zip_file
from catsdogs.pretrained.torch_file import show

_SUFFIX = '.npy'
_DTYPES = {np.dtype(name).str: np.dtype(name) for name in (
    'f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', '?')}
# Magic, version 1.0 or 2.0, and the header; its size is checked by hand.
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[^']{1,20})', 'fortran_order': "
    rb"(?P<fortran>True|False), 'shape': "
    rb"\((?P<shape>|\d{1,10},|\d{1,10}(, \d{1,10}){1,7})\), \} *\n")
_MAX_HEADER_BYTES = 4096


def read_npz(data: mmap.mmap) -> dict[str, np.ndarray]:
  """The arrays by their names, read-only.

  Args:
    data: the mapped file.

  Raises:
    ValueError: it is damaged, contradicts itself, or holds anything but plain
      arrays of numbers.
    struct.error: it is cut short.
  """
  entries = zip_file.directory(data)
  inflate.check_claim(sum(entry.size for entry in entries.values()), len(data))
  arrays = {}
  for name, entry in entries.items():
    if not name.endswith(_SUFFIX):
      raise ValueError(f'its entry {show(name)} is no array')
    arrays[name.removesuffix(_SUFFIX)] = _array(
        name, _content(data, entry))
  if not arrays:
    raise ValueError('it holds no arrays')
  return arrays


def _content(data: mmap.mmap, entry: zip_file.Entry) -> memoryview:
  start = zip_file.place(data, entry)
  content = memoryview(data)[start:start + entry.packed]
  if entry.deflated:
    content = memoryview(inflate.inflate(content, entry.size, -15))
  zip_file.check_crc(content, entry)
  return content


def _array(name: str, content: memoryview) -> np.ndarray:
  """The array of a `.npy` file, once what its header claims is checked."""
  start = bytes(content[:12])
  if start[:8] == b'\x93NUMPY\x01\x00':
    begin, size = 10, int.from_bytes(start[8:10], 'little')
  elif start[:8] == b'\x93NUMPY\x02\x00':
    begin, size = 12, int.from_bytes(start[8:12], 'little')
  else:
    raise ValueError(f'its entry {show(name)} is no array')
  # A longer one describes records of many fields.
  header = bytes(content[begin:begin + min(size, _MAX_HEADER_BYTES)])
  match = _HEADER.fullmatch(header)
  dtype = match and match['dtype'].decode('latin-1')
  if dtype not in _DTYPES:
    kind = 'objects' if b"'|O'" in header else 'other things than numbers'
    raise ValueError(f'array {show(name)} holds {kind} (nothing was run)')
  dtype = _DTYPES[dtype]
  shape = tuple(map(int, match['shape'].decode().rstrip(',').split(',')
                    if match['shape'] else ()))
  count = math.prod(shape)
  if not count or begin + size + count * dtype.itemsize != len(content):
    raise ValueError(f'array {show(name)} is empty or not of the size that it '
                     'claims')
  flat = np.frombuffer(content, dtype, count, begin + size)
  return flat.reshape(shape, order='F' if match['fortran'] == b'True' else 'C')
