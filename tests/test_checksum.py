"""Any change to a sealed folder is found, and nothing else is."""

import json

import pytest

from catsdogs import checksum


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / '7'
  (root / 'state' / 'd').mkdir(parents=True)
  (root / 'state' / 'd' / 'values').write_bytes(bytes(range(256)) * 3)
  (root / 'state' / 'empty').write_bytes(b'')
  (root / 'meta').mkdir()
  (root / 'meta' / 'metadata').write_text('{"classes": ["cat", "dög"]}')
  checksum.seal(root, '7')
  return root


def test_a_sealed_folder_is_whole(folder):
  assert checksum.find_damage(folder) is None
  (folder / 'state' / 'note').write_text('added later')
  assert checksum.find_damage(folder) is None


def test_every_flipped_bit_is_found(folder):
  for file in folder.glob('*/**/*'):
    if file.is_file():
      whole = file.read_bytes()
      for place in range(0, len(whole) * 8, 5):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        assert file.name in checksum.find_damage(folder)
      file.write_bytes(whole)
  assert checksum.find_damage(folder) is None


def test_a_file_that_is_short_long_or_gone_is_named(folder):
  file = folder / 'state' / 'd' / 'values'
  whole = file.read_bytes()
  for content in (whole[:-1], whole + b'\0', b''):
    file.write_bytes(content)
    assert checksum.find_damage(folder) == (
        'state/d/values: not the bytes that were saved')
  file.unlink()
  assert checksum.find_damage(folder) == (
      'state/d/values: No such file or directory')
  file.mkdir()
  assert checksum.find_damage(folder) == 'state/d/values: Is a directory'


def test_one_file_can_be_checked_alone(folder):
  (folder / 'state' / 'd' / 'values').unlink()
  assert checksum.find_damage(folder, 'meta/metadata') is None
  (folder / 'meta' / 'metadata').write_text('{}')
  assert 'meta/metadata' in checksum.find_damage(folder, 'meta/metadata')
  assert 'other' in checksum.find_damage(folder, 'meta/other')


def test_another_name_is_found(folder):
  folder = folder.rename(folder.with_name('9'))
  assert checksum.find_damage(folder) == 'it was saved as 7'


@pytest.mark.parametrize('content', [
    '', '{', 'null', '7', '[]', '{}', '{"name": "7"}', '\udcff',
    '{"name": "7", "files": 3}', '{"name": "7", "files": {"a\\u0000": "b"}}'])
def test_damaged_checksums_are_found(folder, content):
  (folder / checksum.FILE).write_text(content, errors='surrogateescape')
  assert checksum.find_damage(folder)


def test_missing_checksums_are_told(folder):
  (folder / checksum.FILE).unlink()
  assert checksum.find_damage(folder) == (
      'checksums.json: No such file or directory')


def test_no_flipped_bit_of_the_checksums_hides_damage(folder):
  file = folder / checksum.FILE
  whole = file.read_bytes()
  (folder / 'meta' / 'metadata').write_text('{}')
  for place in range(len(whole) * 8):
    flipped = bytearray(whole)
    flipped[place // 8] ^= 1 << place % 8
    file.write_bytes(flipped)
    assert checksum.find_damage(folder)
  file.write_bytes(whole)
  assert set(json.loads(whole)['files']) == {
      'meta/metadata', 'state/d/values', 'state/empty'}
