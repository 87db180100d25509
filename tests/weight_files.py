"""Files of weights as others write them, for the tests, made without torch."""

import dataclasses
import json
import pathlib
import pickle
import struct
from typing import Any, Callable
import zipfile
import zlib

from flax import serialization
from flax import traverse_util
import h5py
import numpy as np
import peers
import pytest
from safetensors import numpy as safetensors

from catsdogs import models
from catsdogs.architectures import ARCHITECTURES
from catsdogs.errors import UserError
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained import bundled
from catsdogs.pretrained import fit
from catsdogs.pretrained import names
from catsdogs.pretrained import read

CLASSES = 5
# A fish, a dog and two cats, of ImageNet.
IMAGENET_IDS = ('n01440764', 'n02085620', 'n02123045', 'n02123394')
# The architecture of most models here.
SMALL = dataclasses.replace(ARCHITECTURES['resnet18'], width=0.125)

Path = pathlib.Path


def load_weights(path: Path, variables: Any) -> tuple[Any, bool]:
  """What a file gives a model, and whether the head came along."""
  tensors, _ = read.read_tensors(path)
  return fit.fit(path, tensors, variables, SMALL)


# Files, made without torch.

class Opcodes(bytes):
  """A piece of a pickle, put into one as it is."""


def opcodes(value: Any) -> bytes:
  """Opcodes of protocol 2 that push a value, as `torch.save` writes them."""
  if isinstance(value, Opcodes):
    return value
  if isinstance(value, str):
    text = value.encode()
    return b'X' + struct.pack('<I', len(text)) + text
  if isinstance(value, (tuple, list)):
    return b'(' + b''.join(map(opcodes, value)) + (
        b't' if isinstance(value, tuple) else b'l')
  if isinstance(value, dict):
    return b'}(' + b''.join(
        opcodes(x) for item in value.items() for x in item) + b'u'
  return pickle.dumps(value, protocol=2)[2:-1]


def call(function: str, *arguments: Any) -> Opcodes:
  module, _, name = function.rpartition('.')
  return Opcodes(f'c{module}\n{name}\n'.encode() + opcodes(arguments) + b'R')


def tensor(numel: Any = 4, offset: Any = 0, shape: Any = (4,),
           strides: Any = (1,), key: Any = '0',
           storage: str = 'torch\nFloatStorage') -> Opcodes:
  identity = ('storage', Opcodes(f'c{storage}\n'.encode()), key, 'cpu', numel)
  return call('torch._utils._rebuild_tensor_v2',
              Opcodes(opcodes(identity) + b'Q'), offset, shape, strides, False,
              call('collections.OrderedDict'))


def write_zip(path: Path, content: Any, storages: dict[str, bytes] = {},
              byteorder: bytes = b'little',
              compression: int = zipfile.ZIP_STORED) -> Path:
  """A torch file of today around a pickle."""
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('x/data.pkl', b'\x80\x02' + opcodes(content) + b'.')
    archive.writestr('x/byteorder', byteorder)
    for key, data in storages.items():
      archive.writestr(f'x/data/{key}', data)
  return path


def write_legacy(path: Path, content: Any, storages: dict[str, np.ndarray] = {},
                 little_endian: bool = True) -> Path:
  """A torch file from before 1.6."""
  system = {'protocol_version': 1001, 'little_endian': little_endian,
            'type_sizes': {'short': 2, 'int': 4, 'long': 4}}
  with open(path, 'wb') as file:
    for value in (0x1950a86a20f9469cfc6c, 1001, system, content,
                  list(storages)):
      # The mark of a list precedes what is appended to it.
      body = (b'](' + b''.join(map(opcodes, value)) + b'e'
              if isinstance(value, list) else opcodes(value))
      file.write(b'\x80\x02' + body + b'.')
    for array in storages.values():
      file.write(struct.pack('<q', array.size) + array.tobytes())
  return path


FOUR = np.arange(4, dtype=np.float32)


def zip_of(path: Path, content: Any) -> Path:
  return write_zip(path, content, {'0': FOUR.tobytes()})


# A small model, and weights for it.

def small_shapes(name: str = 'resnet18', classes: int = CLASSES,
                 width: float = 0.125) -> dict[str, Any]:
  model = models.create_model(peers.model_config(name, width), classes)
  return models.variable_shapes(model)


def weights_like(variables: dict[str, Any]) -> dict[str, np.ndarray]:
  """Random weights in torchvision's names."""
  flat = traverse_util.flatten_dict(variables, sep='/')
  return peers.random_weights(
      {names.TORCHVISION.name(path):
       names.TORCHVISION.shape(path, array.shape)
       for path, array in flat.items()}, seed=1)


