"""The picture book: the same for everyone, balanced, and never half there."""

import functools
import io
import pathlib
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from catsdogs.datasets import Source, Split, drawn
from catsdogs.datasets.drawn_builder import DrawnCatsDogs, open_drawn
from catsdogs.errors import UserError
from catsdogs.photos import Decoding, decode

ROOT = pathlib.Path(__file__).parent.parent

SIZES = {(128, 128), (160, 128), (128, 160)}


def drawn_as(kind: str, *seed: int) -> np.ndarray:
  return np.asarray(drawn.draw(kind, np.random.default_rng(seed)))


@pytest.mark.parametrize('kind', drawn.KINDS)
def test_a_picture_depends_on_the_random_state_alone(kind):
  np.testing.assert_array_equal(drawn_as(kind, 3), drawn_as(kind, 3))
  first, second = (drawn.draw(kind, np.random.default_rng(seed))
                   for seed in (3, 4))
  assert first.tobytes() != second.tobytes()


def test_pictures_are_rgb_of_a_few_shapes_and_full_of_colour():
  pictures = [drawn.draw(kind, np.random.default_rng(seed))
              for kind in drawn.KINDS for seed in range(20)]
  assert {picture.mode for picture in pictures} == {'RGB'}
  assert {picture.size for picture in pictures} == SIZES
  assert all(np.asarray(picture).std() > 5 for picture in pictures)


def test_the_shorter_side_is_the_size_asked_for():
  pictures = [drawn.draw('dog', np.random.default_rng(seed), size_px=48)
              for seed in range(10)]
  assert {min(picture.size) for picture in pictures} == {48}


def test_a_cat_is_not_a_dog():
  """From the same state: the scene agrees, the animal does not."""
  for seed in range(5):
    difference = np.abs(drawn_as('cat', seed).astype(int)
                        - drawn_as('dog', seed).astype(int))
    assert (difference > 30).mean() > 0.01


def test_colours_do_not_give_the_class_away():
  """The classes' mean colours agree to within what chance would do."""
  means = {kind: np.array([drawn_as(kind, 7, seed).mean(axis=(0, 1))
                           for seed in range(60)]) for kind in drawn.KINDS}
  gap = means['cat'].mean(axis=0) - means['dog'].mean(axis=0)
  error = np.sqrt(sum(mean.var(axis=0) / 60 for mean in means.values()))
  assert (np.abs(gap) < 4 * error).all()


def test_an_unknown_kind_is_refused():
  with pytest.raises(ValueError, match='cow'):
    drawn.draw('cow', np.random.default_rng(0))


def test_the_version_is_that_of_the_pictures():
  """Other pictures need another version, or old ones are taken for them."""
  assert str(DrawnCatsDogs.VERSION) == '1.0.0'
  for kind, expected in (
      ('cat', [108, 112, 115, 126, 122, 117, 124, 139,
               132, 132, 139, 154, 130, 126, 135, 143]),
      ('dog', [154, 151, 150, 149, 164, 161, 157, 147,
               176, 170, 163, 179, 170, 194, 190, 198])):
    small = drawn.draw(kind, np.random.default_rng(0)).convert('L')
    found = np.asarray(small.resize((4, 4), Image.Resampling.BOX)).ravel()
    np.testing.assert_allclose(found, expected, atol=2)


def test_the_contact_sheet_shows_both_kinds():
  sheet = drawn.contact_sheet(columns=3, rows=2, side_px=40)
  assert sheet.size == (120, 80)
  tiles = [sheet.crop((x, y, x + 40, y + 40)).tobytes()
           for y in (0, 40) for x in (0, 40, 80)]
  assert len(set(tiles)) == 6


def test_names_kinds_and_bytes_of_a_split():
  pictures = list(drawn.draw_split('validation', 6, processes=1))
  assert [(name, kind) for name, kind, _ in pictures] == [
      (f'{kind}.{index}', kind) for kind in drawn.KINDS for index in range(3)]
  assert len({jpeg for *_, jpeg in pictures}) == 6  # No picture twice.
  for *_, jpeg in pictures:
    with Image.open(io.BytesIO(jpeg)) as picture:
      assert picture.format == 'JPEG' and picture.size in SIZES


@pytest.mark.parametrize('count', [3, -2])
def test_classes_of_unequal_size_are_refused(count):
  with pytest.raises(ValueError, match='even'):
    list(drawn.draw_split('train', count, processes=1))


