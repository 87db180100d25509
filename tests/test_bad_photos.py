"""A folder of photos in every state: nothing lost, nothing taken for another.

Every file of the corpus of `bad_photos.py` is either used as the picture that
it shows, under the class of its folder, or named with a reason; and training,
evaluation and prediction agree on each of them.
"""

import collections
import contextlib
import csv
import json
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile

import hypothesis
from hypothesis import strategies
import ml_collections
import numpy as np
from PIL import Image
import pytest

from bad_photos import (bombs, CLASSES, encoded, Entry, FORMATS, scene, turned,
                        with_checksums, write_corpus)
from catsdogs import photos
from catsdogs.csv_file import write_csv_file
from catsdogs.datasets.folder import files_below, open_folder, open_labelled
from catsdogs.input_pipeline import prepare_data, read_photos
from catsdogs.predict import find_files
from mutation import mutated
from runs import launch, ROOT, TINY

GOOD = 900  # So that the damaged ones are fewer than a tenth.
SIZE = 32
DECODING = photos.Decoding(SIZE, SIZE)
MIB = 2**20
pytestmark = pytest.mark.filterwarnings(r'ignore:::PIL\.')

Corpus = tuple[pathlib.Path, dict[str, Entry]]


@pytest.fixture(scope='module')
def corpus(tmp_path_factory) -> Corpus:
  root = tmp_path_factory.mktemp('corpus') / 'photos'
  return root, write_corpus(root, GOOD)


def original_name(cell: str) -> str:
  """The file that a cell of a CSV file names, as `csv_file` says."""
  return os.fsdecode(re.sub(rb'\\udc([0-9a-f]{2})',
                            lambda m: bytes.fromhex(m[1].decode()),
                            cell.encode()))


def rows(file: pathlib.Path) -> list[dict[str, str]]:
  with file.open(newline='', encoding='utf-8') as f:
    return list(csv.DictReader(f, strict=True))


def check_fates(entries: dict[str, Entry], used: set[str],
                skipped: dict[str, str]) -> None:
  """Every file is used or skipped, never both, and as it has to be."""
  assert not used & skipped.keys()
  assert used | skipped.keys() == entries.keys()
  for name, entry in entries.items():
    if entry.shows:
      assert name in used, (name, skipped.get(name))
    elif entry.reason:
      assert name in skipped, name
    if name in skipped:
      assert re.search(entry.reason, skipped[name]), (name, skipped[name])
      assert skipped[name].isprintable() and 'Memory' not in skipped[name]


# The whole corpus.


def test_training_uses_or_names_every_file_and_prediction_agrees(corpus,
                                                                 tmp_path):
  root, entries = corpus
  workdir = tmp_path / 'run'
  arguments = (*TINY, f'--workdir={workdir}', f'--config.data.source=folder:'
               f'{root}', '--config.train.epochs=1',
               '--config.train.batch_size=64')
  done = launch('--config=configs/finetune.py', *arguments,
                cache=tmp_path / 'cache')
  assert done.returncode == 0, done.stderr
  skipped = {original_name(row['file']): row['reason']
             for row in rows(workdir / 'skipped_files.csv')}
  assert f'Left out {len(skipped)} files' in done.stdout
  assert len(rows(workdir / 'skipped_files.csv')) == len(skipped)
  check_fates(entries, entries.keys() - skipped.keys(), skipped)
  results = json.loads((workdir / 'results.json').read_text())
  assert results['data']['skipped'] == len(skipped)
  assert (results['data']['train_count'] + results['data']['val_count']
          + len(skipped)) == len(entries)
  evaluated = {original_name(row['file']): row
               for row in rows(workdir / 'predictions' / 'val.csv')}
  assert len(evaluated) == results['data']['val_count']
  for name, row in evaluated.items():
    assert original_name(row['label']) == name.split('/')[0]

  done = launch('--mode=predict', f'--images={root}', f'--workdir={workdir}',
                cache=tmp_path / 'cache')
  assert done.returncode == 0, done.stderr
  predicted = {original_name(row['file']).removeprefix(f'{root}/'): row
               for row in rows(workdir / 'predictions.csv')}
  assert predicted.keys() == entries.keys()
  for name, row in predicted.items():
    assert row['error'] == skipped.get(name, '')
    if name in evaluated:
      for column, theirs in zip(list(row)[3:5], list(evaluated[name])[3:5]):
        assert float(row[column]) == pytest.approx(
            float(evaluated[name][theirs]), abs=1e-4)
  print(f'{len(entries)} tried, {len(entries) - len(skipped)} used, '
        f'{len(skipped)} skipped')


