"""Reads a file of weights, of whichever format, into tensors by name."""

import hashlib
import mmap
import os
import struct
from typing import Callable

import numpy as np
import safetensors

from catsdogs.errors import UserError
from catsdogs.pretrained import (hdf5_file, msgpack_file, npz_file, torch_file,
                                 zip_file)

# A ResNet-152's takes 100 kB.
_MAX_SAFETENSORS_HEADER_BYTES = 16 * 2**20


def read_tensors(path: str | os.PathLike
                 ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Reads a file of torch, safetensors, Keras (HDF5), numpy (npz) or Flax.

  The file's content decides how it is read, not its name. None of it is run.

  Returns:
    The tensors by their names, as they are in the file; and its metadata, which
    safetensors files may have.

  Raises:
    UserError: the file cannot be read.
  """
  # A pipe or a device would have us wait for ever.
  if not os.path.isfile(path):
    raise UserError(f'{path}: there is no such file; name a file of weights, '
                    'such as a .pth, .safetensors, .h5 or .npz')
  try:
    with open(path, 'rb') as file:
      start = file.read(1024)
  except OSError as error:
    raise _unreadable(path, error) from error
  # The size of a JSON header in eight bytes, then the header.
  if start[8:9] == b'{':
    return _read_safetensors(path, int.from_bytes(start[:8], 'little'))
  return _reader(path, start)(path), {}


def sha256(path: str | os.PathLike) -> str:
  """The SHA-256 of a file, in hexadecimal.

  Raises:
    UserError: the file cannot be read.
  """
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise _unreadable(path, error) from error


def _reader(path: str | os.PathLike, start: bytes
            ) -> Callable[[str | os.PathLike], dict[str, np.ndarray]]:
  """What reads a file that begins like this."""
  if start.startswith(zip_file.START):
    first_name = start[30:30 + int.from_bytes(start[26:28], 'little')]
    if first_name.endswith(b'.npy'):
      return _read_npz
    if first_name == b'metadata.json':
      raise UserError(f'{path}: is a whole model of Keras; save its weights '
                      "with model.save_weights('NAME.weights.h5')")
    return torch_file.read_torch_file
  if start.startswith(torch_file.PICKLE_STARTS):
    return torch_file.read_torch_file
  if start.startswith(hdf5_file.START):
    return _read_hdf5
  if start.startswith(msgpack_file.STARTS):
    return _read_msgpack
  likeness = f'it begins with {start[:16]!r}' if start else 'it is empty'
  raise UserError(
      f'{path}: is a file of neither torch, safetensors, Keras, numpy (.npz) '
      f'nor Flax, {likeness}; download it again, or name another')


def _read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
  return _read_mapped(path, 'npz', npz_file.read_npz)


def _read_msgpack(path: str | os.PathLike) -> dict[str, np.ndarray]:
  return _read_mapped(path, "Flax's msgpack", msgpack_file.read_msgpack)


def _read_hdf5(path: str | os.PathLike) -> dict[str, np.ndarray]:
  return _read_mapped(path, 'HDF5',
                      lambda data: hdf5_file.read_hdf5(path, data))


def _read_mapped(path: str | os.PathLike, kind: str,
                 read: Callable[[mmap.mmap], dict[str, np.ndarray]]
                 ) -> dict[str, np.ndarray]:
  """What a reader finds in the mapped file.

  Raises:
    UserError: it cannot be mapped, or the reader refuses it.
  """
  try:
    with open(path, 'rb') as file:
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except OSError as error:
    raise _unreadable(path, error) from error
  try:
    return read(data)
  # `struct.error`: a header at the end of a truncated file.
  except (ValueError, struct.error) as error:
    raise UserError(f'{path}: cannot be read as {kind}: {error}; download it '
                    'again, or name another') from error


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


def _unreadable(path: str | os.PathLike, error: OSError) -> UserError:
  return UserError(f'{path}: {error.strerror or error}; name a file of weights '
                   'that can be read')
