"""What the network said before fine-tuning."""

import csv
import json
import pathlib

import pytest

from runs import TINY, launch, make_folder
from weight_files import IMAGENET_IDS, write_own


@pytest.fixture(scope='module')
def cache(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> str:
  file = tmp_path_factory.mktemp('weights') / 'own.safetensors'
  write_own(file, model='resnet10t')
  return f'--config.model.weights={file}'


@pytest.fixture(scope='module')
def run(tmp_path_factory, cache, weights):
  photos = make_folder(tmp_path_factory.mktemp('photos') / 'all')
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  done = launch('--config=configs/finetune.py', *TINY, weights,
                '--config.train.epochs=1', f'--workdir={workdir}',
                f'--config.data.source=folder:{photos}', cache=cache)
  assert done.returncode == 0, done.stderr
  return workdir, photos


def test_before_is_the_zero_shot_answer(run, cache):
  """The same in results.json and by `--checkpoint=pretrained`."""
  workdir, _ = run
  before = json.loads((workdir / 'results.json').read_text())['before']
  assert before['model'].endswith('own.safetensors, zero-shot')
  done = launch('--mode=evaluate', '--checkpoint=pretrained',
                f'--workdir={workdir}', cache=cache)
  assert done.returncode == 0, done.stderr
  again = json.loads((workdir / 'evaluation.json').read_text())
  assert again['checkpoint'] == before['model']
  for figure in ('val_accuracy', 'val_loss', 'val_count'):
    assert again[figure] == pytest.approx(before[figure], rel=1e-5)


def predictions(workdir: pathlib.Path) -> tuple[list[str], list[list[str]]]:
  """The names of the classes, and each photo's probabilities."""
  with (workdir / 'predictions.csv').open(newline='') as f:
    header, *rows = [row[3:-1] for row in csv.reader(f)]
  return header, rows


def test_predicting_before_training_takes_the_classes_of_the_run(run, cache):
  workdir, photos = run
  said = {}
  for which in ('pretrained', 'best'):
    done = launch('--mode=predict', f'--checkpoint={which}',
                  f'--workdir={workdir}', f'--images={photos}/cat',
                  cache=cache)
    assert done.returncode == 0, done.stderr
    names, said[which] = predictions(workdir)
    assert names == ['cat', 'dog']
  assert said['pretrained'] != said['best']


def test_without_a_run_evaluation_takes_the_classes_of_the_photos(
    tmp_path, run, weights, cache):
  workdir, photos = run
  done = launch('--mode=evaluate', '--checkpoint=pretrained',
                '--config=configs/finetune.py', *TINY, weights,
                f'--config.data.source=folder:{photos}',
                f'--workdir={tmp_path / "none"}', cache=cache)
  assert done.returncode == 0, done.stderr
  results = [json.loads(file.read_text()) for file in (
      tmp_path / 'none' / 'evaluation.json', workdir / 'results.json')]
  assert results[0]['val_loss'] == pytest.approx(
      results[1]['before']['val_loss'], rel=1e-5)


def test_without_a_run_the_weights_answer_in_their_own_classes(
    tmp_path, run, weights, cache):
  _, photos = run
  done = launch('--mode=predict', '--checkpoint=pretrained',
                '--config=configs/finetune.py', *TINY, weights,
                f'--workdir={tmp_path / "none"}', f'--images={photos}/cat',
                cache=cache)
  assert done.returncode == 0, done.stderr
  found, _ = predictions(tmp_path / 'none')
  assert len(found) == len(IMAGENET_IDS)
  assert found[2] == 'tabby, tabby cat'