def test_the_bytes_do_not_depend_on_processes_nor_on_how_many_follow():
  alone, more, other, validation = (
      {name: jpeg for name, _, jpeg in drawn.draw_split(*arguments)}
      for arguments in (('train', 8, 1, 1), ('train', 12, 1, 2),
                        ('train', 8, 2, 1), ('validation', 8, 1, 1)))
  assert alone == {name: more[name] for name in alone}
  assert not set(alone.values()) & set(other.values())
  assert not set(alone.values()) & set(validation.values())


def test_painters_load_neither_jax_nor_tensorflow():
  loaded = subprocess.run(
      [sys.executable, '-c', 'import sys, catsdogs.datasets.drawn; '
       'print(*sys.modules)'], cwd=ROOT, capture_output=True, text=True,
      check=True).stdout.split()
  assert 'PIL' in loaded
  assert not {'jax', 'tensorflow', 'tensorflow_datasets'} & set(loaded)


@pytest.fixture
def small_book(monkeypatch):
  """A book of 12 and 6 pictures, drawn by this process alone."""
  monkeypatch.setattr(DrawnCatsDogs, 'COUNTS', {'train': 12, 'validation': 6})
  monkeypatch.setattr(drawn, 'draw_split', functools.partial(
      drawn.draw_split, processes=1))


def photos(split: Split) -> dict[str, bytes]:
  return {name: split.read(i) for i, name in enumerate(split.ids)}


def assert_whole(source: Source) -> None:
  """The small book, with every picture as it was drawn."""
  for split, name, count in ((source.train, 'train', 12),
                             (source.val, 'validation', 6)):
    assert photos(split) == {f'bundled/{name}/{own}': jpeg for own, _, jpeg
                             in drawn.draw_split(name, count)}
    kinds = [own.rpartition('/')[2].split('.')[0] for own in split.ids]
    assert kinds == [source.class_names[label] for label in split.labels]


def test_the_book_holds_the_bytes_that_were_drawn(small_book, tmp_path):
  source = open_drawn(tmp_path)
  assert (source.name, source.class_names) == ('bundled', ('cat', 'dog'))
  assert_whole(source)
  files = list(tmp_path.rglob('*/1.0.0/*-of-*'))
  assert len(files) == 2 and all('array_record' in f.name for f in files)


def test_a_run_says_one_line_and_the_next_none(small_book, tmp_path, capfd):
  open_drawn(tmp_path)
  out, err = capfd.readouterr()
  assert out.count('\n') == 1 and 'first time' in out and not err
  open_drawn(tmp_path)
  assert capfd.readouterr() == ('', '')


def test_the_second_call_draws_nothing(small_book, tmp_path, monkeypatch):
  first = open_drawn(tmp_path)
  monkeypatch.setattr(drawn, 'draw_split', None)
  second = open_drawn(tmp_path)
  assert photos(first.val) == photos(second.val)
  assert list(first.train.ids) == list(second.train.ids)


def test_other_splits_may_be_asked_for(small_book, tmp_path):
  source = open_drawn(tmp_path, 'train[:10]+validation', 'train[10:]')
  assert (len(source.train), len(source.val)) == (16, 2)
  with pytest.raises(UserError, match="bundled has no split 'test'.*train"):
    open_drawn(tmp_path, 'train', 'test')


def test_another_version_has_a_folder_of_its_own(small_book, tmp_path,
                                                 monkeypatch):
  open_drawn(tmp_path)
  monkeypatch.setattr(DrawnCatsDogs, 'VERSION', tfds.core.Version('9.0.0'))
  monkeypatch.setattr(DrawnCatsDogs, 'SEED', 1)
  source = open_drawn(tmp_path)
  jpegs = {jpeg for *_, jpeg in drawn.draw_split('train', 12, 1)}
  assert set(photos(source.train).values()) == jpegs


def test_it_is_a_builder_like_any_other(small_book, tmp_path):
  builder = tfds.builder('drawn_cats_dogs', data_dir=tmp_path / 'tfds')
  builder.download_and_prepare()  # As TFRecord, TFDS's default.
  examples = list(tfds.as_numpy(builder.as_dataset(split='train')))
  jpegs = {name: jpeg for name, _, jpeg in drawn.draw_split('train', 12)}
  assert {e['id'].decode() for e in examples} == set(jpegs)
  for example in examples:
    kind, _, _ = example['id'].decode().partition('.')
    assert drawn.KINDS[example['label']] == kind
    pixels = Image.open(io.BytesIO(jpegs[example['id'].decode()]))
    np.testing.assert_allclose(example['image'].astype(int),
                               np.asarray(pixels).astype(int), atol=12)
  assert_whole(open_drawn(tmp_path))  # Which takes what is there.


