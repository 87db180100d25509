"""torch's files are read, whatever lies in them is not run."""

import pathlib
import pickle
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from catsdogs.pretrained import torch_file
from weight_files import (call, FOUR, load_weights, Opcodes, opcodes, refusal,
                          tensor, write_legacy, write_zip, zip_of)

GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth'])
def test_every_dtype_and_stride_that_torch_wrote_is_read(name):
  tensors = torch_file.read_torch_file(GOLDEN / name)
  expected = np.load(GOLDEN / 'tensors.npz')
  assert set(tensors) == set(expected)
  for key, array in tensors.items():
    np.testing.assert_array_equal(
        array.astype(expected[key].dtype), expected[key], err_msg=key)
    assert str(array.dtype) == (
        key if key in ('float16', 'bfloat16', 'float64', 'int32', 'uint8',
                       'bool') else expected[key].dtype)
    assert not array.flags.writeable


def test_files_of_the_first_torch_releases_are_read(tmp_path):
  data = Opcodes(tensor(shape=(2, 2), strides=(2, 1)).replace(
      b'_rebuild_tensor_v2', b'_rebuild_tensor'))
  parameter = Opcodes(
      call('torch.nn.parameter.Parameter', data)
      + opcodes((True, False, call('collections.OrderedDict'))) + b'b')
  # Python 2 wrote an OrderedDict as a call with a list of pairs.
  pair = b'](U\x01a' + parameter + b'e'
  content = call('collections.OrderedDict', Opcodes(b'](' + pair + b'e'))
  path = write_legacy(tmp_path / 'old.pth', content, {'0': FOUR})
  np.testing.assert_array_equal(
      torch_file.read_torch_file(path)['a'], FOUR.reshape(2, 2))


@pytest.mark.parametrize('key', ['state_dict', 'model'])
@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.module.'])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, key, prefix):
  path = zip_of(tmp_path / 'x.pth', {'epoch': 1, key: {
      f'{prefix}a.module.weight': tensor(), f'{prefix}b': tensor()}})
  assert list(torch_file.read_torch_file(path)) == ['a.module.weight', 'b']


@pytest.mark.parametrize('write', [zip_of, write_legacy])
@pytest.mark.parametrize('function', [
    'os.system', 'posix.system', 'builtins.eval', 'builtins.getattr',
    'numpy.core.multiarray._reconstruct', 'torch.load', 'catsdogs.models.jax'])
def test_a_pickle_that_calls_is_refused_by_name_and_not_run(
    tmp_path, write, function):
  ran = tmp_path / 'ran'
  path = write(tmp_path / 'x.pth', {'a': call(function, f'touch {ran}')})
  message = refusal(torch_file.read_torch_file, path)
  assert function in message and str(path) in message
  assert not ran.exists()


class Evil:

  def __init__(self, command: str):
    self.command = command

  def __reduce__(self):
    import os  # pylint: disable=g-import-not-at-top
    return os.system, (self.command,)


@pytest.mark.parametrize('protocol', [0, 2, 4, 5])
def test_a_bare_pickle_is_refused_and_not_run(tmp_path, protocol):
  ran = tmp_path / 'ran'
  path = tmp_path / 'x.pth'
  path.write_bytes(pickle.dumps(Evil(f'touch {ran}'), protocol))
  with zipfile.ZipFile(tmp_path / 'y.pth', 'w') as archive:
    archive.writestr('x/data.pkl', path.read_bytes())
  for file in (path, tmp_path / 'y.pth'):
    refusal(load_weights, file, {})
  assert not ran.exists()


LIES = {
    'offset': dict(offset=1),
    'negative offset': dict(offset=-1),
    'shape': dict(shape=(5,)),
    'huge shape': dict(shape=(2**62, 2**62)),
    'negative size': dict(shape=(-4,)),
    'strides': dict(strides=(2,)),
    'negative stride': dict(strides=(-1,), offset=3),
    'no stride': dict(shape=(2**40,), strides=(0,)),
    'ranks': dict(shape=(2, 2), strides=(1,)),
    'many axes': dict(shape=(1,) * 40, strides=(1,) * 40),
    'no elements': dict(shape=(0, 2**62), strides=(1, 1)),
    'list': dict(shape=[4]),
    'float': dict(shape=(4.0,)),
    'text': dict(offset='0'),
    'numel': dict(numel=2**40),
    'negative numel': dict(numel=-4),
    'dtype': dict(storage='torch\nDoubleStorage'),
    'storage type': dict(storage='torch\nSize'),
    'key': dict(key='1'),
    'key outside': dict(key='../data.pkl'),
    'key type': dict(key=0),
}


