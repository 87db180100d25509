"""Prediction: which files are meant, and what is said of each."""

import csv
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from catsdogs import models, predict
from catsdogs.architectures import ARCHITECTURES
from catsdogs.errors import UserError
from catsdogs.predict import find_files, predict_files
from catsdogs.preprocessing import Preprocessing
from catsdogs.restore import Restored

NAMES = ('cat', 'dog', 'red panda')


@pytest.fixture(scope='module')
def restored() -> Restored:
  """A model of random weights, whose head, unlike a new one, is random too."""
  architecture = dataclasses.replace(ARCHITECTURES['resnet18'], width=0.125)
  model = models.ResNet(architecture, len(NAMES))
  shapes = models.variable_shapes(model)
  random = np.random.default_rng(0)

  def weights(path, shape):
    if path[-1].key == 'kernel':
      fan_in = np.prod(shape.shape[:-1])
      return random.normal(0, fan_in**-0.5, shape.shape).astype(np.float32)
    return np.full(shape.shape, path[-1].key in ('scale', 'var'), np.float32)

  variables = jax.tree.map_with_path(weights, shapes)
  return Restored(model, variables, NAMES, Preprocessing(32), 'checkpoint 7')


@pytest.fixture
def photos(tmp_path, monkeypatch) -> pathlib.Path:
  """`album/1.png`, `2.png`, `10.png` and `sub/3.png`, seen from beside it."""
  for name in ('1', '2', '10', 'sub/3', '.hidden/4'):
    write_photo(tmp_path / 'album' / f'{name}.png')
  monkeypatch.chdir(tmp_path)
  return tmp_path / 'album'


def write_photo(path: pathlib.Path) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  random = np.random.default_rng([*path.name.encode()])
  color, noise = random.integers(0, 200, 3), random.integers(0, 55, (40, 50, 3))
  Image.fromarray((color + noise).astype(np.uint8)).save(path, 'PNG')
  return path


def read_csv(file: pathlib.Path) -> list[dict[str, str]]:
  with file.open(newline='', encoding='utf-8') as f:
    return list(csv.DictReader(f))


@pytest.mark.parametrize('images,found', [
    ('album/1.png', ['1.png']),
    ('album', ['1.png', '2.png', '10.png', 'sub/3.png']),
    ('album/', ['1.png', '2.png', '10.png', 'sub/3.png']),
    ('./album', ['1.png', '2.png', '10.png', 'sub/3.png']),
    ('album/*.png', ['1.png', '10.png', '2.png']),
    ('album/[12].png', ['1.png', '2.png']),
    ('album/**/3.png', ['sub/3.png']),
    ('album/2.png,album/sub', ['2.png', 'sub/3.png']),
    ('album/sub/*,album/1.png', ['sub/3.png', '1.png']),
    ('album/2.png,album,album/*.png,./album/1.png',
     ['2.png', '1.png', '10.png', 'sub/3.png'])])
def test_files_folders_globs_and_lists_name_each_file_once(images, found,
                                                           photos):
  del photos
  files = find_files(images)
  assert len(files) == len(set(files))
  if images.startswith('album/2.png,album,'):
    assert sorted(files) == sorted(f'album/{name}' for name in found)
    assert files[0] == 'album/2.png'
  else:
    assert files == [f'album/{name}' for name in found]


@pytest.mark.parametrize('name', ['a,b.png', 'one, two/c.png', 'd[1].png',
                                  'star*.png', '~tilde.png', '猫 1.png'])
def test_a_path_may_hold_what_lists_globs_and_homes_are_made_of(name, photos):
  write_photo(photos.parent / name)
  assert find_files(name) == [name]
  if '/' in name:
    assert find_files('one, two') == [name]
    assert find_files('one, two/*.png') == [name]


def test_a_tilde_is_the_home_folder(photos, monkeypatch):
  monkeypatch.setenv('HOME', str(photos))
  assert find_files('~/1.png') == [str(photos / '1.png')]
  assert find_files('~/sub,~/2.p*') == [str(photos / 'sub' / '3.png'),
                                        str(photos / '2.png')]


@pytest.mark.parametrize('images,named', [
    ('none.png', 'none.png'), ('album/*.gif', 'album/*.gif'),
    ('album/1.png,none', 'none'), ('', "''"), (',', "''"),
    ('album/1.png,', "''"), ('empty', 'empty'), ('x' * 5000, 'x' * 5000),
    ('~nobody-of-this-name/1.png', '~nobody-of-this-name/1.png')])
def test_what_matches_nothing_is_refused_by_its_name(images, named, photos):
  (photos.parent / 'empty').mkdir()
  with pytest.raises(UserError) as refused:
    find_files(images)
  assert str(refused.value).startswith('--images: ')
  assert named in str(refused.value)


def test_the_csv_has_a_row_a_file_with_the_broken_ones_and_why(restored,
                                                               photos, capsys):
  (photos / '5.png').write_bytes(b'')
  (photos / '6.png').write_bytes((photos / '1.png').read_bytes()[:400])
  (photos / 'notes, "old".txt').write_text('no photo')
  predict_files(restored, 'album', photos.parent)
  rows = read_csv(photos.parent / 'predictions.csv')
  assert list(rows[0]) == ['file', 'label', 'probability', *NAMES, 'error']
  assert {row['file']: bool(row['error']) for row in rows} == {
      'album/1.png': False, 'album/2.png': False, 'album/10.png': False,
      'album/sub/3.png': False, 'album/5.png': True, 'album/6.png': True,
      'album/notes, "old".txt': True}
  for row in rows:
    if row['error']:
      assert not any(row[name] for name in ('label', 'probability', *NAMES))
    else:
      shares = {name: float(row[name]) for name in NAMES}
      assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
      assert row['label'] == max(shares, key=shares.get)
      assert float(row['probability']) == shares[row['label']]
  assert len({row['cat'] for row in rows if not row['error']}) == 4
  table = capsys.readouterr().out
  assert 'checkpoint 7' in table and 'album/sub/3.png' in table
  assert 'the file is empty' in table


