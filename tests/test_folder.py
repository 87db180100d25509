"""Folders of photos: what is found in them, and what is refused."""

import os
import pathlib
import shutil

import numpy as np
import pytest

from catsdogs.datasets import Split
from catsdogs.datasets.folder import files_below, natural_key
from catsdogs.datasets.folder import open_folder, open_labelled
from catsdogs.errors import UserError

TRAIN_AND_VAL = ('train/cat/1.jpg', 'train/dog/1.jpg',
                 'val/cat/2.jpg', 'val/dog/2.jpg')


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
  return tmp_path / 'photos'


def write(root: pathlib.Path, *names: str) -> pathlib.Path:
  """Files that hold their own name: to this module all of them are photos."""
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(os.fsencode(name))
  return root


def numbered(folder: str, count: int) -> list[str]:
  return [f'{folder}/{index}.jpg' for index in range(count)]


def labelled(split: Split, class_names: tuple[str, ...]) -> dict[str, str]:
  return {file: class_names[label]
          for file, label in zip(split.ids, split.labels)}


def both_sides(root: pathlib.Path, val_fraction: float = 0.5) -> dict[str, str]:
  source = open_folder(root, val_fraction)
  return {**labelled(source.train, source.class_names),
          **labelled(source.val, source.class_names)}


# What is found.


@pytest.mark.parametrize('val', ['val', 'valid', 'validation', 'test'])
def test_train_and_val_folders_are_the_two_sides(root, val):
  write(root, *(name.replace('val', val) for name in TRAIN_AND_VAL))
  source = open_folder(root, 0.5)
  assert source.class_names == ('cat', 'dog')
  assert source.name == f'folder:{root}'
  assert list(source.train.ids) == ['train/cat/1.jpg', 'train/dog/1.jpg']
  assert list(source.val.ids) == [f'{val}/cat/2.jpg', f'{val}/dog/2.jpg']
  for split in (source.train, source.val):
    assert split.labels.dtype == np.int32
    assert split.labels.tolist() == [0, 1]
    assert [split.read(i) for i in range(2)] == [f.encode() for f in split.ids]


def test_a_train_folder_alone_is_divided(root):
  write(root, *numbered('train/cat', 4), *numbered('train/dog', 4))
  source = open_folder(root, 0.25)
  assert (len(source.train), len(source.val)) == (6, 2)
  assert {*source.train.ids, *source.val.ids} == {
      *numbered('train/cat', 4), *numbered('train/dog', 4)}


def test_class_folders_alone_are_divided(root):
  write(root, *numbered('cat', 4), *numbered('dog', 4))
  source = open_folder(root, 0.25)
  assert source.class_names == ('cat', 'dog')
  assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
  assert source.val.labels.tolist() == [0, 1]


@pytest.mark.parametrize('side', ['', 'train/'])
def test_files_may_bear_their_class_as_a_prefix(root, side):
  classes = {'cat.0.jpg': 'cat', 'cat.1.jpg': 'cat', 'dog.0.jpg': 'dog',
             'cat (1).jpg': 'cat', 'dog12.jpg': 'dog', 'dog-3.jpeg': 'dog',
             'great_pyrenees_15.jpg': 'great_pyrenees',
             'great_pyrenees_16.jpg': 'great_pyrenees'}
  write(root, *(side + name for name in classes), side + 'labels.csv',
        side + '7.jpg')
  assert both_sides(root) == {side + name: kind
                              for name, kind in classes.items()}
  assert {file for file, _ in open_folder(root, 0.5).passed_over} == {
      side + 'labels.csv', side + '7.jpg'}


def test_prefixes_may_have_a_train_and_a_val_folder(root):
  write(root, 'train/cat.0.jpg', 'train/dog.0.jpg', 'val/cat.1.jpg',
        'val/dog.1.jpg')
  source = open_folder(root, 0.5)
  assert list(source.train.ids) == ['train/cat.0.jpg', 'train/dog.0.jpg']
  assert list(source.val.ids) == ['val/cat.1.jpg', 'val/dog.1.jpg']


def test_nested_folders_count_towards_their_class(root):
  files = {'cat/a.jpg': 'cat', 'cat/indoors/b.jpg': 'cat',
           'cat/indoors/dog/c.jpg': 'cat', 'dog/a.jpg': 'dog',
           'dog/x/y/z/b.jpg': 'dog'}
  write(root, *files)
  assert both_sides(root) == files


