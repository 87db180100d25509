"""Keras's files are read, what leads out of them is not followed."""

import os
import pathlib
import time
import tracemalloc

import h5py
import numpy as np
import pytest

from catsdogs.pretrained import read
from weight_files import (few_tensors, refusal, write_compressed_hdf5,
                          write_hdf5, write_hdf5_bomb)

MEND = 'download it again, or name another'
FOUR = np.arange(4, dtype=np.float32)


def write(path: pathlib.Path, **options) -> pathlib.Path:
  """A file of one dataset, made with options of `create_dataset`."""
  with h5py.File(path, 'w') as file:
    file.create_dataset('layer/bad', **options)
  return path


def test_weights_of_old_keras_come_by_layer_and_name(tmp_path):
  tensors = {'conv1_conv/conv1_conv/kernel:0': np.ones((7, 7, 3, 8), 'f4'),
             'conv1_conv/conv1_conv/bias:0': FOUR}
  path = write_hdf5(tmp_path / 'x.h5', tensors)
  with h5py.File(path, 'a') as file:
    file.create_group('pool1_pad')  # A layer without weights.
    file.attrs['layer_names'] = [b'pool1_pad', b'conv1_conv']
  loaded, _ = read.read_tensors(path)
  assert set(loaded) == set(tensors)
  for name, x in tensors.items():
    np.testing.assert_array_equal(loaded[name], x, strict=True)
    assert not loaded[name].flags.writeable


def test_a_model_saved_whole_comes_without_its_optimizer(tmp_path):
  path = write_hdf5(tmp_path / 'x.h5', {
      'model_weights/fc/fc/kernel': FOUR,
      'optimizer_weights/adam/iteration': np.array(3)})
  assert set(read.read_tensors(path)[0]) == {'fc/fc/kernel'}
  path = write_hdf5(path, {
      'layers/conv2d_1/vars/0': FOUR, 'optimizer/vars/0': np.array(3)})
  assert set(read.read_tensors(path)[0]) == {'layers/conv2d_1/vars/0'}


@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8'])
@pytest.mark.parametrize('options', [
    {}, {'chunks': True}, {'shuffle': True}, {'compression': 'gzip'},
    {'compression': 'gzip', 'shuffle': True}])
def test_every_float_and_every_way_to_store_it_is_read(
    tmp_path, dtype, options):
  x = np.random.default_rng(0).normal(size=(70, 50, 3)).astype(dtype)
  path = write_hdf5(tmp_path / 'x.h5', {'a': x, 'scalar': x[0, 0, 0]},
                    **options)
  for name, expected in (('a', x), ('scalar', x[0, 0, 0])):
    np.testing.assert_array_equal(read.read_tensors(path)[0][name], expected)


def test_the_latest_structures_of_hdf5_are_read(tmp_path):
  with h5py.File(tmp_path / 'x', 'w', libver='latest') as file:
    for index in range(20):
      file.create_dataset(f'a/{index}', data=FOUR + index, chunks=(3,),
                          maxshape=(None,), compression='gzip')
  tensors, _ = read.read_tensors(tmp_path / 'x')
  for index in range(20):
    np.testing.assert_array_equal(tensors[f'a/{index}'], FOUR + index)


@pytest.mark.parametrize('version', ['x.weights.h5', 'x.h5'])
def test_what_keras_itself_saves_is_read(tmp_path, version, monkeypatch):
  monkeypatch.setenv('KERAS_BACKEND', 'jax')
  keras = pytest.importorskip(
      'keras', reason='the peer, keras, is not installed')
  model = keras.Sequential([
      keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name='first'),
      keras.layers.BatchNormalization(name='second')])
  model.compile('adam', 'mse')
  path = tmp_path / version
  if version == 'x.h5':
    model.save(path)
    name = f'first/{model.name}/first/kernel'
  else:
    model.save_weights(path)
    name = 'layers/conv2d/vars/0'
  tensors, _ = read.read_tensors(path)
  assert len(tensors) == 6
  np.testing.assert_array_equal(
      tensors[name], np.asarray(model.get_layer('first').kernel))


@pytest.mark.parametrize('options, told', [
    ({'data': np.arange(4)}, 'floating'),
    ({'data': FOUR.astype('>f4')}, 'floating'),
    ({'data': FOUR.astype('c8')}, 'floating'),
    ({'data': np.zeros(3, [('a', 'f4')])}, 'floating'),
    ({'data': ['text']}, 'floating'),
    ({'shape': (2,), 'dtype': h5py.vlen_dtype('f4')}, 'floating'),
    ({'shape': (2,), 'dtype': h5py.ref_dtype}, 'floating'),
    ({'data': np.ones((1,) * 5, 'f4')}, '4 axes'),
    ({'data': np.ones((0, 3), 'f4')}, 'empty'),
    ({'data': h5py.Empty('f4')}, 'empty'),
    ({'shape': (2**40,), 'dtype': 'f4'}, 'no numbers'),
    ({'shape': (2**40,), 'dtype': 'f4', 'chunks': (4,)}, 'pieces'),
    ({'shape': (2**40,), 'dtype': 'f4', 'chunks': (2**28,)}, 'lacks a piece'),
    ({'data': FOUR, 'chunks': (9,), 'maxshape': (None,)}, 'larger than itself'),
    ({'data': FOUR, 'compression': 'lzf'}, 'filters'),
    ({'data': FOUR, 'fletcher32': True}, 'filters'),
    ({'data': FOUR, 'scaleoffset': 2}, 'filters'),
])
def test_other_datasets_are_refused_by_name(tmp_path, options, told):
  path = write(tmp_path / 'x.h5', **options)
  message = refusal(read.read_tensors, path)
  assert told in message and 'layer/bad' in message and MEND in message