def test_a_run_that_is_killed_leaves_no_half_book(small_book, tmp_path):
  """Killed outright while several paint; they go, too."""
  code = ('import pathlib, sys; from catsdogs.datasets import drawn_builder; '
          'drawn_builder.open_drawn(pathlib.Path(sys.argv[1]))')
  process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)],
                             cwd=ROOT, stdout=subprocess.DEVNULL)
  deadline = time.monotonic() + 60
  painters = []
  while len(painters) < 3:  # At least two, and multiprocessing's own.
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
    painters = pathlib.Path(
        f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
  assert list(tmp_path.rglob('incomplete*'))
  time.sleep(0.5)
  process.kill()
  process.wait()
  assert not list(tmp_path.rglob('1.0.0'))
  while any(map(is_alive, painters)):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  assert_whole(open_drawn(tmp_path))


def is_alive(pid: str) -> bool:
  try:
    status = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return status.rpartition(')')[2].split()[0] != 'Z'


def test_an_interrupted_run_leaves_nothing(
    small_book, tmp_path, monkeypatch):
  draw = drawn.draw_split

  def interrupted(*arguments):
    yield next(draw(*arguments))
    raise KeyboardInterrupt

  monkeypatch.setattr(drawn, 'draw_split', interrupted)
  with pytest.raises(KeyboardInterrupt):
    open_drawn(tmp_path)
  assert not list(tmp_path.rglob('*1.0.0*'))
  monkeypatch.setattr(drawn, 'draw_split', draw)
  assert_whole(open_drawn(tmp_path))


def test_the_run_that_comes_second_takes_the_book_of_the_first(
    small_book, tmp_path, monkeypatch):
  draw, others = drawn.draw_split, []

  def draw_while_another_run_finishes(*arguments):
    if not others:
      others.append(None)
      others[0] = open_drawn(tmp_path)
    return draw(*arguments)

  monkeypatch.setattr(drawn, 'draw_split', draw_while_another_run_finishes)
  assert_whole(open_drawn(tmp_path))
  assert_whole(others[0])
  assert [path.name for path in tmp_path.rglob('*1.0.0*')] == ['1.0.0']


def test_a_failure_to_write_is_told(small_book, tmp_path):
  (tmp_path / 'cache').write_text('not a folder')
  with pytest.raises(UserError, match='set CATSDOGS_CACHE'):
    open_drawn(tmp_path / 'cache')


@pytest.mark.slow
def test_no_linear_view_of_the_pixels_tells_the_classes_apart(tmp_path):
  """Logistic regression on the whole book, at the best of several decays."""
  source = open_drawn(tmp_path)
  for size, mode in ((32, 'RGB'), (64, 'L')):
    accuracies = logistic_accuracies(
        pixels(source.train, size, mode), source.train.labels,
        pixels(source.val, size, mode), source.val.labels)
    print(f'{size} px {mode}: {accuracies}')
    assert max(accuracies) < 0.7
  # The same fit finds what is there to be found: which pictures are bright.
  train, val = (pixels(split, 32, 'RGB')
                for split in (source.train, source.val))
  middle = np.median(train.mean(axis=1))
  bright = [x.mean(axis=1) > middle for x in (train, val)]
  assert max(logistic_accuracies(train, bright[0], val, bright[1])) > 0.9


def pixels(split: Split, size: int, mode: str) -> np.ndarray:
  decoding = Decoding(size, size)
  pictures = (Image.fromarray(decode(split.read(i), decoding)).convert(mode)
              for i in range(len(split)))
  return np.stack([np.asarray(p, np.float32).ravel() for p in pictures])


def logistic_accuracies(x: np.ndarray, y: np.ndarray, val_x: np.ndarray,
                        val_y: np.ndarray, components: int = 500
                        ) -> list[float]:
  """By Newton's method on principal components, for decays 1e-4 to 1."""
  mean = x.mean(axis=0)
  values, vectors = np.linalg.eigh((x - mean) @ (x - mean).T)
  basis = (x - mean).T @ (vectors[:, -components:] / values[-components:]**0.5)
  scale = ((x - mean) @ basis).std()  # One for all: the pixels' own metric.
  x, val_x = (np.c_[(a - mean) @ basis / scale, np.ones(len(a))]
              for a in (x, val_x))
  accuracies = []
  for decay in np.logspace(-4, 0, 5):
    weights = np.zeros(components + 1)
    for _ in range(12):
      p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
      slope = x.T @ (p - y) / len(x) + decay * weights
      bend = (x.T * (p * (1 - p))) @ x / len(x) + decay * np.eye(len(weights))
      weights = weights - np.linalg.solve(bend, slope)
    accuracies.append(float(((val_x @ weights > 0) == val_y).mean()))
  return accuracies
