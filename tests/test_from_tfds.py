"""Sets of TensorFlow Datasets, in both of its formats."""

import io
import pathlib

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from catsdogs.datasets import Source, Split
from catsdogs.datasets.from_tfds import open_tfds
from catsdogs.errors import UserError
from catsdogs.photos import Decoding, decode

FORMATS = ('tfrecord', 'array_record')
PHOTO, KINDS = tfds.features.Image(), tfds.features.ClassLabel(names=['a', 'b'])


def jpeg(shade: int) -> bytes:
  buffer = io.BytesIO()
  Image.new('L', (8, 8), shade).convert('RGB').save(buffer, 'JPEG')
  return buffer.getvalue()


def shade_of(index: int, label: int) -> int:
  """Tells a photo and its label apart from all others of its split."""
  return 2 * index + 100 * label


class _PhotoSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Gray photos of the kinds a and b in turn, so many a split."""

  VERSION = tfds.core.Version('1.0.0')
  COUNTS = {'train': 60}
  FEATURES = {'image': PHOTO, 'label': KINDS}

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(self.FEATURES))

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(count)
            for split, count in self.COUNTS.items()}

  def _generate_examples(self, count):
    for index in range(count):
      yield index, self.example(index, index % 2)

  def example(self, index, label):
    return {'image': io.BytesIO(jpeg(shade_of(index, label))), 'label': label}


class PhotosOneSplit(_PhotoSet):
  pass


class PhotosTwoSplits(_PhotoSet):
  COUNTS = {'train': 8, 'validation': 6, 'test': 4}


class PhotosNamed(_PhotoSet):
  FEATURES = {'image': PHOTO, 'image/filename': tfds.features.Text(),
              'label': KINDS}

  def example(self, index, label):
    return {**super().example(index, label),
            'image/filename': f'größe {index}.jpg'}


class PhotosTwoLabels(_PhotoSet):
  FEATURES = {'image': PHOTO, 'label': KINDS,
              'size': tfds.features.ClassLabel(names=['small', 'big'])}

  def example(self, index, label):
    return {**super().example(index, label), 'size': 1 - label}


class PhotosNoTrain(_PhotoSet):
  COUNTS = {'first': 4, 'second': 4}


class NumbersNoPhotos(_PhotoSet):
  FEATURES = {'text': tfds.features.Text(), 'label': KINDS}

  def example(self, index, label):
    return {'text': str(index), 'label': label}


class PhotosOutOfReach(_PhotoSet):

  def _split_generators(self, dl_manager):
    raise ConnectionError('the server\nis away')


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch) -> pathlib.Path:
  # TFDS reads TFDS_DATA_DIR when it is imported: too early for a test.
  monkeypatch.setattr(constants, 'DATA_DIR', str(tmp_path))
  return tmp_path


def prepare(name: str, file_format: str = 'array_record') -> None:
  # In two files: TFDS would read 16 photos from one, then 16 from the other.
  tfds.builder(name, file_format=file_format).download_and_prepare(
      download_config=tfds.download.DownloadConfig(num_shards=2))


def opened(name: str, label_key: str = 'auto', train_split: str = '',
           val_split: str = '', val_fraction: float = 0.25) -> Source:
  return open_tfds(name, label_key, train_split, val_split, val_fraction)


def photos(split: Split) -> dict[str, bytes]:
  return {name: split.read(i) for i, name in enumerate(split.ids)}


def test_both_formats_give_the_same_photos(data_dir, monkeypatch):
  sources = []
  for file_format in FORMATS:
    monkeypatch.setattr(constants, 'DATA_DIR', str(data_dir / file_format))
    prepare('photos_one_split', file_format)
    files = (data_dir / file_format).rglob('*-of-*')
    assert any(file_format in file.name for file in files)
    sources.append(opened('photos_one_split'))
  first, second = sources
  assert first.class_names == second.class_names == ('a', 'b')
  for one, other in ((first.train, second.train), (first.val, second.val)):
    assert list(one.ids) == list(other.ids)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert photos(one) == photos(other)


@pytest.mark.parametrize('file_format', FORMATS)
def test_every_photo_comes_once_with_its_own_label(file_format):
  prepare('photos_one_split', file_format)
  source = opened('photos_one_split')
  shades = []
  for split in (source.train, source.val):
    assert split.labels.dtype == np.int32
    assert len(set(split.ids)) == len(split.ids)
    for index, label in enumerate(split.labels.tolist()):
      shade = decode(split.read(index), Decoding(8, 8))[0, 0, 0]
      assert round((shade - 100 * label) / 2) % 2 == label
      shades.append(int(shade))
  assert len(shades) == 60
  expected = sorted(shade_of(index, index % 2) for index in range(60))
  np.testing.assert_allclose(sorted(shades), expected, atol=1)


@pytest.mark.parametrize('file_format', FORMATS)
def test_reading_in_another_order_gives_the_same_photos(file_format):
  prepare('photos_one_split', file_format)
  train = opened('photos_one_split').train
  in_order = photos(train)
  chosen = [5, 0, 11, 5]
  assert ([train.select(chosen).read(i) for i in range(4)]
          == [in_order[train.ids[i]] for i in chosen])


def test_a_single_split_is_divided_by_the_fraction():
  prepare('photos_one_split')
  for val_fraction, val_count in ((0.25, 15), (0.5, 30)):
    source = opened('photos_one_split', val_fraction=val_fraction)
    assert (len(source.train), len(source.val)) == (60 - val_count, val_count)
    assert not set(photos(source.train).values()) & set(
        photos(source.val).values())


def test_the_own_train_and_validation_splits_are_taken():
  prepare('photos_two_splits')
  source = opened('photos_two_splits')
  assert source.name == 'tfds:photos_two_splits'
  assert (len(source.train), len(source.val)) == (8, 6)


@pytest.mark.parametrize('file_format', FORMATS)
def test_given_splits_are_taken(file_format):
  prepare('photos_two_splits', file_format)
  source = opened('photos_two_splits', train_split='train[:50%]+validation',
                  val_split='test')
  assert (len(source.train), len(source.val)) == (10, 4)


@pytest.mark.parametrize('file_format', FORMATS)
def test_names_of_their_own_become_the_ids(file_format):
  prepare('photos_named', file_format)
  source = opened('photos_named', train_split='train', val_split='train[:50%]')
  assert {name.rpartition('/')[2] for name in source.train.ids} == {
      f'größe {index}.jpg' for index in range(60)}


def test_of_several_labels_one_must_be_named():
  prepare('photos_two_labels')
  with pytest.raises(UserError, match='data.label_key.*label, size'):
    opened('photos_two_labels')
  with pytest.raises(UserError, match="'colour'.*label, size"):
    opened('photos_two_labels', label_key='colour')
  by_label = opened('photos_two_labels', label_key='label')
  by_size = opened('photos_two_labels', label_key='size')
  assert by_label.class_names == ('a', 'b')
  assert by_size.class_names == ('small', 'big')
  np.testing.assert_array_equal(by_label.train.labels,
                                1 - by_size.train.labels)


@pytest.mark.parametrize('name', ['no_such_set', 'no such set', '../etc', ''])
def test_an_unknown_set_is_refused(name):
  with pytest.raises(UserError) as error:
    opened(name)
  assert repr(name) in str(error.value)


@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize('split', ['holdout', 'train[:5', 'train[:200%]'])
def test_an_unknown_split_is_refused(file_format, split):
  prepare('photos_two_splits', file_format)
  for splits in ((split, 'test'), ('train', split)):
    with pytest.raises(UserError) as error:
      opened('photos_two_splits', 'auto', *splits)
    assert repr(split) in str(error.value)
    assert 'train, validation' in str(error.value)


def test_a_set_without_a_train_split_asks_for_two():
  prepare('photos_no_train')
  with pytest.raises(UserError, match='data.train_split.*first, second'):
    opened('photos_no_train')
  source = opened('photos_no_train', train_split='first', val_split='second')
  assert (len(source.train), len(source.val)) == (4, 4)


def test_a_split_that_lacks_a_class_is_refused():
  prepare('photos_two_splits')
  for splits in (('train', 'test[:1]'), ('test[:1]', 'train')):
    with pytest.raises(UserError, match=r"'test\[:1\]'.*no photo of '[ab]'"):
      opened('photos_two_splits', 'auto', *splits)


@pytest.mark.parametrize('file_format', FORMATS)
def test_an_empty_split_is_refused(file_format):
  prepare('photos_two_splits', file_format)
  with pytest.raises(UserError, match=r'train\[:0\]'):
    opened('photos_two_splits', train_split='train[:0]', val_split='test')


def test_a_set_without_photos_is_refused():
  prepare('numbers_no_photos')
  with pytest.raises(UserError, match='numbers_no_photos.*text'):
    opened('numbers_no_photos')


def test_a_set_that_is_not_prepared_is_prepared(data_dir):
  assert len(opened('photos_two_splits').train) == 8
  assert list(data_dir.rglob('*.array_record*'))
  assert len(opened('photos_two_splits').train) == 8  # From where it lies now.


def test_a_set_out_of_reach_is_refused():
  with pytest.raises(UserError) as error:
    opened('photos_out_of_reach')
  message = str(error.value)
  assert 'photos_out_of_reach' in message and 'the server' in message
  assert 'TFDS_DATA_DIR' in message and '\n' not in message