@pytest.mark.parametrize('kind', ['soft', 'external', 'root', 'inner'])
def test_links_are_refused_and_not_followed(tmp_path, kind):
  other = write_hdf5(tmp_path / 'other.h5', {'a': FOUR})
  # Whoever opens it waits for ever.
  pipe = tmp_path / 'pipe.h5'
  os.mkfifo(pipe)
  path = write_hdf5(tmp_path / 'x.h5', {'a': FOUR})
  with h5py.File(path, 'a') as file:
    if kind == 'soft':
      file['bad'] = h5py.SoftLink('/a')
    elif kind == 'external':
      file['bad'] = h5py.ExternalLink(str(other), '/a')
    elif kind == 'root':
      file['model_weights'] = h5py.ExternalLink(str(pipe), '/')
    else:
      file['b/bad'] = h5py.ExternalLink(str(pipe), '/')
  message = refusal(read.read_tensors, path)
  assert 'is a link to another place' in message and MEND in message


def test_a_name_that_leads_through_a_link_is_refused(tmp_path):
  other = write_hdf5(tmp_path / 'other.h5', {'b': FOUR})
  path = write_hdf5(tmp_path / 'x.h5', {'a_b': FOUR})
  with h5py.File(path, 'a') as file:
    file['z'] = h5py.ExternalLink(str(other), '/')
  data = path.read_bytes()
  path.write_bytes(data.replace(b'a_b', b'z/b'))
  assert 'z/b is no sound name' in refusal(read.read_tensors, path)


def test_groups_within_themselves_and_tensors_twice_are_refused(tmp_path):
  for target in ('a', 'a/b'):
    path = write_hdf5(tmp_path / 'x.h5', {'a/b': FOUR})
    with h5py.File(path, 'a') as file:
      file['a/c'] = file[target]  # A hard link.
    assert 'a/c is there twice' in refusal(read.read_tensors, path)


def test_what_is_kept_in_other_files_is_refused(tmp_path):
  path = write(tmp_path / 'x.h5', shape=(4,), dtype='f4',
               external=[(str(tmp_path / 'raw'), 0, 16)])
  (tmp_path / 'raw').write_bytes(FOUR.tobytes())
  assert 'layer/bad is kept in other files' in refusal(read.read_tensors, path)

  layout = h5py.VirtualLayout((4,), 'f4')
  layout[:] = h5py.VirtualSource(str(tmp_path / 'other.h5'), 'a', (4,))
  with h5py.File(path, 'w') as file:
    file.create_virtual_dataset('layer/bad', layout)
  assert 'layer/bad is kept in other files' in refusal(read.read_tensors, path)


def test_compact_data_user_blocks_and_named_types_are_refused(tmp_path):
  path = tmp_path / 'x.h5'
  with h5py.File(path, 'w') as file:
    file['bad'] = np.dtype('f4')
  assert 'bad is no tensor' in refusal(read.read_tensors, path)
  with h5py.File(path, 'w') as file:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file.id, b'bad', h5py.h5t.IEEE_F32LE,
                    h5py.h5s.create_simple((4,)), properties)
  assert 'bad is laid out' in refusal(read.read_tensors, path)


@pytest.mark.parametrize('count, told', [
    (1000, 'do not become'), (2**18, 'do not become'),
    (2**24, 'claim to hold'), (2**29, 'claim to hold')])
def test_bombs_are_refused_before_they_burst(tmp_path, count, told):
  path = write_hdf5_bomb(tmp_path / 'x', count, 64)
  tracemalloc.start()
  try:
    start = time.process_time()
    message = refusal(read.read_tensors, path)
    assert told in message and MEND in message
    assert time.process_time() - start < 2
    assert tracemalloc.get_traced_memory()[1] < 10e6
  finally:
    tracemalloc.stop()


def test_tensors_over_one_another_are_refused(tmp_path):
  """As many bytes as one likes out of a few: the same ones again and again."""
  path = write_hdf5(tmp_path / 'x.h5', {'a': np.ones(20_000, 'f4')})
  with h5py.File(path, 'a') as file:
    offset = file['a'].id.get_offset()
    for index in range(8):
      file.create_dataset(f'b{index}', (20_000,), 'f4')  # Without numbers.
  nowhere, size = b'\xff' * 8, (80_000).to_bytes(8, 'little')
  data = path.read_bytes()
  assert data.count(nowhere + size) == 8
  there = offset.to_bytes(8, 'little')
  path.write_bytes(data.replace(nowhere + size, there + size))
  assert 'larger than the file' in refusal(read.read_tensors, path)


def test_numbers_beyond_the_end_are_refused(tmp_path):
  path = write_hdf5(tmp_path / 'x.h5', {'a': FOUR})
  with h5py.File(path) as file:
    offset = file['a'].id.get_offset()
  data, size = path.read_bytes(), (16).to_bytes(8, 'little')
  there, beyond = (place.to_bytes(8, 'little') + size
                   for place in (offset, len(data) - 15))
  assert data.count(there) == 1
  path.write_bytes(data.replace(there, beyond))
  assert MEND in refusal(read.read_tensors, path)


def test_damaged_pieces_are_refused(tmp_path):
  path = write_compressed_hdf5(tmp_path / 'x.h5', few_tensors())
  with h5py.File(path) as file:
    place = file['head/kernel'].id.get_chunk_info(0).byte_offset
  data = bytearray(path.read_bytes())
  data[place:place + 4] = bytes(4)
  path.write_bytes(data)
  assert 'damaged' in refusal(read.read_tensors, path)
