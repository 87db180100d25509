"""From photos to batches: which, in what order, and what of bad ones."""

from collections.abc import Sequence
import io
import os
import pathlib
import shutil

import jax
import ml_collections
import numpy as np
from PIL import Image
import pytest

from catsdogs import input_pipeline
from catsdogs.datasets import Source, Split
from catsdogs.datasets.folder import open_folder
from catsdogs.errors import UserError
from catsdogs.photos import Decoding

SIZE = 8
DECODING = Decoding(SIZE, SIZE)


def data_config(root: pathlib.Path, **fields) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      'source': f'folder:{root}', 'val_fraction': 0.25,
      'sample_fraction': 1.0, 'cache_gib': 1.0, **fields})


def prepared(root: pathlib.Path, **fields) -> input_pipeline.Data:
  return input_pipeline.prepare_data(data_config(root, **fields), DECODING,
                                     root / 'cache')


def png(shade: int) -> bytes:
  buffer = io.BytesIO()
  Image.new('RGB', (SIZE, SIZE), (shade,) * 3).save(buffer, 'PNG')
  return buffer.getvalue()


def split_of(contents: Sequence[bytes], labels: Sequence[int]) -> Split:
  return Split([f'{index}.png' for index in range(len(contents))],
               np.array(labels, np.int32), contents.__getitem__)


def gray_photos(count: int, cache_bytes: float = 1e6) -> input_pipeline.Photos:
  """The shade of each photo is its index, and so is its label."""
  split = split_of([png(index) for index in range(count)], range(count))
  return input_pipeline.read_photos(split, DECODING, cache_bytes)


def on_one_device() -> jax.sharding.Sharding:
  return jax.sharding.SingleDeviceSharding(jax.devices('cpu')[0])


def train_batches(photos, batch_size=5, start=0, stop=6, seed=0):
  return [jax.device_get(batch) for batch in input_pipeline.create_train_iter(
      photos, seed, batch_size, start, stop, on_one_device())]


def assert_same_batches(first, second):
  assert len(first) == len(second) > 0
  for one, other in zip(first, second):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# The order.


def first_places(seed: int, count: int, batch_size: int, stop: int,
                 start: int = 0) -> list[int]:
  return np.concatenate([
      input_pipeline.train_indices(seed, count, step, batch_size)
      for step in range(start, stop)]).tolist()


@pytest.mark.parametrize('count,batch_size', [
    (12, 4), (10, 4), (7, 7), (5, 12), (3, 8), (1, 4), (11, 1)])
def test_every_pass_holds_every_photo_once(count, batch_size):
  steps = 4 * count
  places = first_places(3, count, batch_size, steps)
  assert len(places) == steps * batch_size
  for begin in range(0, len(places), count):
    photos = places[begin:begin + count]
    assert len(set(photos)) == len(photos)
    assert set(photos) <= set(range(count))


def test_every_pass_and_every_seed_has_an_order_of_its_own():
  orders = {tuple(first_places(seed, 50, 50, stop, stop - 1))
            for seed in range(4) for stop in range(1, 5)}
  assert len(orders) == 16
  assert tuple(range(50)) not in orders


def test_the_order_does_not_depend_on_where_it_starts():
  whole = first_places(1, 10, 4, 20)
  for start in range(20):
    assert first_places(1, 10, 4, 20, start) == whole[4 * start:]


def test_the_order_does_not_depend_on_the_batch_size():
  assert first_places(2, 10, 6, 10) == first_places(2, 10, 4, 15)


# Samples.


def two_classes(count: int) -> Split:
  return split_of([b''] * count, np.arange(count) % 2)


@pytest.mark.parametrize('count,expected', [(7178, 358), (1796, 89)])
def test_a_twentieth_is_rounded_down_and_even(count, expected):
  sampled = input_pipeline.sample(two_classes(count), 1 / 20)
  assert len(sampled) == expected
  first, second = np.bincount(sampled.labels)
  assert abs(first - second) <= 1