def test_files_beside_the_class_folders_are_passed_over(root):
  write(root, *TRAIN_AND_VAL, 'train/README.txt')
  source = open_folder(root, 0.5)
  assert [file for file, _ in source.passed_over] == ['train/README.txt']
  assert len(source.train) == 2


def test_hidden_files_and_folders_are_ignored(root):
  files = {'cat/a.jpg': 'cat', 'cat/b.jpg': 'cat', 'dog/a.jpg': 'dog',
           'dog/b.jpg': 'dog'}
  write(root, *files, '.ipynb_checkpoints/c.jpg', 'cat/.DS_Store',
        'dog/.thumbs/d.jpg', '.hidden.jpg')
  assert both_sides(root) == files
  assert not open_folder(root, 0.5).passed_over


def test_classes_and_files_are_in_natural_order(root):
  names = ['class1', 'class2', 'class10', 'Class11', 'class12']
  write(root, *(f'{side}/{name}/{index}.jpg' for side in ('train', 'val')
                for name in names for index in (1, 2, 10)))
  source = open_folder(root, 0.5)
  assert source.class_names == tuple(names)
  assert list(source.train.ids[:3]) == [f'train/class1/{index}.jpg'
                                        for index in (1, 2, 10)]


def test_the_natural_order_is_total():
  names = ['2', '10', 'a', 'A', 'a2', 'a02', 'a10', 'a10b', 'ä', '', '٣',
           os.fsdecode(b'\xff')]
  in_order = sorted(names, key=natural_key)
  assert sorted(reversed(names), key=natural_key) == in_order
  assert in_order.index('2') < in_order.index('10')
  assert in_order.index('a2') < in_order.index('a10')


def test_any_name_will_do(root):
  files = {}
  for kind in ('Grüße, 猫', ' my dog\n(1)'):
    for file in ('a b.jpg', 'naïve,"x".jpg', 'new\nline.jpg', '犬.jpg',
                 os.fsdecode(b'latin-\xe9.jpg')):
      files[f'{kind}/{file}'] = kind
  write(root, *files)
  source = open_folder(root, 0.4)
  assert both_sides(root, 0.4) == files
  for split in (source.train, source.val):
    for index, file in enumerate(split.ids):
      assert split.read(index) == os.fsencode(file)


def test_links_take_their_label_from_where_they_lie(root, tmp_path):
  elsewhere = write(tmp_path / 'elsewhere', 'dog/rex.jpg', 'pets/dog/tom.jpg')
  write(root, 'cat/a.jpg', 'dog/a.jpg')
  (root / 'cat' / 'link.jpg').symlink_to(elsewhere / 'dog' / 'rex.jpg')
  (root / 'cat' / 'more').symlink_to(elsewhere / 'pets')
  (root / 'wolf').symlink_to(elsewhere / 'dog')
  assert both_sides(root) == {
      'cat/a.jpg': 'cat', 'cat/link.jpg': 'cat', 'cat/more/dog/tom.jpg': 'cat',
      'dog/a.jpg': 'dog', 'wolf/rex.jpg': 'wolf'}


def test_a_folder_that_contains_itself_is_entered_once(root):
  files = {'cat/a.jpg': 'cat', 'cat/deep/b.jpg': 'cat', 'dog/a.jpg': 'dog',
           'dog/b.jpg': 'dog'}
  write(root, *files)
  (root / 'cat' / 'again').symlink_to(root / 'cat')
  (root / 'cat' / 'deep' / 'up').symlink_to('..')
  assert both_sides(root) == files


def test_folders_that_link_to_each_other_are_entered_once_each(root):
  """On all their ways through each other, it would take years."""
  folders = [f'cat/{index}' for index in range(12)]
  write(root, *(f'{folder}/a.jpg' for folder in folders), 'dog/a.jpg')
  for folder in folders:
    for other in range(12):
      (root / folder / f'link{other}').symlink_to(f'../{other}')
  found = files_below(root)
  assert len(found) == 13
  assert len({os.path.realpath(root / path) for path in found}) == 13


