"""The picture book: the same for everyone, balanced, and never half there."""

import pathlib

import numpy as np
from PIL import Image
import pytest

from catsdogs.datasets import drawn

SIZES = {(128, 128), (160, 128), (128, 160)}


def files_in(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.relative_to(folder).as_posix(): path.read_bytes()
          for path in folder.rglob('*') if path.is_file()}


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


def test_counts_and_names_of_the_files(tmp_path):
  drawn.write_pictures(tmp_path, train_count=6, val_count=4, processes=1)
  expected = {f'{split}/{kind}/{kind}.{index}.jpg'
              for split, count in (('train', 6), ('val', 4))
              for kind in ('cat', 'dog') for index in range(count // 2)}
  files = files_in(tmp_path)
  assert set(files) == expected
  assert len(set(files.values())) == len(expected)  # No picture twice.
  for name in expected:
    with Image.open(tmp_path / name) as picture:
      assert picture.format == 'JPEG' and picture.size in SIZES


@pytest.mark.parametrize('count', [3, -2])
def test_classes_of_unequal_size_are_refused(tmp_path, count):
  with pytest.raises(ValueError, match='even'):
    drawn.write_pictures(tmp_path, train_count=count, processes=1)


def test_the_bytes_do_not_depend_on_processes_nor_on_how_many_follow(tmp_path):
  drawn.write_pictures(tmp_path / 'one', 8, 2, seed=1, processes=1)
  drawn.write_pictures(tmp_path / 'two', 12, 2, seed=1, processes=2)
  drawn.write_pictures(tmp_path / 'other', 8, 2, seed=2, processes=1)
  one, two, other = (files_in(tmp_path / name)
                     for name in ('one', 'two', 'other'))
  assert one == {name: two[name] for name in one}
  assert not set(one.values()) & set(other.values())


def test_the_second_call_draws_nothing(tmp_path, monkeypatch):
  first = drawn.prepare(tmp_path / 'cache', 4, 2, processes=1)
  assert len(files_in(first)) == 6
  monkeypatch.setattr(drawn, 'write_pictures', None)
  assert drawn.prepare(tmp_path / 'cache', 4, 2, processes=1) == first


def test_other_counts_and_seeds_have_folders_of_their_own(tmp_path):
  folders = {drawn.prepare(tmp_path, *arguments, processes=1)
             for arguments in ((2, 2, 0), (4, 2, 0), (2, 2, 1))}
  assert len(folders) == 3


def test_an_interrupted_run_leaves_nothing_that_is_taken_for_the_set(
    tmp_path, monkeypatch):
  draw, calls = drawn.draw, []

  def interrupted(*arguments):
    calls.append(arguments)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return draw(*arguments)

  monkeypatch.setattr(drawn, 'draw', interrupted)
  with pytest.raises(KeyboardInterrupt):
    drawn.prepare(tmp_path, 4, 2, processes=1)
  assert not list(tmp_path.iterdir())
  monkeypatch.undo()
  assert len(files_in(drawn.prepare(tmp_path, 4, 2, processes=1))) == 6


def test_what_a_killed_run_left_is_not_taken_for_the_set(
    tmp_path, monkeypatch):
  """Killed outright, so that nothing could be tidied up."""
  monkeypatch.setattr(drawn.shutil, 'rmtree', lambda *_, **__: None)
  monkeypatch.setattr(pathlib.Path, 'rename', _killed)
  with pytest.raises(KeyboardInterrupt):
    drawn.prepare(tmp_path, 4, 2, processes=1)
  monkeypatch.undo()
  [leftover] = tmp_path.iterdir()
  next(leftover.rglob('*.jpg')).unlink()
  assert len(files_in(drawn.prepare(tmp_path, 4, 2, processes=1))) == 6


def _killed(*_):
  raise KeyboardInterrupt


def test_the_run_that_comes_second_takes_the_set_of_the_first(
    tmp_path, monkeypatch):
  write, folders = drawn.write_pictures, []

  def write_while_another_run_finishes(*arguments):
    write(*arguments)
    if not folders:
      folders.append(None)
      folders[0] = drawn.prepare(tmp_path, 2, 2, processes=1)

  monkeypatch.setattr(drawn, 'write_pictures',
                      write_while_another_run_finishes)
  assert drawn.prepare(tmp_path, 2, 2, processes=1) == folders[0]
  assert list(tmp_path.iterdir()) == folders
  assert len(files_in(folders[0])) == 4


def test_a_failure_to_write_is_told(tmp_path):
  (tmp_path / 'cache').write_text('not a folder')
  with pytest.raises(OSError):
    drawn.prepare(tmp_path / 'cache', 2, 2, processes=1)
