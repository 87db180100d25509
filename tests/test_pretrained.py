"""Files of weights: what is in them, what must not be, and where it goes."""

import hashlib
import pathlib
import pickle
import struct
import time
import tracemalloc
from typing import Any, Callable
import zipfile

from flax import traverse_util
import jax
import ml_dtypes
import numpy as np
import peers
import pytest
from safetensors import numpy as safetensors

from catsdogs import models
from catsdogs.errors import UserError
from catsdogs.pretrained import load
from catsdogs.pretrained import torch_file
from catsdogs.pretrained import torchvision_names

GOLDEN = pathlib.Path(__file__).parent / 'golden'
CLASSES = 5

Path = pathlib.Path


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
      {torchvision_names.torchvision_name(path):
       torchvision_names.torchvision_shape(array.shape)
       for path, array in flat.items()}, seed=1)


@pytest.fixture(scope='module', name='shapes')
def fixture_shapes() -> dict[str, Any]:
  return small_shapes()


@pytest.fixture(name='weights')
def fixture_weights(shapes) -> dict[str, np.ndarray]:
  return weights_like(shapes)


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


def contiguous_strides(x: np.ndarray) -> tuple[int, ...]:
  return tuple(stride // x.itemsize for stride in x.strides)


def refusal(function: Callable, *arguments: Any) -> str:
  """The message of the UserError that the call must end with: one line."""
  with pytest.raises(UserError) as caught:
    function(*arguments)
  message = str(caught.value)
  assert '\n' not in message and len(message) < 1500
  return message


# Reading torch's files.

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
    refusal(load.load_weights, file, {})
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


# Whole files, damaged.

WRITERS = {
    'zip.pth': write_weights_zip,
    'legacy.pth': write_weights_legacy,
    'x.safetensors': write_safetensors,
}


def small_tensors() -> dict[str, np.ndarray]:
  return {name: x for name, x in weights_like(small_shapes()).items()
          if x.size < 100}


@pytest.mark.parametrize('name', WRITERS)
def test_a_file_cut_anywhere_is_refused(tmp_path, shapes, name):
  data = WRITERS[name](tmp_path / name, small_tensors()).read_bytes()
  for tenth in range(10):
    path = tmp_path / f'{tenth}.pth'
    path.write_bytes(data[:len(data) * tenth // 10])
    message = refusal(load.load_weights, path, shapes)
    assert 'download it again' in message


@pytest.mark.parametrize('name', WRITERS)
def test_flipped_bytes_load_or_are_refused(tmp_path, shapes, name):
  data = WRITERS[name](tmp_path / name, small_tensors()).read_bytes()
  golden = (GOLDEN / name).read_bytes() if name.endswith('.pth') else data
  random = np.random.RandomState(0)
  path = tmp_path / 'x.pth'
  for i in range(60):
    damaged = bytearray((data, golden)[i % 2])
    for position in random.randint(len(damaged), size=random.randint(1, 8)):
      damaged[position] = random.randint(256)
    path.write_bytes(damaged)
    try:
      load.load_weights(path, shapes)
    except UserError as error:
      assert '\n' not in str(error)


@pytest.mark.parametrize('content, told', [
    (b'', 'empty'),
    (b'<!DOCTYPE html>\n<html>', 'DOCTYPE'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'version https'),
    (b'\x80', 'neither'),
    (b'PK\x03\x04', 'cut short'),
    (b'\xff' * 8 + b'{' + bytes(20), 'header claims'),
])
def test_what_is_no_weights_file_is_refused(tmp_path, shapes, content, told):
  path = tmp_path / 'x.pth'
  path.write_bytes(content)
  message = refusal(load.load_weights, path, shapes)
  assert str(path) in message and told in message


def test_no_file_at_all_is_refused(tmp_path, shapes):
  for path in (tmp_path / 'none.pth', tmp_path):
    assert 'no such file' in refusal(load.load_weights, path, shapes)
    refusal(load.sha256, path)
    refusal(torch_file.read_torch_file, path)


def test_sha256_is_that_of_the_bytes(tmp_path):
  path = tmp_path / 'x'
  path.write_bytes(b'abc' * 100_000)
  assert load.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


# From a file into a model.

@pytest.mark.parametrize('name', WRITERS)
def test_weights_arrive_where_they_belong(tmp_path, shapes, weights, name):
  counts = {'bn1.num_batches_tracked': np.zeros(1, np.float32)}
  path = WRITERS[name](tmp_path / 'misnamed.bin', {**weights, **counts})
  variables, report = load.load_weights(path, shapes)
  flat = traverse_util.flatten_dict(variables, sep='/')
  assert report == load.LoadReport(
      head_loaded=True, head_classes=CLASSES,
      loaded=sum(x.size for x in weights.values()))
  for array in flat.values():
    assert type(array) is np.ndarray and array.dtype == np.float32
    assert array.flags.c_contiguous and array.flags.writeable
  for ours, theirs in (
      ('params/stem/conv/kernel',
       weights['conv1.weight'].transpose(2, 3, 1, 0)),
      ('params/stem/bn/scale', weights['bn1.weight']),
      ('batch_stats/stage3/block2/conv2/bn/var',
       weights['layer3.1.bn2.running_var']),
      ('params/stage2/block1/shortcut/conv/kernel',
       weights['layer2.0.downsample.0.weight'].transpose(2, 3, 1, 0)),
      ('batch_stats/stage4/block1/shortcut/bn/mean',
       weights['layer4.0.downsample.1.running_mean']),
      ('params/head/kernel', weights['fc.weight'].T),
      ('params/head/bias', weights['fc.bias'])):
    np.testing.assert_array_equal(flat[ours], theirs)
  assert jax.tree.structure(variables) == jax.tree.structure(shapes)
  # And back again.
  state = torchvision_names.state_dict(variables)
  assert set(state) == set(weights)
  for key, array in state.items():
    np.testing.assert_array_equal(array, weights[key])


@pytest.mark.parametrize('dtype', [
    np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_become_float32(tmp_path, shapes, weights, dtype):
  path = write_safetensors(tmp_path / 'x', {
      f'module.{name}': x.astype(dtype) for name, x in weights.items()})
  variables, _ = load.load_weights(path, shapes)
  loaded = variables['params']['stem']['bn']['scale']
  np.testing.assert_array_equal(
      loaded, weights['bn1.weight'].astype(dtype).astype(np.float32))


def test_our_own_names_are_taken_as_they_are(tmp_path, shapes, weights):
  variables, _ = load.load_weights(
      write_safetensors(tmp_path / 'theirs', weights), shapes)
  flat = traverse_util.flatten_dict(variables, sep='/')
  path = write_safetensors(tmp_path / 'ours', flat)
  again, report = load.load_weights(path, shapes)
  assert report.head_loaded
  jax.tree.map(np.testing.assert_array_equal, again, variables)

  del flat['params/stem/conv/kernel']
  flat['params/stem/conv/kernle'] = np.zeros(3, np.float32)
  message = refusal(
      load.load_weights, write_safetensors(path, flat), shapes)
  assert '1 missing: params/stem/conv/kernel' in message
  assert '1 unexpected: params/stem/conv/kernle' in message


@pytest.mark.parametrize('classes', [3, 1000, None])
@pytest.mark.parametrize('ours', [False, True])
def test_a_head_of_other_classes_or_none_stays_new(
    tmp_path, shapes, weights, classes, ours):
  fresh = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  if classes is None:
    del weights['fc.weight'], weights['fc.bias']
  else:
    weights['fc.weight'] = np.ones((classes, 64), np.float32)
    weights['fc.bias'] = np.ones(classes, np.float32)
  if ours:
    weights = {path: torchvision_names.from_torchvision(weights[name])
               for path in traverse_util.flatten_dict(fresh, sep='/')
               if (name := torchvision_names.torchvision_name(path)) in weights}
  path = write_safetensors(tmp_path / 'x', weights)
  variables, report = load.load_weights(path, fresh)
  assert not report.head_loaded and report.head_classes == classes
  for leaf in ('kernel', 'bias'):
    assert variables['params']['head'][leaf] is fresh['params']['head'][leaf]
  assert variables['params']['stem']['conv']['kernel'].any()


def test_all_that_differs_is_told_in_one_line(tmp_path, shapes, weights):
  for i in range(7):
    weights[f'extra{i}.weight'] = np.zeros(3, np.float32)
  del weights['bn1.bias'], weights['layer4.1.bn2.running_var']
  weights['layer1.0.conv1.weight'] = np.zeros((8, 8, 1, 1), np.float32)
  weights['bn1.weight'] = weights['bn1.weight'].astype(np.int32)
  path = write_safetensors(tmp_path / 'x', weights)
  message = refusal(load.load_weights, path, shapes)
  for part in ('2 missing: ', 'bn1.bias', 'layer4.1.bn2.running_var',
               '7 unexpected: ', 'extra0.weight', ' and 2 more',
               'layer1.0.conv1.weight (8, 8, 1, 1) instead of (8, 8, 3, 3)',
               'bn1.weight int32 instead of float32'):
    assert part in message


@pytest.mark.parametrize('head, part', [
    ({'fc.bias': None}, '1 missing: fc.bias'),
    ({'fc.weight': None}, '1 missing: fc.weight'),
    ({'fc.weight': (9, 65), 'fc.bias': (9,)}, 'fc.weight (9, 65) instead of'),
    ({'fc.weight': (9, 64), 'fc.bias': (8,)}, 'fc.weight (9, 64) instead of'),
    ({'fc.bias': (1, 5)}, 'fc.bias (1, 5) instead of (5,)'),
])
def test_a_head_that_fits_nowhere_is_refused(
    tmp_path, shapes, weights, head, part):
  for name, shape in head.items():
    if shape is None:
      del weights[name]
    else:
      weights[name] = np.zeros(shape, np.float32)
  path = write_safetensors(tmp_path / 'x', weights)
  assert part in refusal(load.load_weights, path, shapes)


@pytest.mark.parametrize(
    'name', [name for name in models.ARCHITECTURES if name != 'resnet18'])
def test_weights_of_another_architecture_are_recognised(tmp_path, shapes, name):
  other = small_shapes(name, width=0.25)
  flat = traverse_util.flatten_dict(other, sep='/')
  content = {}
  for path, array in flat.items():
    shape = torchvision_names.torchvision_shape(array.shape)
    content[torchvision_names.torchvision_name(path)] = np.zeros(
        shape, np.float16)
  path = write_safetensors(tmp_path / 'x', content)
  message = refusal(load.load_weights, path, shapes)
  assert f'they look like {name} of width 0.25' in message
  assert 'the model is resnet18 of width 0.125' in message


def test_weights_of_no_resnet_are_recognised(tmp_path, shapes):
  path = write_safetensors(tmp_path / 'x', {
      'features.0.weight': np.zeros((64, 3, 3, 3), np.float32)})
  message = refusal(load.load_weights, path, shapes)
  assert 'look like no ResNet' in message


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(
    tmp_path, shapes, weights, value):
  weights['layer2.0.bn1.running_var'][3] = value
  path = write_safetensors(tmp_path / 'x', weights)
  message = refusal(load.load_weights, path, shapes)
  assert 'layer2.0.bn1.running_var' in message


# Against torch itself.

@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors', 'checkpoint'])
def test_what_torch_saves_gives_its_logits(tmp_path, kind):
  torch = pytest.importorskip(
      'torch', reason='the peer, torch, is not installed')
  original = peers.torchvision_model('resnet18', seed=2)
  path = tmp_path / 'weights.bin'
  if kind == 'safetensors':
    # pylint: disable-next=g-import-not-at-top
    from safetensors import torch as safetensors_torch
    safetensors_torch.save_file(original.state_dict(), path)
  elif kind == 'checkpoint':
    optimizer = torch.optim.SGD(original.parameters(), 0.1, momentum=0.9)
    torch.save({'model': torch.nn.DataParallel(original).state_dict(),
                'optimizer': optimizer.state_dict(), 'epoch': 3}, path)
  else:
    torch.save(original.state_dict(), path,
               _use_new_zipfile_serialization=kind == 'zip')
  model = models.create_model(peers.model_config('resnet18'), 1000)
  variables, report = load.load_weights(
      path, small_shapes(classes=1000, width=1.0))
  assert report.head_loaded
  pictures = peers.random_pictures(75, seed=2)
  with jax.default_matmul_precision('highest'):
    ours = np.asarray(model.apply(variables, pictures))
  theirs = peers.torchvision_features(original, pictures)['logits']
  assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_torch_loads_what_goes_back_in_its_names():
  torch = pytest.importorskip(
      'torch', reason='the peer, torch, is not installed')
  original = peers.torchvision_models().resnet18(num_classes=CLASSES)
  shapes = small_shapes(width=1.0)
  variables = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
  state = {name: torch.from_numpy(np.ascontiguousarray(x))
           for name, x in torchvision_names.state_dict(variables).items()}
  left = original.load_state_dict(state, strict=False)
  assert not left.unexpected_keys
  assert all(name.endswith('num_batches_tracked') for name in left.missing_keys)