@pytest.mark.parametrize('fraction', [1e-9, 0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize('counts', [
    (1, 1), (100, 1), (1, 100), (100, 1, 1, 1, 1), (3, 50, 2, 50), (10, 10)])
def test_each_class_keeps_its_share_and_at_least_one(counts, fraction):
  labels = np.repeat(np.arange(len(counts)), counts)
  sampled = input_pipeline.sample(split_of([b''] * len(labels), labels),
                                  fraction)
  taken = np.bincount(sampled.labels, minlength=len(counts))
  share = np.array(counts) * fraction
  assert (taken >= np.maximum(1, np.floor(share) - 1)).all()
  assert (taken <= np.maximum(1, np.ceil(share))).all()


def test_the_whole_is_its_own_sample():
  whole = two_classes(11)
  assert list(input_pipeline.sample(whole, 1.0).ids) == list(whole.ids)


def test_a_sample_is_stable_and_keeps_the_order():
  whole = two_classes(200)
  sampled = input_pipeline.sample(whole, 0.2)
  assert list(input_pipeline.sample(whole, 0.2).ids) == list(sampled.ids)
  places = [whole.ids.index(name) for name in sampled.ids]
  assert places == sorted(places)
  assert (sampled.labels == whole.labels[places]).all()


def test_a_sample_is_the_same_on_every_machine():
  assert list(input_pipeline.sample(two_classes(20), 0.2).ids) == [
      '0.png', '4.png', '5.png', '9.png']


def test_a_sample_depends_on_the_names_and_not_on_their_order():
  whole = two_classes(200)
  turned = whole.select(range(199, -1, -1))
  assert set(input_pipeline.sample(turned, 0.2).ids) == set(
      input_pipeline.sample(whole, 0.2).ids)


def test_a_larger_sample_holds_the_smaller_one():
  whole = two_classes(200)
  assert set(input_pipeline.sample(whole, 0.1).ids) < set(
      input_pipeline.sample(whole, 0.3).ids)


# What is read.


def test_photos_are_what_their_content_says(photo_folder):
  root = photo_folder({'cat': 4, 'dog': 4})
  with Image.open(root / 'cat' / 'cat.0.jpg') as photo:
    for index, kind in enumerate(('PNG', 'GIF', 'BMP', 'WEBP'), start=10):
      photo.save(root / 'cat' / f'cat.{index}.jpg', kind)
  data = prepared(root)
  assert not data.skipped
  assert len(data.train) + len(data.val) == 12


def test_bad_files_are_left_out_with_their_reasons():
  contents = [png(index) for index in range(40)]
  contents[3], contents[17] = b'', b'Not Found'
  photos = input_pipeline.read_photos(split_of(contents, range(40)),
                                      DECODING, 1e6)
  assert [file for file, _ in photos.skipped] == ['3.png', '17.png']
  assert all(reason for _, reason in photos.skipped)
  good = [index for index in range(40) if index not in (3, 17)]
  assert len(photos) == 38
  assert list(photos.split.ids) == [f'{index}.png' for index in good]
  assert photos.split.labels.tolist() == good
  batch = photos.batch(np.arange(38))
  assert batch['mask'].all() and batch['label'].tolist() == good
  for image, shade in zip(batch['image'], good):
    assert (image == shade).all()


def test_a_link_that_leads_nowhere_is_left_out(photo_folder):
  root = photo_folder({'train/cat': 9, 'train/dog': 9, 'val/cat': 2,
                       'val/dog': 2})
  (root / 'train' / 'cat' / 'gone.jpg').symlink_to('nowhere.jpg')
  data = prepared(root)
  assert [file for file, _ in data.skipped] == ['train/cat/gone.jpg']
  assert data.skipped[0][1]


def test_the_cache_changes_nothing_but_the_memory():
  photo_bytes = SIZE * SIZE * 3
  kept, batches = [], []
  for cache_bytes in (0, 3.5 * photo_bytes, 1e6):
    photos = gray_photos(12, cache_bytes)
    kept.append(len(photos.decoded))
    batches.append(train_batches(photos))
  assert kept == [0, 3, 12]
  assert_same_batches(batches[0], batches[1])
  assert_same_batches(batches[0], batches[2])


def test_the_cache_holds_both_sides_within_its_bound(photo_folder):
  root = photo_folder({'cat': 20, 'dog': 20})
  bound = 33 * SIZE * SIZE * 3
  data = prepared(root, cache_gib=bound / 2**30)
  assert (len(data.train.decoded), len(data.val.decoded)) == (30, 3)


# Batches.


def test_a_batch_holds_the_photos_of_its_indices():
  photos = gray_photos(12)
  batches = train_batches(photos, batch_size=5, start=2, stop=6, seed=7)
  assert len(batches) == 4
  for step, batch in enumerate(batches, start=2):
    indices = input_pipeline.train_indices(7, 12, step, 5)
    assert batch['image'].shape == (5, SIZE, SIZE, 3)
    assert batch['image'].dtype == np.uint8
    assert batch['label'].dtype == np.int32
    assert batch['mask'].dtype == np.float32
    np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], indices)
    np.testing.assert_array_equal(batch['label'], indices)
    assert (batch['mask'] == 1).all()