def write_own(path: Path, class_names: tuple[str, ...] = IMAGENET_IDS,
              model: str = 'resnet18') -> dict[str, np.ndarray]:
  """Writes a file as `bundled.write` does, but of random numbers."""
  random = np.random.default_rng(0)
  shapes = traverse_util.flatten_dict(
      small_shapes(model, len(class_names)), sep='/')
  tensors = {
      name: (random.normal(0, 0.1, shape.shape) if len(shape.shape) > 1
             else random.uniform(0.5, 1, shape.shape)).astype(np.float16)
      for name, shape in shapes.items()}
  about = {'class_names': class_names,
           'preprocessing': Preprocessing(64, 0.9, std=(0.5,) * 3).to_dict()}
  safetensors.save_file(tensors, path, {bundled.KEY: json.dumps(about)})
  return tensors


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> Path:
  safetensors.save_file(
      {name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
  return path


def write_weights_zip(path: Path, weights: dict[str, np.ndarray]) -> Path:
  content = {name: tensor(x.size, 0, x.shape, contiguous_strides(x), name)
             for name, x in weights.items()}
  return write_zip(path, content, {
      name: x.tobytes() for name, x in weights.items()})


def write_weights_legacy(path: Path, weights: dict[str, np.ndarray]) -> Path:
  content = {name: tensor(x.size, 0, x.shape, contiguous_strides(x), name)
             for name, x in weights.items()}
  return write_legacy(path, content, weights)


def write_npz(path: Path, weights: dict[str, np.ndarray]) -> Path:
  with open(path, 'wb') as file:  # Or numpy would append `.npz` to the name.
    np.savez(file, **weights)
  return path


def write_deflated_npz(path: Path, weights: dict[str, np.ndarray]) -> Path:
  with open(path, 'wb') as file:
    np.savez_compressed(file, **weights)
  return path


def write_msgpack(path: Path, weights: dict[str, np.ndarray]) -> Path:
  """What Flax writes; a name's parts between '/' are the keys of dicts."""
  path.write_bytes(serialization.to_bytes(
      traverse_util.unflatten_dict(weights, sep='/')))
  return path


def write_hdf5(path: Path, weights: dict[str, np.ndarray],
               **options: Any) -> Path:
  """As Keras writes; a name's parts between '/' are groups.

  Args:
    path: of the file.
    weights: by their names.
    **options: of h5py's `create_dataset`, for tensors that have axes.
  """
  with h5py.File(path, 'w') as file:
    for name, x in weights.items():
      file.create_dataset(name, data=x, **(options if x.ndim else {}))
  return path


def write_compressed_hdf5(path: Path, weights: dict[str, np.ndarray]) -> Path:
  """In pieces, of which the last ones reach beyond the tensor."""
  with h5py.File(path, 'w') as file:
    for name, x in weights.items():
      chunks = tuple(-(-size * 2 // 3) for size in x.shape)
      file.create_dataset(name, data=x, chunks=chunks, compression='gzip',
                          shuffle=True)
  return path


def deflated_zeros(mebibytes: int) -> bytes:
  """A bomb: so many zeros in a thousandth of the bytes, without a header."""
  packer = zlib.compressobj(9, zlib.DEFLATED, -15)
  one = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
  return one * mebibytes + packer.flush()


def write_npz_bomb(path: Path, start: bytes, mebibytes: int,
                   told: int) -> Path:
  """An archive whose `a.npy` has a start, then zeros, and is told shorter.

  Args:
    path: of the file.
    start: first bytes of the entry.
    mebibytes: of zeros that follow.
    told: bytes of the entry, by the archive's directory.
  """
  packer = zlib.compressobj(9, zlib.DEFLATED, -15)
  packed = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a.npy', packed + deflated_zeros(mebibytes))
  data = bytearray(path.read_bytes())
  for header, method in ((0, 8), (data.rindex(b'PK\x01\x02'), 10)):
    data[header + method] = zipfile.ZIP_DEFLATED
    data[header + method + 14:header + method + 18] = told.to_bytes(4, 'little')
  path.write_bytes(data)
  return path


def write_hdf5_bomb(path: Path, count: int, mebibytes: int) -> Path:
  """A tensor `bad` of `count` numbers, whose piece becomes so many zeros."""
  nbytes = mebibytes * 2**20
  packed = b'\x78\xda' + deflated_zeros(mebibytes) + struct.pack(
      '>HH', nbytes % 65521, 1)  # Adler's checksum.
  with h5py.File(path, 'w') as file:
    dataset = file.create_dataset(
        'bad', (count,), 'f4', chunks=(min(count, 2**29),), compression='gzip')
    dataset.id.write_direct_chunk((0,), packed)
  return path


def contiguous_strides(x: np.ndarray) -> tuple[int, ...]:
  return tuple(stride // x.itemsize for stride in x.strides)


def refusal(function: Callable, *arguments: Any) -> str:
  """The message of the UserError that the call must end with: one line."""
  with pytest.raises(UserError) as caught:
    function(*arguments)
  message = str(caught.value)
  assert '\n' not in message and len(message) < 2000
  return message


# Every format, and what writes tensors in it.
WRITERS = {
    'zip.pth': write_weights_zip,
    'legacy.pth': write_weights_legacy,
    'x.safetensors': write_safetensors,
    'x.h5': write_hdf5,
    'compressed.h5': write_compressed_hdf5,
    'x.npz': write_npz,
    'deflated.npz': write_deflated_npz,
    'x.msgpack': write_msgpack,
}


def few_tensors() -> dict[str, np.ndarray]:
  """Of several ranks, none of them empty or of zeros."""
  random = np.random.default_rng(0)
  return {name: random.normal(size=shape).astype(np.float32)
          for name, shape in (
              ('stem/conv/kernel', (3, 3, 3, 4)), ('stem/bn/scale', (4,)),
              ('stem/bn/mean', (4,)), ('block/conv/kernel', (1, 1, 4, 8)),
              ('head/kernel', (8, 5)), ('head/bias', (5,)))}
