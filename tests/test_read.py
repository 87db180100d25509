"""Files of weights of every format are read, or refused in one line."""

import hashlib
import pathlib
import zipfile

import numpy as np
import pytest

from catsdogs.errors import UserError
from catsdogs.pretrained import read
from catsdogs.pretrained import torch_file
from weight_files import few_tensors, refusal, WRITERS

GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.mark.parametrize('name', WRITERS)
def test_the_content_tells_the_format_and_every_number_arrives(tmp_path, name):
  path = WRITERS[name](tmp_path / 'misnamed.bin', few_tensors())
  tensors, metadata = read.read_tensors(path)
  assert metadata == {}
  assert set(tensors) == set(few_tensors())
  for key, expected in few_tensors().items():
    assert tensors[key].dtype == np.float32
    np.testing.assert_array_equal(tensors[key], expected, strict=True)


@pytest.mark.parametrize('name', WRITERS)
def test_a_file_cut_anywhere_is_refused(tmp_path, name):
  data = WRITERS[name](tmp_path / name, few_tensors()).read_bytes()
  for tenth in range(10):
    path = tmp_path / f'{tenth}.pth'
    path.write_bytes(data[:len(data) * tenth // 10])
    message = refusal(read.read_tensors, path)
    assert 'download it again' in message and str(path) in message


@pytest.mark.parametrize('name', WRITERS)
def test_flipped_bytes_load_or_are_refused(tmp_path, name):
  data = WRITERS[name](tmp_path / name, few_tensors()).read_bytes()
  golden = (GOLDEN / name).read_bytes() if name.endswith('.pth') else data
  random = np.random.RandomState(0)
  path = tmp_path / 'x.pth'
  for i in range(60):
    damaged = bytearray((data, golden)[i % 2])
    for position in random.randint(len(damaged), size=random.randint(1, 8)):
      damaged[position] = random.randint(256)
    path.write_bytes(damaged)
    try:
      read.read_tensors(path)
    except UserError as error:
      assert '\n' not in str(error)


@pytest.mark.parametrize('content, told', [
    (b'', 'empty'),
    (b'<!DOCTYPE html>\n<html>', 'DOCTYPE'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'version https'),
    (b'\x80', 'neither'),
    (b'PK\x03\x04', 'cut short'),
    (b'\xff' * 8 + b'{' + bytes(20), 'header claims'),
    (b'\x89HDF\r\n\x1a\n', 'HDF5'),
    (b'\x81\xa1a', 'cut short'),
    (b'\x81\xa1a\xc7\x05', 'cut short'),
])
def test_what_is_no_weights_file_is_refused(tmp_path, content, told):
  path = tmp_path / 'x.pth'
  path.write_bytes(content)
  message = refusal(read.read_tensors, path)
  assert str(path) in message and told in message


def test_a_whole_keras_model_is_told_how_to_save_its_weights(tmp_path):
  path = tmp_path / 'x.keras'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('metadata.json', '{}')
    archive.writestr('model.weights.h5', b'')
  assert 'save_weights' in refusal(read.read_tensors, path)


def test_no_file_at_all_is_refused(tmp_path):
  for path in (tmp_path / 'none.pth', tmp_path):
    assert 'no such file' in refusal(read.read_tensors, path)
    refusal(read.sha256, path)
    refusal(torch_file.read_torch_file, path)


def test_sha256_is_that_of_the_bytes(tmp_path):
  path = tmp_path / 'x'
  path.write_bytes(b'abc' * 100_000)
  assert read.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
