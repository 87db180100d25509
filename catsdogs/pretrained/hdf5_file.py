"""Reads the weights of Keras: `.h5` and `.weights.h5` files.

Both are HDF5, which h5py reads. It is asked only where in the file the numbers
of each tensor are: they are then taken from the mapped file, and what is
compressed is unpacked here, with bounds. Nothing that leads out of the file is
followed: links, external storage, virtual datasets, plugins of filters.

libhdf5, under h5py, is C code. Of 9,500 small files of four kinds with bytes of
their structures changed (h5py 3.14.0, HDF5 1.14.6), none made this walk crash,
take over 0.6 s, or need over 50 MB; so it is done in this process.
"""

import itertools
import math
import mmap
import os
from typing import Any, Iterator, NamedTuple

import numpy as np

from catsdogs.pretrained import inflate
from catsdogs.pretrained.torch_file import show

START = b'\x89HDF\r\n\x1a\n'

# A model saved whole has its weights under this, beside its optimizer's.
_WHOLE_MODEL = 'model_weights'
# What lies beside the weights, in either version of the format.
_OPTIMIZER = ('optimizer', 'optimizer_weights')
# Of Keras's ResNet-152: 5 levels, 932 tensors, names of 60 letters.
_MAX_DEPTH = 16
_MAX_OBJECTS = 20_000
_MAX_NAME = 500
_MAX_RANK = 4
_MAX_CHUNKS = 20_000


class _Dataset(NamedTuple):
  """Where the numbers of a tensor are, as the file claims it.

  Attributes:
    dtype: little-endian floats.
    shape: of the tensor.
    chunk: shape of its pieces; its own where it is in one piece.
    places: offset and size in bytes of each piece, in the order of their
      indices.
    shuffled: whether the pieces have the first bytes of all numbers first.
    deflated: whether the pieces are compressed.
  """

  dtype: np.dtype
  shape: tuple[int, ...]
  chunk: tuple[int, ...]
  places: list[tuple[int, int]]
  shuffled: bool
  deflated: bool

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def read_hdf5(path: str | os.PathLike,
              data: mmap.mmap) -> dict[str, np.ndarray]:
  """The tensors by their paths in the file, such as `conv1/conv1/kernel:0`.

  Those of a model that was saved whole come without `model_weights/`; what an
  optimizer keeps is passed over.

  Args:
    path: of the file.
    data: the same file, mapped.

  Raises:
    ValueError: it is damaged, contradicts itself, or holds anything but groups
      of floating point tensors.
  """
  # Only who reads such a file needs it, here and below.
  import h5py  # pylint: disable=g-import-not-at-top
  try:
    # Without a lock, which some file systems refuse.
    with h5py.File(path, 'r', locking=False) as file:
      if file.userblock_size:
        raise ValueError('it does not begin where the file does')
      datasets = {name: _describe(name, dataset)
                  for name, dataset in _walk(file)}
  # What h5py makes of the errors of libhdf5.
  except (OSError, KeyError, RuntimeError, TypeError) as error:
    raise ValueError(show(error)) from error
  if not datasets:
    raise ValueError('it holds no tensors')

  deflated = sum(x.nbytes for x in datasets.values() if x.deflated)
  inflate.check_claim(deflated, len(data))
  if sum(x.nbytes for x in datasets.values()) - deflated > len(data):
    raise ValueError('its tensors are larger than the file')
  return {name: _tensor(data, name, dataset)
          for name, dataset in datasets.items()}