def test_names_that_csv_and_terminals_cannot_take_are_escaped(restored, photos,
                                                              capsys):
  for name in ('line\nbreak.png', 'cr\rx.png', 'bad\udcff.png', 'q"q,.png'):
    write_photo(photos / 'odd' / 'x.png').rename(photos / 'odd' / name)
  predict_files(restored, 'album/odd', photos.parent)
  rows = read_csv(photos.parent / 'predictions.csv')
  assert {row['file'] for row in rows} == {
      'album/odd/line\nbreak.png', 'album/odd/cr\rx.png',
      'album/odd/bad\\udcff.png', 'album/odd/q"q,.png'}
  assert not any(row['error'] for row in rows)
  assert r'line\nbreak.png' in capsys.readouterr().out


def test_nothing_but_broken_files_is_refused_once_the_csv_names_them(
    restored, tmp_path):
  (tmp_path / 'bad').mkdir()
  for i in range(3):
    (tmp_path / 'bad' / f'{i}.jpg').write_bytes(b'GIF89a' + bytes(i))
  with pytest.raises(UserError, match='none of the 3 files is a photo'):
    predict_files(restored, str(tmp_path / 'bad'), tmp_path)
  rows = read_csv(tmp_path / 'predictions.csv')
  assert len(rows) == 3 and all(row['error'] for row in rows)
  Image.open(tmp_path / 'predictions.png').verify()


def test_a_photo_is_predicted_alike_whatever_is_predicted_beside_it(
    restored, photos, monkeypatch):
  monkeypatch.setattr(predict, 'BATCH_SIZE', 5)
  mine = str(photos / '1.png')
  (photos / 'bad.png').write_bytes(b'no photo')
  others = [str(write_photo(photos / 'more' / f'{i}.png')) for i in range(6)]

  def of_mine(files):
    predictions = list(predict.predict(restored, files))
    assert [p.file for p in predictions] == files
    return next(p.probabilities for p in predictions if p.file == mine)

  alone = of_mine([mine])
  assert alone.max() < 0.999  # Else anything agrees.
  # In a batch of its own, in a padded one, and beside a broken file.
  for files in (others + [mine], [str(photos / 'bad.png'), mine]):
    np.testing.assert_allclose(of_mine(files), alone, atol=1e-5)


def test_probabilities_are_those_of_the_model_itself(restored, photos):
  file = photos / '1.png'
  prediction, = predict.predict(restored, [str(file)])
  size = restored.preprocessing.decoding.size_px
  assert prediction.thumbnail.shape == (size, size, 3)
  pixels = prediction.thumbnail[2:34, 2:34] / 255
  x = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
  logits = jax.jit(restored.model.apply)(restored.variables,
                                         jnp.asarray(x[None], jnp.float32))
  np.testing.assert_allclose(prediction.probabilities,
                             jax.nn.softmax(logits)[0], atol=1e-5)


def predictions(count, broken=0):
  shown = np.full((37, 37, 3), 90, np.uint8)
  good = [predict.Prediction(f'{"very-long-name" * 3}{i}.png',
                             np.array([0.2, 0.7, 0.1]), '', shown)
          for i in range(count)]
  return good + [predict.Prediction('x.png', None, 'the file is empty')
                 ] * broken


def test_the_contact_sheet_grows_by_rows_of_equal_cells():
  sizes = {n: predict.contact_sheet(predictions(n), NAMES).size
           for n in (1, 2, 6, 7, 12)}
  cell = sizes[2][0] - sizes[1][0]
  assert sizes[6][0] - sizes[1][0] == 5 * cell
  assert sizes[7][0] == sizes[12][0] == sizes[6][0]
  assert sizes[7][1] == sizes[12][1] > sizes[6][1] == sizes[1][1]


def test_the_contact_sheet_shows_the_photos_and_leaves_out_broken_files():
  sheet = predict.contact_sheet(predictions(2, broken=9), NAMES)
  assert sheet.size == predict.contact_sheet(predictions(2), NAMES).size
  pixels = np.asarray(sheet)
  share = (pixels == 90).all(axis=-1).mean()
  assert share == pytest.approx(2 * 160 * 160 / pixels[..., 0].size,
                                rel=1e-3)
  assert (pixels < 50).any()  # The captions.


def test_the_contact_sheet_of_many_photos_is_bounded(restored, photos,
                                                     monkeypatch):
  monkeypatch.setattr(predict, 'MAX_SHEET_PHOTOS', 3)
  monkeypatch.setattr(predict, 'BATCH_SIZE', 2)
  predict_files(restored, 'album', photos.parent)
  assert len(read_csv(photos.parent / 'predictions.csv')) == 4
  with Image.open(photos.parent / 'predictions.png') as sheet:
    assert sheet.size == predict.contact_sheet(predictions(3), NAMES).size


def test_a_long_table_is_cut_and_says_so(restored, photos, monkeypatch,
                                         capsys):
  monkeypatch.setattr(predict, 'MAX_TABLE_ROWS', 1)
  predict_files(restored, 'album', photos.parent)
  table = capsys.readouterr().out
  assert 'album/1.png' in table and 'album/2.png' not in table
  assert '... and 3 more.' in table