def test_a_run_that_continues_gets_the_batches_it_missed():
  photos = gray_photos(12)
  whole = train_batches(photos, stop=6)
  assert_same_batches(train_batches(photos, start=4, stop=6), whole[4:])


def test_a_batch_may_be_larger_than_the_data():
  batch, = train_batches(gray_photos(3), batch_size=7, stop=1)
  shown = batch['label'].tolist()
  assert sorted(shown[:3]) == sorted(shown[3:6]) == [0, 1, 2]
  assert (batch['mask'] == 1).all()


@pytest.mark.parametrize('batch_size', [1, 3, 11, 16])
def test_evaluation_sees_every_photo_exactly_once(batch_size):
  photos = gray_photos(11)
  batches = input_pipeline.create_eval_iter(photos, batch_size,
                                            on_one_device())
  seen = []
  for step, batch in enumerate(jax.device_get(list(batches))):
    assert batch['image'].shape == (batch_size, SIZE, SIZE, 3)
    real = batch['mask'] == 1
    indices = input_pipeline.eval_indices(11, step, batch_size)
    np.testing.assert_array_equal(real, indices >= 0)
    np.testing.assert_array_equal(batch['label'][real], indices[real])
    np.testing.assert_array_equal(batch['image'][real, 0, 0, 0], indices[real])
    assert (batch['mask'][~real] == 0).all()
    seen += indices[real].tolist()
  assert seen == list(range(11))


@pytest.mark.parametrize('damage', ['vanishes', 'is emptied', 'links to itself',
                                    'is another photo', 'is a pipe'])
def test_a_file_that_goes_bad_later_is_masked_and_named(photo_folder, damage):
  root = photo_folder({'train/cat': 4, 'train/dog': 4, 'val/cat': 1,
                       'val/dog': 1})
  photos = prepared(root, cache_gib=0.0).train
  whole = train_batches(photos, batch_size=8, stop=2)
  lost = photos.split.ids[5]
  content = {'is emptied': b'', 'is another photo': png(7)}.get(damage)
  (root / lost).unlink()
  if content is not None:
    (root / lost).write_bytes(content)
  elif damage == 'is a pipe':
    os.mkfifo(root / lost)
  elif damage == 'links to itself':
    (root / lost).symlink_to(lost)
  batches = train_batches(photos, batch_size=8, stop=2)
  assert [file for file, _ in photos.skipped] == [lost]
  for step, (before, after) in enumerate(zip(whole, batches, strict=True)):
    there = input_pipeline.train_indices(0, 8, step, 8) != 5
    np.testing.assert_array_equal(after['mask'], there)
    np.testing.assert_array_equal(after['label'], before['label'])
    np.testing.assert_array_equal(after['image'][there],
                                  before['image'][there])


# What stops a run.