def _walk(file: Any) -> Iterator[tuple[str, Any]]:
  """The datasets (h5py's `DatasetID`s) of a file by their paths."""
  import h5py  # pylint: disable=g-import-not-at-top
  seen = set()

  def walk(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    names = list(group)
    if not prefix:
      names = [name for name in names if name not in _OPTIMIZER]
      if _WHOLE_MODEL in names:
        names = [_WHOLE_MODEL]
    # A slash within a name would lead through another link.
    for path in (prefix + name for name in names
                 if '/' in name or name in ('', '.')
                 or len(prefix + name) > _MAX_NAME):
      raise ValueError(f'{show(path)} is no sound name')
    for name in names:
      path = prefix + name
      if type(group.get(name, getlink=True)) is not h5py.HardLink:
        raise ValueError(f'{show(path)} is a link to another place, which is '
                         'not followed')
      item = h5py.h5o.open(group.id, name.encode('utf-8', 'surrogateescape'))
      address = h5py.h5o.get_info(item).addr
      if (address in seen or len(seen) > _MAX_OBJECTS
          or path.count('/') > _MAX_DEPTH):
        raise ValueError(f'{show(path)} is there twice, or one too many')
      seen.add(address)
      if isinstance(item, h5py.h5g.GroupID):
        yield from walk(h5py.Group(item), f'{path}/')
      elif isinstance(item, h5py.h5d.DatasetID):
        yield path.removeprefix(f'{_WHOLE_MODEL}/'), item
      else:
        raise ValueError(f'{show(path)} is no tensor')

  return walk(file, '')


def _describe(name: str, dataset: Any) -> _Dataset:
  """Where the numbers of a dataset (h5py's `DatasetID`) are."""
  from h5py import h5d, h5s, h5t, h5z  # pylint: disable=g-import-not-at-top
  name = show(name)
  dtype = next((np.dtype(ours) for ours, theirs in (
      ('<f4', h5t.IEEE_F32LE), ('<f2', h5t.IEEE_F16LE),
      ('<f8', h5t.IEEE_F64LE)) if dataset.get_type().equal(theirs)), None)
  if dtype is None:
    raise ValueError(f'{name} holds other things than floating point numbers')
  if (dataset.get_space().get_simple_extent_type() == h5s.NULL
      or dataset.rank > _MAX_RANK or not math.prod(dataset.shape)):
    raise ValueError(f'{name} is empty, or of more than {_MAX_RANK} axes')
  properties, shape = dataset.get_create_plist(), dataset.shape
  layout = properties.get_layout()
  if layout == h5d.VIRTUAL or properties.get_external_count():
    raise ValueError(f'{name} is kept in other files, which are not opened')
  if layout == h5d.CONTIGUOUS:
    offset = dataset.get_offset()
    if offset is None:
      raise ValueError(f'{name} has no numbers')
    nbytes = math.prod(shape) * dtype.itemsize
    return _Dataset(dtype, shape, shape, [(offset, nbytes)], False, False)
  if layout != h5d.CHUNKED:
    raise ValueError(f'{name} is laid out as Keras never does')

  filters = tuple(properties.get_filter(index)[0]
                  for index in range(properties.get_nfilters()))
  if filters not in ((), (h5z.FILTER_DEFLATE,), (h5z.FILTER_SHUFFLE,),
                     (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE)):
    raise ValueError(f'{name} is packed with filters {filters}, other than '
                     'gzip and shuffle')
  chunk = properties.get_chunk()
  if any(piece > size for piece, size in zip(chunk, shape)):
    raise ValueError(f'{name} has pieces larger than itself')
  if math.prod(-(-n // m) for n, m in zip(shape, chunk)) > _MAX_CHUNKS:
    raise ValueError(f'{name} is in over {_MAX_CHUNKS} pieces')
  places = []
  for corner in _corners(shape, chunk):
    found = dataset.get_chunk_info_by_coord(corner)
    if found.byte_offset is None or found.filter_mask:
      raise ValueError(f'{name} lacks a piece')
    places.append((found.byte_offset, found.size))
  return _Dataset(dtype, shape, chunk, places, h5z.FILTER_SHUFFLE in filters,
                  h5z.FILTER_DEFLATE in filters)


def _corners(shape: tuple[int, ...],
             chunk: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
  """The first indices of each piece."""
  return itertools.product(*map(
      lambda size, step: range(0, size, step), shape, chunk))


def _tensor(data: mmap.mmap, name: str, dataset: _Dataset) -> np.ndarray:
  """The numbers of a dataset; a view of the file if they are in one piece."""
  dtype, shape, chunk = dataset.dtype, dataset.shape, dataset.chunk
  nbytes = math.prod(chunk) * dtype.itemsize
  pieces = []
  for offset, size in dataset.places:
    piece = memoryview(data)[offset:offset + size]
    if len(piece) != size or not dataset.deflated and size != nbytes:
      raise ValueError(f'{show(name)} is cut short or damaged')
    if dataset.deflated:
      piece = inflate.inflate(piece, nbytes, 15)
    if dataset.shuffled:
      piece = np.frombuffer(piece, np.uint8).reshape(
          dtype.itemsize, -1).T.tobytes()
    pieces.append(np.frombuffer(piece, dtype).reshape(chunk))
  if chunk == shape:
    return pieces[0]
  tensor = np.empty(shape, dtype)
  for corner, piece in zip(_corners(shape, chunk), pieces):
    # What of the last pieces lies beyond the tensor is not part of it.
    room = tensor[tuple(map(lambda start, step: slice(start, start + step),
                            corner, chunk))]
    room[...] = piece[tuple(map(slice, room.shape))]
  return tensor