def test_every_photo_is_the_picture_that_it_shows_under_its_class(corpus):
  """In training, in evaluation on a folder, and in prediction."""
  root, entries = corpus
  entries = {name: entry for name, entry in entries.items()
             if '/good/' not in name or name.endswith('0.png')}
  source = open_folder(root, 0.2)
  labelled = open_labelled(root, source.class_names)
  assert list(source.class_names) == sorted(CLASSES)
  wanted = [i for i, name in enumerate(labelled.ids) if name in entries]
  # In two ways: all of it kept, and all of it read again for its batch.
  kept = read_photos(labelled.select(wanted), DECODING, 1e9)
  anew = read_photos(labelled.select(wanted), DECODING, 0)
  check_fates(entries, set(kept.split.ids), dict(kept.skipped))
  assert kept.skipped == anew.skipped
  batch = kept.batch(np.arange(len(kept)))
  again = anew.batch(np.arange(len(kept)))
  for key, value in batch.items():
    np.testing.assert_array_equal(value, again[key], key)
  assert batch['mask'].all() and not anew.skipped[len(kept.skipped):]
  for name, label, image in zip(kept.split.ids, batch['label'],
                                batch['image']):
    assert source.class_names[label] == name.split('/')[0]
    if expected := entries[name].shows:
      expected = photos.decode(encoded(expected, 'PNG'), DECODING)
      difference = np.abs(image.astype(float) - expected).mean()
      assert difference < (9 if 'cmyk' in name else 4), (name, difference)


def test_a_folder_a_list_and_a_glob_find_the_same_files(corpus):
  root, entries = corpus
  links = {f'{root}/{name}' for name in entries if '/links/' in name}
  folder = f'{root}/cat/links'
  assert links <= set(find_files(folder))
  assert links == set(find_files(f'{folder}/*.jpg'))
  assert links == set(find_files(','.join(sorted(links))))


def test_files_that_vanish_or_turn_before_they_are_read_are_named(tmp_path):
  for name in ('cat', 'dog'):
    (tmp_path / name).mkdir()
    for i in range(20):
      (tmp_path / name / f'{i}.png').write_bytes(
          encoded(scene(20, 20, i), 'PNG'))
  source = open_folder(tmp_path, 0.2)
  victims = [tmp_path / name for name in source.train.ids[:4]]
  for victim in victims:
    victim.unlink()
  os.mkfifo(victims[1])
  victims[2].mkdir()
  victims[3].symlink_to('/dev/zero')
  read = read_photos(source.train, DECODING, 1e9)
  assert [file for file, _ in read.skipped] == source.train.ids[:4]
  for (_, reason), word in zip(read.skipped,
                               ('No such', 'pipe', 'folder', 'device')):
    assert word in reason


@contextlib.contextmanager
def without_rights():
  """As somebody who may not read what others own; root may read all."""
  me = os.geteuid()
  if me == 0:
    os.seteuid(65534)
  try:
    yield
  finally:
    os.seteuid(me)


def test_what_must_not_be_read_is_named():
  # Not in pytest's folder, which nobody else may enter.
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    root.chmod(0o755)
    for i in range(40):
      path = root / ('cat', 'dog')[i % 2] / f'{i}.png'
      path.parent.mkdir(exist_ok=True)
      path.write_bytes(encoded(scene(20, 20, i), 'PNG'))
    path.chmod(0)
    (root / 'cat' / 'locked').mkdir(mode=0)
    config = ml_collections.ConfigDict({
        'source': f'folder:{root}', 'val_fraction': 0.2,
        'sample_fraction': 1.0, 'cache_gib': 1.0})
    with without_rights():
      data = prepare_data(config, DECODING, root)
      found = files_below(root)
    assert dict(data.skipped) == {'dog/39.png': 'Permission denied',
                                  'cat/locked': 'a folder that cannot be read'}
    assert len(data.train) + len(data.val) == 39 and len(found) == 41


@hypothesis.settings(deadline=None)
@hypothesis.given(strategies.lists(strategies.lists(
    strategies.one_of(
        strategies.binary(min_size=1), strategies.text(min_size=1).map(
            lambda text: text.encode('utf-8', 'surrogatepass')),
        strategies.sampled_from([b'\\udcff', b'\\', b'udc5c', b'\xff'])),
    min_size=1).map(b''.join), min_size=1, max_size=3))
def test_any_name_comes_back_from_a_csv_file(names):
  names = [os.fsdecode(name.replace(b'\0', b'')) for name in names]
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'names.csv'
    write_csv_file(file, ['file', 'reason'], [(name, 'x') for name in names])
    assert [original_name(row['file']) for row in rows(file)] == names


# Headers and bodies that lie.


