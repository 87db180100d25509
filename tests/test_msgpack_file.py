"""Flax's files are read, without what MessagePack would make room for."""

import time
import tracemalloc

from flax import core
from flax import serialization
import ml_dtypes
import msgpack
import numpy as np
import pytest

from catsdogs.pretrained import read
from weight_files import refusal

MEND = 'download it again, or name another'
FOUR = np.arange(4, dtype=np.float32)


def extension(shape=(4,), dtype='float32', content=FOUR.tobytes(),
              kind: int = 1) -> msgpack.ExtType:
  return msgpack.ExtType(kind, msgpack.packb((shape, dtype, content)))


@pytest.mark.parametrize('dtype', [
    'f2', 'f4', 'f8', ml_dtypes.bfloat16, 'i8', 'u1', '?'])
def test_variables_come_out_by_their_paths(tmp_path, dtype):
  random = np.random.default_rng(0)
  # Sizes of which each is written in another way.
  stem = {f'of_{size}': random.normal(size=(size, 1)).astype(dtype)
          for size in (1, 2, 13, 100, 130, 300, 20_000, 70_000)}
  many = {f'block{index}': {'bias': np.ones((), dtype)} for index in range(40)}
  path = tmp_path / 'x.msgpack'
  path.write_bytes(serialization.to_bytes(core.freeze(
      {'params': {'stem': {'conv': stem}, **many}, 'empty': {}})))
  tensors, _ = read.read_tensors(path)
  assert len(tensors) == len(stem) + len(many)
  for name, x in stem.items():
    np.testing.assert_array_equal(
        tensors[f'params/stem/conv/{name}'], x, strict=True)
    assert not tensors[f'params/stem/conv/{name}'].flags.writeable
  assert tensors['params/block7/bias'] == 1


@pytest.mark.parametrize('entry, told', [
    (extension((5,)), 'the size that it claims'),
    (extension((3,)), 'the size that it claims'),
    (extension((0,), content=b''), 'empty'),
    (extension((2**40, 2**40)), 'the size that it claims'),
    (extension((-4,)), 'shape'),
    (extension((4.0,)), 'shape'),
    (extension((1,) * 40), 'shape'),
    (extension(4), 'shape'),
    (extension(dtype='object'), 'other things than real numbers'),
    (extension(dtype='complex64'), 'other things than real numbers'),
    (extension(dtype='U' * 1000), 'a name'),
    (extension(dtype=7), 'a name'),
    (extension(content='text'), 'the size that it claims'),
    (msgpack.ExtType(1, b''), 'cut short'),
    (msgpack.ExtType(1, msgpack.packb(((4,), 'float32', FOUR.tobytes(), 1))),
     'shape'),
    (msgpack.ExtType(1, msgpack.packb(((4,), 'float32', FOUR.tobytes())) + b'x'
                     ), 'the size that it claims'),
    (extension(kind=3), 'a number of its own'),
    (msgpack.ExtType(2, msgpack.packb((1.0, 2.0))), 'a number of its own'),
    (msgpack.Timestamp(5), 'a number of its own'),
    ([extension()], 'a list'),
    (1, 'a number'), (1.5, 'a other'), (None, 'a other'), ('x', 'a text'),
    (b'x', 'a bytes'), ({1: extension()}, 'a name'),
    ({'k' * 600: extension()}, 'a name'),
    ({'k' * 400: {'k' * 400: extension()}}, 'a name'),
    ({'a\n\ud800': 1}, 'codec'), ({'a\nb': 1}, 'a number'),
    ({}, 'no arrays'),
])
def test_what_is_no_array_is_refused(tmp_path, entry, told):
  path = tmp_path / 'x'
  path.write_bytes(msgpack.packb(
      {'a': entry}, unicode_errors='surrogatepass'))
  message = refusal(read.read_tensors, path)
  assert told in message and MEND in message


def test_bytes_behind_the_end_are_refused(tmp_path):
  path = tmp_path / 'x'
  path.write_bytes(serialization.to_bytes({'a': FOUR}) + b'xyz')
  assert '3 bytes follow' in refusal(read.read_tensors, path)


ENTRY = msgpack.packb(extension((1,), 'uint8', b'x'))
BOMBS = {
    'a long list': b'\x81\xa1a\xdd\xff\xff\xff\xff',
    'lists in lists': b'\x81\xa1a' + b'\xdd\x00\x0f\xff\xff' * 200_000,
    'maps in maps': b'\x81\xa1a' * 300_000,
    'a long map': b'\xdf\xff\xff\xff\xff\xa1a' + ENTRY,
    'empty maps': b'\xde\x40\x00' + b'\xa1a\x80' * 2**14,
    'a long text': b'\x81\xdb\xff\xff\xff\xff',
    'a long array': b'\x81\xa1a\xc9\xff\xff\xff\xff\x01',
}


@pytest.mark.parametrize('bomb', BOMBS)
def test_bombs_are_refused(tmp_path, bomb):
  path = tmp_path / 'x'
  path.write_bytes(BOMBS[bomb])
  tracemalloc.start()
  try:
    start = time.process_time()
    refusal(read.read_tensors, path)
    assert time.process_time() - start < 8
    assert tracemalloc.get_traced_memory()[1] < 50e6
  finally:
    tracemalloc.stop()


def test_more_arrays_than_any_resnet_has_are_refused(tmp_path):
  path = tmp_path / 'x'
  path.write_bytes(b'\xde\x75\x30' + b''.join(
      b'\xa5%05d' % index + ENTRY for index in range(30_000)))
  assert 'over 20000 arrays' in refusal(read.read_tensors, path)