def source_with_bad(bad: int, total: int = 40
                    ) -> tuple[Source, list[input_pipeline.Photos]]:
  contents = [b'' if i % 40 in range(8, 8 + bad) else png(i)
              for i in range(total)]
  split = split_of(contents, np.arange(total) % 2)
  source = Source('folder:pets', ('cat', 'dog'), split, split)
  return source, [input_pipeline.read_photos(split, DECODING, 1e6)]


def test_a_tenth_of_bad_files_is_fine_and_one_more_is_not():
  source, sides = source_with_bad(4)
  input_pipeline.check_photos(source, *sides)
  source, sides = source_with_bad(5)
  with pytest.raises(UserError) as error:
    input_pipeline.check_photos(source, *sides)
  message = str(error.value)
  assert '5 of 40' in message and 'folder:pets' in message
  assert '8.png' in message and '10%' in message and '\n' not in message


def test_bad_files_are_counted_over_both_sides():
  source, (damaged,) = source_with_bad(5)
  input_pipeline.check_photos(source, damaged, gray_photos(10))
  with pytest.raises(UserError, match='10 of 80'):
    input_pipeline.check_photos(source, damaged, damaged)


@pytest.mark.parametrize('side', ['train', 'val'])
def test_a_class_without_a_good_photo_stops_the_run(photo_folder, side):
  root = photo_folder({'train/cat': 30, 'train/dog': 30, 'val/cat': 30,
                       'val/dog': 30})
  shutil.rmtree(root / side / 'cat')
  (root / side / 'cat').mkdir()
  (root / side / 'cat' / 'cat.0.jpg').write_bytes(b'Not Found')
  with pytest.raises(UserError, match="'cat'"):
    prepared(root)


# The fingerprint.


def test_the_fingerprint_follows_the_files_and_not_the_folder(photo_folder,
                                                              tmp_path):
  root = photo_folder({'cat': 8, 'dog': 8})
  before = prepared(root).fingerprint
  moved = pathlib.Path(shutil.move(root, tmp_path / 'moved'))
  assert prepared(moved).fingerprint == before
  assert prepared(moved, cache_gib=0.0).fingerprint == before
  file = moved / 'cat' / 'cat.3.jpg'
  file.write_bytes(file.read_bytes() + b'\0')
  assert prepared(moved).fingerprint != before


@pytest.mark.parametrize('change', ['remove', 'rename', 'relabel'])
def test_the_fingerprint_tells_what_changed(photo_folder, change):
  counts = {f'{side}/{kind}': 4 for side in ('train', 'val')
            for kind in ('cat', 'dog')}
  root = photo_folder(counts)
  before = prepared(root).fingerprint
  file = root / 'val' / 'cat' / 'cat.0.jpg'
  if change == 'remove':
    file.unlink()
  else:
    file.rename(file.with_name('new.jpg') if change == 'rename'
                else root / 'val' / 'dog' / 'cat.0.jpg')
  assert prepared(root).fingerprint != before


# The whole.


def test_prepared_data_are_the_sampled_sides_of_the_source(photo_folder):
  root = photo_folder({'train/cat': 12, 'train/dog': 12, 'val/cat': 6,
                       'val/dog': 6})
  source = open_folder(root, 0.25)
  data = prepared(root, sample_fraction=0.5)
  assert data.class_names == source.class_names == ('cat', 'dog')
  assert data.source.name == f'folder:{root}'
  assert (len(data.train), len(data.val)) == (12, 6)
  assert set(data.train.split.ids) < set(source.train.ids)
  assert set(data.val.split.ids) < set(source.val.ids)


def test_another_set_of_classes_than_the_checkpoints_is_refused(photo_folder):
  source = open_folder(photo_folder({'cat': 2, 'dog': 2}), 0.5)
  input_pipeline.check_classes(source, ('cat', 'dog'))
  for class_names in (('dog', 'cat'), ('cat', 'dog', 'wolf'), ('cat',)):
    with pytest.raises(UserError, match=', '.join(class_names)):
      input_pipeline.check_classes(source, class_names)