@pytest.mark.parametrize('lie', LIES)
@pytest.mark.parametrize('write', [
    zip_of, lambda path, content: write_legacy(path, content, {'0': FOUR})])
def test_lying_tensors_are_refused(tmp_path, write, lie):
  path = write(tmp_path / 'x.pth', {'a': tensor(**LIES[lie])})
  refusal(torch_file.read_torch_file, path)


def nested_tuples() -> bytes:
  """A tuple of two of a tuple of two ...: 2**60 leaves to hash or to print."""
  return b')' + b''.join(
      b'q%c' % i + b'h%c' % i + b'\x86' for i in range(60))


BOMBS = {
    'a memo index': Opcodes(b'}r\xff\xff\xff\x3f'),
    'a text': Opcodes(b'X\xff\xff\xff\xff'),
    'numbers to multiply': {'a': tensor(
        offset=Opcodes(b'\x8b\x00\x00\xd0\x00' + b'\x7f' * 0xd00000 + b'q\x00'),
        shape=(Opcodes(b'h\x00'),) * 8, strides=(Opcodes(b'h\x00'),) * 8)},
    'a key to hash': Opcodes(b'}' + nested_tuples() + b'Ns'),
    'a name to print': Opcodes(nested_tuples() + b'h\x00\x93'),
    'a type to hash': Opcodes(
        opcodes('storage') + nested_tuples() + opcodes('0') * 3 + b'tQ'),
    'ever more objects': Opcodes(b'](' + b'}' * 2_000_000 + b'e'),
    'one long list again and again': Opcodes(
        b'](' + b'](K\x01Ne' * 20_000 + b'eq\x00'
        + b'ccollections\nOrderedDict\nq\x01' + b'h\x01h\x00\x85R' * 50_000),
    'one long shape again and again': Opcodes(
        b'(' + b'K\x01' * 100_000 + b'tq\x00'
        + b'ctorch\nSize\nq\x01' + b'h\x01h\x00\x85R' * 50_000),
    'calls with one long tuple': Opcodes(
        b'(' + b'K\x01' * 200_000 + b'tq\x00'
        + b'ctorch._utils\n_rebuild_tensor\nq\x01' + b'h\x01h\x00R' * 60_000),
    'a list in itself': Opcodes(b']q\x00h\x00a'),
    'a dict in itself': Opcodes(
        b'}q\x00' + opcodes('state_dict') + b'h\x00s'),
    'nothing': {},
    'no dict': [1],
    'no tensor': {'a': 'text'},
    'a number as a name': {1: tensor()},
    'a line break in a name': {'a\nb\ud800'.encode(
        'utf-8', 'surrogatepass').decode('latin-1'): 1},
}


@pytest.mark.parametrize('bomb', BOMBS)
def test_pickles_that_would_eat_memory_or_time_are_refused(tmp_path, bomb):
  path = zip_of(tmp_path / 'x.pth', BOMBS[bomb])
  tracemalloc.start()
  try:
    start = time.process_time()
    refusal(torch_file.read_torch_file, path)
    assert time.process_time() - start < 8
    assert tracemalloc.get_traced_memory()[1] < 150e6
  finally:
    tracemalloc.stop()


def test_archives_that_torch_never_writes_are_refused(tmp_path):
  path = tmp_path / 'x.pth'
  content, storages = {'a': tensor()}, {'0': FOUR.tobytes()}
  write_zip(path, content, storages, byteorder=b'big')
  assert 'big-endian' in refusal(torch_file.read_torch_file, path)
  write_zip(path, content, {'0': bytes(10**8)},
            compression=zipfile.ZIP_DEFLATED)
  assert 'compressed' in refusal(torch_file.read_torch_file, path)
  write_zip(path, content)
  assert 'lacks x/data/0' in refusal(torch_file.read_torch_file, path)
  write_zip(path, content, {'0': FOUR[:3].tobytes()})
  assert '12 bytes, not 16' in refusal(torch_file.read_torch_file, path)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('x/model.json', '{}')
  assert 'data.pkl' in refusal(torch_file.read_torch_file, path)
  write_legacy(path, content, {'0': FOUR}, little_endian=False)
  assert 'big-endian' in refusal(torch_file.read_torch_file, path)


def test_a_damaged_storage_is_told_by_its_checksum(tmp_path):
  path = zip_of(tmp_path / 'x.pth', {'a': tensor()})
  data = bytearray(path.read_bytes())
  data[data.index(FOUR.tobytes()) + 5] ^= 1
  path.write_bytes(data)
  assert 'checksum' in refusal(torch_file.read_torch_file, path)