def test_what_windows_and_macos_hide_is_hidden(root):
  write(root, *TRAIN_AND_VAL)
  files = both_sides(root)
  write(root, 'train/cat/Thumbs.db', 'train/desktop.ini', 'val/dog/Desktop.ini',
        '__MACOSX/train/cat/._1.jpg', 'train/__MACOSX/._cat',
        'val/cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg',
        'train/lost+found/1.jpg', '$RECYCLE.BIN/1.jpg')
  assert both_sides(root) == files
  assert not open_folder(root, 0.5).passed_over


@pytest.mark.parametrize('target', ['nowhere.jpg', 'link.jpg'])
def test_a_link_that_leads_nowhere_is_a_file_that_cannot_be_read(root, target):
  write(root, *TRAIN_AND_VAL)
  (root / 'train' / 'cat' / 'link.jpg').symlink_to(target)
  train = open_folder(root, 0.5).train
  with pytest.raises(OSError):
    train.read(list(train.ids).index('train/cat/link.jpg'))


@pytest.mark.parametrize('place', ['train/cat/pipe.jpg', 'train/pipe.jpg'])
def test_a_pipe_does_not_hang(root, place):
  write(root, *TRAIN_AND_VAL)
  os.mkfifo(root / place)
  train = open_folder(root, 0.5).train
  for index, file in enumerate(train.ids):
    if file == place:
      with pytest.raises(OSError):
        train.read(index)


def test_files_below_gives_all_files_in_natural_order(root):
  write(root, 'b/2.jpg', 'b/10.jpg', 'a.txt', 'b/.hidden', 'b/3/1.jpg')
  assert files_below(root) == ['a.txt', 'b/2.jpg', 'b/3/1.jpg', 'b/10.jpg']


# How classes are divided.


@pytest.mark.parametrize('count,val_fraction,val_count', [
    (100, 0.2, 20), (100, 0.37, 37), (7, 0.2, 1), (9, 0.2, 2), (3, 0.01, 1),
    (3, 0.99, 2), (2, 0.5, 1)])
def test_each_class_gives_its_share_and_at_least_one_a_side(
    root, count, val_fraction, val_count):
  write(root, *numbered('cat', count), *numbered('dog', 10 * count))
  source = open_folder(root, val_fraction)
  cats = np.count_nonzero(source.val.labels == 0)
  dogs = np.count_nonzero(source.val.labels == 1)
  assert cats == val_count
  assert abs(dogs - 10 * count * val_fraction) <= 1
  assert len(source.train) + len(source.val) == 11 * count
  assert set(source.train.ids).isdisjoint(source.val.ids)


def test_a_photo_stays_on_its_side_when_the_folder_moves(root, tmp_path):
  write(root, *numbered('cat', 50), *numbered('dog', 50))
  before = open_folder(root, 0.2)
  moved = shutil.move(root, tmp_path / 'moved')
  after = open_folder(pathlib.Path(moved), 0.2)
  assert after.val.ids == before.val.ids
  assert after.train.ids == before.train.ids


def test_a_photo_is_on_the_same_side_on_every_machine(root):
  write(root, *numbered('cat', 10), *numbered('dög', 10))
  assert list(open_folder(root, 0.2).val.ids) == [
      'cat/2.jpg', 'cat/3.jpg', 'dög/3.jpg', 'dög/4.jpg']


def test_a_photo_stays_on_its_side_when_other_classes_change(root):
  write(root, *numbered('cat', 50), *numbered('dog', 50))
  before = labelled(open_folder(root, 0.2).val, ('cat', 'dog'))
  write(root, *numbered('ant', 30), *numbered('dog/more', 30))
  after = labelled(open_folder(root, 0.2).val, ('ant', 'cat', 'dog'))
  cats = {file for file, kind in before.items() if kind == 'cat'}
  assert {file for file, kind in after.items() if kind == 'cat'} == cats


def test_the_division_does_not_follow_the_names(root):
  """Files are often in the order of their making: a film, then the next."""
  write(root, *numbered('cat', 200), *numbered('dog', 200))
  numbers = [int(pathlib.PurePath(file).stem)
             for file in open_folder(root, 0.2).val.ids]
  for low in range(0, 200, 50):
    assert 5 < sum(low <= number < low + 50 for number in numbers) < 40


def test_a_single_photo_a_class_works_and_is_told(root):
  write(root, 'cat/only.jpg', *numbered('dog', 5))
  source = open_folder(root, 0.2)
  assert 'cat/only.jpg' in source.train.ids
  assert 'cat/only.jpg' in source.val.ids
  assert len(source.notices) == 1
  assert 'cat' in source.notices[0] and 'dog' not in source.notices[0]