def decoded_by_another(paths: list[pathlib.Path], threads: int = 1,
                       seconds: float = 120) -> list[dict]:
  """What a process of its own says of the files; it must not die or hang."""
  process = subprocess.run(
      [sys.executable, 'tests/decoding_worker.py', str(threads)], cwd=ROOT,
      env={'PYTHONPATH': str(ROOT), 'PATH': ''}, text=True, check=False,
      input=''.join(f'{path}\n' for path in paths), capture_output=True,
      timeout=seconds)
  answers = [json.loads(line) for line in process.stdout.splitlines()]
  assert process.returncode == 0, (paths[len(answers)], process.stderr)
  assert len(answers) == len(paths)
  return answers


def written(folder: pathlib.Path, contents: list[bytes]
            ) -> list[pathlib.Path]:
  paths = [folder / f'{i}.jpg' for i in range(len(contents))]
  for path, content in zip(paths, contents):
    path.write_bytes(content)
  return paths


def test_a_bomb_is_refused_before_its_pixels_take_memory(tmp_path):
  contents = [*bombs().values()]
  for name, content in bombs(9000).items():  # Fewer than Pillow refuses.
    if name != 'bomb.jpg':  # Which is scaled before its pixels are there.
      contents.append(content)
  answers = decoded_by_another(written(tmp_path, contents))
  for answer in answers:
    assert 'pixels' in answer['reason']
    assert answer['peak'] < 32 * MIB


def large_webp(side: int) -> bytes:
  """A photo of one colour and a few bytes, which takes 24 a pixel."""
  webp = bytearray(encoded(Image.new('RGBA', (16, 16), (9, 9, 9, 9)), 'WEBP',
                           lossless=True))
  assert webp[12:16] == b'VP8L'
  sides = int.from_bytes(webp[21:25], 'little') >> 28 << 28
  webp[21:25] = struct.pack('<I', sides | side - 1 | side - 1 << 14)
  return bytes(webp)


@pytest.mark.parametrize('side', [
    4200, pytest.param(8192, marks=pytest.mark.slow)])
def test_however_many_large_photos_take_the_memory_of_one(side, tmp_path):
  assert side * side <= photos.MAX_PIXELS
  content = large_webp(side)
  assert len(content) < 100
  answers = decoded_by_another(written(tmp_path, [content] * 4), threads=4)
  peak = max(answer['peak'] for answer in answers)
  print(f'{side} x {side}: {peak / MIB:.0f} MiB')
  assert not any(answer['reason'] for answer in answers)
  assert 20 * side * side < peak < 30 * side * side


def mostly_in_the_header(data: bytearray, dice: random.Random) -> int:
  return dice.randrange(min(len(data), dice.choice((32, 128, 10**6))))


def damaged(content: bytes, dice: random.Random) -> bytes:
  """A mutation; of a PNG mostly with checksums that fit, to get further."""
  data = mutated(content, dice, mostly_in_the_header)
  if content.startswith(b'\x89PNG') and dice.random() < 0.8:
    return with_checksums(data)
  return data


def fuzz(folder: pathlib.Path, count: int) -> None:
  """Decodes so many damaged files; none kills, hangs or fills the memory."""
  image = scene(60, 44)
  sound = [encoded(image, kind) for kind in FORMATS] + [
      encoded(image, 'JPEG', progressive=True),
      encoded(image.convert('CMYK'), 'JPEG'), turned(image, 'JPEG', 6),
      turned(image, 'PNG', 6), turned(image, 'WEBP', 6),
      encoded(image, 'WEBP', lossless=True),
      encoded(image.quantize(16), 'PNG'), encoded(image.quantize(16), 'BMP'),
      *(encoded(image, kind, save_all=True, append_images=[scene(60, 44, 1)])
        for kind in ('GIF', 'WEBP', 'PNG', 'MPO'))]
  contents = [damaged(sound[i % len(sound)], random.Random(i))
              for i in range(count)]
  answers = decoded_by_another(written(folder, contents), seconds=count)
  outcomes = collections.Counter(
      'refused' if answer['reason'] else 'decoded' for answer in answers)
  slowest = max(answer['seconds'] for answer in answers)
  peak = answers[-1]['peak']
  print(f'{dict(outcomes)}, {peak / MIB:.0f} MiB at most, the slowest took '
        f'{slowest:.2f} s')
  assert min(outcomes['refused'], outcomes['decoded']) > count / 10
  for answer in answers:
    assert answer['reason'].isprintable() and 'Memory' not in answer['reason']
  assert peak < 2000 * MIB


def test_some_damaged_files_do_no_harm(tmp_path):
  fuzz(tmp_path, 300)


@pytest.mark.slow
def test_thousands_of_damaged_files_do_no_harm(tmp_path):
  fuzz(tmp_path, 5000)
