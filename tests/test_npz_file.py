"""numpy's files are read, whatever they claim is checked first."""

import io
import pathlib
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from catsdogs.pretrained import read
from weight_files import (refusal, write_deflated_npz, write_npz,
                          write_npz_bomb)

MEND = 'download it again, or name another'


def npy(header: str, content: bytes, version: bytes = b'\x01\x00') -> bytes:
  """A `.npy` file around a header."""
  size = len(header).to_bytes(2 if version[0] == 1 else 4, 'little')
  return b'\x93NUMPY' + version + size + header.encode() + content


def header(shape: str = '(4,)', dtype: str = "'<f4'",
           fortran: str = 'False') -> str:
  return (f"{{'descr': {dtype}, 'fortran_order': {fortran}, 'shape': {shape}, "
          '}   \n')


def write_archive(path: pathlib.Path, content: bytes,
                  method: int = zipfile.ZIP_STORED) -> pathlib.Path:
  with zipfile.ZipFile(path, 'w', method) as archive:
    archive.writestr('a.npy', content)
  return path


@pytest.mark.parametrize('write', [write_npz, write_deflated_npz])
@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8', 'i8', 'u1', '?'])
def test_every_dtype_and_order_is_read(tmp_path, write, dtype):
  arrays = {
      'resnet/root_block/conv2d/kernel': np.arange(24).reshape(2, 3, 4),
      'fortran': np.asfortranarray(np.arange(12).reshape(3, 4)),
      'strided': np.arange(12)[::2], 'scalar': np.ones(())}
  arrays = {name: np.asarray(x, dtype, order='K')
            for name, x in arrays.items()}
  tensors, _ = read.read_tensors(write(tmp_path / 'x.npz', arrays))
  assert set(tensors) == set(arrays)
  for name, x in tensors.items():
    np.testing.assert_array_equal(x, arrays[name], strict=True)
    assert not x.flags.writeable


def test_a_longer_header_of_version_two_is_read(tmp_path):
  four = np.arange(4, dtype=np.float32)
  stream = io.BytesIO()
  np.lib.format.write_array(stream, four, version=(2, 0))
  path = write_archive(tmp_path / 'x', stream.getvalue())
  np.testing.assert_array_equal(read.read_tensors(path)[0]['a'], four)


def test_objects_are_refused_by_name_and_not_unpickled(tmp_path):
  ran = tmp_path / 'ran'

  class Evil:

    def __reduce__(self):
      import os  # pylint: disable=g-import-not-at-top
      return os.system, (f'touch {ran}',)

  path = write_npz(tmp_path / 'x', {'bad': np.array([Evil()], dtype=object)})
  message = refusal(read.read_tensors, path)
  assert 'bad.npy holds objects' in message and MEND in message
  assert not ran.exists()


LIES = {
    'more': npy(header('(5,)'), bytes(16)),
    'fewer': npy(header('(3,)'), bytes(16)),
    'huge': npy(header('(9999999999, 9999999999)'), bytes(16)),
    'longer': npy(header('(99999999999,)'), bytes(16)),
    'none': npy(header('(0,)'), b''),
    'negative': npy(header('(-4,)'), bytes(16)),
    'many axes': npy(header('(' + '1, ' * 40 + '4)'), bytes(16)),
    'a call': npy(header("__import__('os')"), bytes(16)),
    'deeply nested': npy(header('(' * 4000), bytes(16)),
    'records': npy(header(dtype="[('a', '<f4')]"), bytes(16)),
    'text': npy(header(dtype="'<U1'"), bytes(16)),
    'big-endian': npy(header(dtype="'>f4'"), bytes(16)),
    'complex': npy(header(dtype="'<c8'"), bytes(32)),
    'version 3': npy(header(), bytes(16), b'\x03\x00'),
    'a long header': npy(header() + ' ' * 60_000, bytes(16)),
    'a header beyond the end': npy(header(), b'', b'\x02\x00')[:30],
    'a pickle': b'\x80\x04N.',
    'nothing': b'',
}


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize('lie', LIES)
def test_lying_headers_are_refused(tmp_path, lie, method):
  path = write_archive(tmp_path / 'x', LIES[lie], method)
  message = refusal(read.read_tensors, path)
  assert 'a.npy' in message or 'claim to hold' in message
  assert MEND in message


@pytest.mark.parametrize('told, message', [
    (1000, 'do not become'), (2**20, 'do not become'),
    (64 * 2**20, 'claim to hold'), (2**32 - 1, 'claim to hold')])
def test_bombs_are_refused_before_they_burst(tmp_path, told, message):
  start = npy(header(f'({told // 4 - 20},)'), b'')
  path = write_npz_bomb(tmp_path / 'x', start, 64, told)
  tracemalloc.start()
  try:
    begun = time.process_time()
    assert message in refusal(read.read_tensors, path)
    assert time.process_time() - begun < 2
    assert tracemalloc.get_traced_memory()[1] < 10e6
  finally:
    tracemalloc.stop()


def test_archives_of_many_gigabytes_are_read_by_their_long_numbers(
    tmp_path, monkeypatch):
  monkeypatch.setattr(zipfile, 'ZIP64_LIMIT', 10)  # Rather than 2 GiB.
  arrays = {name: np.arange(4, dtype=np.float32) for name in 'abc'}
  path = write_npz(tmp_path / 'x', arrays)
  data = bytearray(path.read_bytes())
  assert b'PK\x06\x06' in data
  data[-6:-2] = b'\xff' * 4  # Where the directory begins: told elsewhere.
  path.write_bytes(data)
  tensors, _ = read.read_tensors(path)
  assert set(tensors) == set('abc')
  for x in tensors.values():
    np.testing.assert_array_equal(x, arrays['a'])

  locator = data.index(b'PK\x06\x07')
  for damage in ({locator: 0}, {locator + 8: 0xff}, {locator + 15: 0xff},
                 {data.index(b'PK\x06\x06') + 55: 0xff}):
    path.write_bytes(data)
    with path.open('r+b') as file:
      for place, byte in damage.items():
        file.seek(place)
        file.write(bytes([byte]))
    assert MEND in refusal(read.read_tensors, path)


def test_archives_that_numpy_never_writes_are_refused(tmp_path):
  path = tmp_path / 'x'
  content = npy(header(), bytes(16))
  write_archive(path, content, zipfile.ZIP_LZMA)
  assert 'other means' in refusal(read.read_tensors, path)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a.npy', content)
    archive.writestr('b.txt', 'b')
  assert 'b.txt is no array' in refusal(read.read_tensors, path)
  write_archive(path, content)
  data = bytearray(path.read_bytes())
  data[data.index(b'}') + 7] ^= 1
  path.write_bytes(data)
  assert 'checksum' in refusal(read.read_tensors, path)