def test_an_ordinary_folder_has_nothing_to_tell(root):
  write(root, *numbered('cat', 5), *numbered('dog', 5))
  assert not open_folder(root, 0.2).notices


# What is refused.


def refusal(root: pathlib.Path) -> str:
  with pytest.raises(UserError) as error:
    open_folder(root, 0.2)
  message = str(error.value)
  assert message.startswith('data.source: ') and '\n' not in message
  return message


def test_no_folder_is_refused(root):
  assert str(root) in refusal(root)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
  write(tmp_path, 'photos.zip')
  assert 'photos.zip' in refusal(tmp_path / 'photos.zip')


@pytest.mark.parametrize('names', [
    (), ('.hidden/a.jpg', '.b.jpg'), ('labels.csv', '7.jpg')])
def test_no_images_are_refused(root, names):
  root.mkdir()
  write(root, *names)
  message = refusal(root)
  assert str(root) in message
  assert 'cat.0.jpg' in message  # What it should look like.


def test_class_folders_that_are_all_empty_are_refused(root):
  for name in ('train/cat', 'train/dog', 'val/cat', 'val/dog'):
    (root / name).mkdir(parents=True)
  assert str(root / 'train') in refusal(root)


@pytest.mark.parametrize('names', [
    ('cat/1.jpg', 'cat/2.jpg'), ('cat.1.jpg', 'cat.2.jpg'),
    ('train/cat/1.jpg', 'val/cat/2.jpg')])
def test_one_class_is_refused(root, names):
  message = refusal(write(root, *names))
  assert str(root) in message and 'cat' in message


@pytest.mark.parametrize('side', ['', 'train/', 'val/'])
def test_an_empty_class_is_refused(root, side):
  if side:
    write(root, *TRAIN_AND_VAL)
  else:
    write(root, 'cat/1.jpg', 'dog/1.jpg')
  (root / side / 'hamster').mkdir()
  (root / side / 'hamster' / '.DS_Store').touch()
  message = refusal(root)
  assert "'hamster'" in message and str(root / side) in message


@pytest.mark.parametrize('side,other', [('train', 'val'), ('val', 'train')])
def test_a_class_that_one_side_lacks_is_refused(root, side, other):
  write(root, *TRAIN_AND_VAL, f'{side}/hamster/1.jpg')
  message = refusal(root)
  assert "'hamster'" in message
  assert f'{root / other} lacks' in message


def test_a_long_list_of_classes_is_shortened(root):
  write(root, *TRAIN_AND_VAL, *(f'val/class{i}/1.jpg' for i in range(1000)))
  message = refusal(root)
  assert "'class0'" in message and '995 more' in message
  assert len(message) < 1000


# A folder to evaluate on.


def test_labelled_photos_take_the_labels_of_known_classes(root):
  write(root, 'dog/a.jpg', 'cat/a.jpg', 'cat/more/b.jpg')
  split = open_labelled(root, ('ant', 'dog', 'cat'))
  assert labelled(split, ('ant', 'dog', 'cat')) == {
      'dog/a.jpg': 'dog', 'cat/a.jpg': 'cat', 'cat/more/b.jpg': 'cat'}
  assert split.read(0) == split.ids[0].encode()


def test_labelled_photos_may_bear_prefixes_and_be_of_one_class(root):
  write(root, 'dog.1.jpg', 'dog.2.jpg')
  split = open_labelled(root, ('cat', 'dog'))
  assert split.labels.tolist() == [1, 1]


def test_labelled_photos_of_an_unknown_class_are_refused(root):
  write(root, 'dog/a.jpg', 'wolf/a.jpg')
  with pytest.raises(UserError, match="'wolf'.*'cat', 'dog'.*give photos"):
    open_labelled(root, ('cat', 'dog'))


def test_no_folder_of_labelled_photos_is_refused(root):
  with pytest.raises(UserError, match='--images.*photos'):
    open_labelled(root, ('cat', 'dog'))


def test_labelled_photos_that_are_not_there_are_refused_by_their_flag(root):
  root.mkdir()
  with pytest.raises(UserError, match='^--images: ') as error:
    open_labelled(root, ('cat', 'dog'))
  assert str(root) in str(error.value)
