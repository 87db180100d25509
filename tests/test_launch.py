"""The commands as people type them: real processes and files."""

import json
import os
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from catsdogs import lock
from catsdogs.checkpoint import restore_variables, saved_steps
from runs import (LONG, TINY, launch, make_folder, refused, rows, start,
                  wait_for_checkpoint)

DEBUG = '--config=configs/debug.py'
ALL = '--config.data.sample_fraction=1.0'


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  return make_folder(tmp_path_factory.mktemp('photos'), per_class=20)


@pytest.fixture(scope='module')
def run(tmp_path_factory, photos, cache):
  """A finished run, by oneDNN; tests that change its workdir copy it first."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  done = launch(DEBUG, ALL, *TINY, f'--config.data.source=folder:{photos}',
                f'--workdir={workdir}', cache=cache, onednn=True)
  assert done.returncode == 0, done.stderr
  return workdir, done


def test_training_tells_what_it_found_and_how_it_went(run):
  workdir, done = run
  assert ('Found 32 training images belonging to 2 classes (cat 16, dog 16).'
          in done.stdout)
  assert ('Found 8 validation images belonging to 2 classes (cat 4, dog 4).'
          in done.stdout)
  assert re.search(r'[\d,]+ parameters, none frozen', done.stdout)
  assert '\r' not in done.stdout  # No bar where there is no terminal.
  results = json.loads((workdir / 'results.json').read_text())
  assert results['status'] == 'finished'
  closing = done.stdout.strip().splitlines()[-1]
  assert f'val_accuracy {results["val_accuracy"]:.4f}' in closing
  assert f'val_loss {results["val_loss"]:.4f}' in closing


def test_the_workdir_holds_all_that_is_promised(run):
  workdir, _ = run
  results = json.loads((workdir / 'results.json').read_text())
  assert set(results) >= {
      'status', 'val_accuracy', 'val_loss', 'val_count', 'train_accuracy',
      'train_loss', 'before', 'epochs', 'steps', 'seconds_total',
      'seconds_to_first_step', 'images_per_second', 'data', 'model', 'device',
      'versions', 'per_class', 'expected_calibration_error', 'roc_auc'}
  assert results['val_count'] == results['before']['val_count'] == 8
  assert results['data'] | {'source': ''} == {
      'source': '', 'classes': ['cat', 'dog'], 'train_count': 32,
      'val_count': 8, 'skipped': 0}
  predictions = rows(workdir / 'predictions' / 'val.csv')
  assert len(predictions) == 8
  right = sum(row['label'] == row['prediction'] for row in predictions)
  assert right / 8 == results['val_accuracy']
  config = json.loads((workdir / 'config.json').read_text())
  assert config['model']['dtype'] == 'float32'
  assert (workdir / 'skipped_files.csv').read_text() == 'file,reason\n'
  assert list(workdir.glob('events.out.tfevents.*'))
  steps = [int(row['step']) for row in rows(workdir / 'metrics.csv')
           if row['train_loss']]
  assert steps == [3, 4] and results['steps'] == 4


def test_the_same_command_again_ends_at_once_with_the_results(
    run, photos, cache):
  workdir, first = run
  with lock.hold(workdir):  # Nothing is written, so whoever has it may.
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
    again = launch(DEBUG, ALL, *TINY, f'--config.data.source=folder:{photos}',
                   f'--workdir={workdir}', cache=cache)
    assert again.returncode == 0
    assert again.stdout.splitlines() == first.stdout.splitlines()[-1:]
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}


@pytest.mark.parametrize('batch_size, onednn', [
    pytest.param(1, True, marks=pytest.mark.slow), (8, False),
    pytest.param(32, True, marks=pytest.mark.slow)])
def test_evaluate_gives_the_recorded_accuracy_to_the_last_digit(
    run, cache, batch_size, onednn):
  workdir, _ = run
  with lock.hold(workdir):  # As if it still trained.
    done = launch(DEBUG, f'--config.train.batch_size={batch_size}',
                  '--mode=evaluate', f'--workdir={workdir}', cache=cache,
                  onednn=onednn)
  assert done.returncode == 0, done.stderr
  recorded = json.loads((workdir / 'results.json').read_text())
  evaluated = json.loads((workdir / 'evaluation.json').read_text())
  assert evaluated['val_accuracy'] == recorded['val_accuracy']
  assert evaluated['val_count'] == recorded['val_count']
  assert evaluated['val_loss'] == pytest.approx(recorded['val_loss'], 1e-6)


def test_evaluate_takes_class_folders_and_needs_no_config(run, photos, cache):
  workdir, _ = run
  done = launch('--mode=evaluate', f'--workdir={workdir}', '--checkpoint=last',
                f'--images={photos}', cache=cache)
  assert done.returncode == 0, done.stderr
  assert ' of 40; ' in done.stdout


def test_predict_tells_tables_and_draws(run, photos, cache, tmp_path):
  workdir = shutil.copytree(run[0], tmp_path / 'run')
  (tmp_path / 'broken.jpg').write_text('no photo')
  done = launch('--mode=predict', f'--workdir={workdir}', cache=cache, *[
      f'--images={photos}/cat/*.jpg,{photos}/dog/dog.1.jpg,'
      f'{tmp_path}/broken.jpg'])
  assert done.returncode == 0, done.stderr
  table = rows(workdir / 'predictions.csv')
  assert list(table[0]) == ['file', 'label', 'probability', 'cat', 'dog',
                            'error']
  assert len(table) == 22 and table[-1]['error'] and not table[-1]['label']
  for row in table[:-1]:
    assert float(row['cat']) + float(row['dog']) == pytest.approx(1, abs=2e-6)
    assert float(row['probability']) == float(row[row['label']])
    assert row['file'] in done.stdout
  assert (workdir / 'predictions.png').stat().st_size > 1000


def test_predict_needs_neither_data_nor_optimizer(run, photos, cache,
                                                  tmp_path):
  moved = shutil.copytree(run[0], tmp_path / 'elsewhere')
  config = json.loads((moved / 'config.json').read_text())
  config['data']['source'] = 'folder:/no/such/folder'
  (moved / 'config.json').write_text(json.dumps(config))
  done = launch('--mode=predict', f'--workdir={moved}', '--checkpoint=last',
                f'--images={photos}/cat', cache=cache)
  assert done.returncode == 0, done.stderr


def test_predict_tells_what_the_network_said_before(run, photos, cache,
                                                    tmp_path):
  workdir = shutil.copytree(run[0], tmp_path / 'run')
  done = launch('--mode=predict', f'--workdir={workdir}',
                '--checkpoint=pretrained', f'--images={photos}/cat',
                cache=cache)
  assert done.returncode == 0, done.stderr
  assert {row['probability'] for row in rows(workdir / 'predictions.csv')} == {
      '0.500000'}


def vanish(photos: pathlib.Path, parts: list[str]) -> None:
  for part in parts:
    (photos / part).unlink()


@pytest.mark.parametrize('count, status', [
    pytest.param(2, 0, marks=pytest.mark.slow), (30, 2)])
def test_photos_that_vanish_are_told_and_at_last_end_the_run(
    cache, tmp_path, count, status):
  photos = make_folder(tmp_path / 'photos', per_class=20)
  workdir = tmp_path / 'run'
  process = start(*LONG, f'--config.data.source=folder:{photos}',
                  '--config.data.cache_gib=0', f'--workdir={workdir}',
                  cache=cache)
  wait_for_checkpoint(process, workdir, 5)
  names = [f'{name}/{name}.{i}.jpg' for i in range(15)
           for name in ('cat', 'dog')][:count]
  vanish(photos, names)
  out, err = process.communicate(timeout=200)
  assert process.returncode == status, err
  skipped = {row['file'] for row in rows(workdir / 'skipped_files.csv')}
  assert skipped and skipped <= set(names)
  assert 'Left out' in out and 'Traceback' not in err


def test_the_head_of_other_classes_stays_where_it_is(run, cache, tmp_path):
  photos = make_folder(tmp_path / 'photos', 4, ('apple', 'banana'))
  done = launch(DEBUG, ALL, *TINY, f'--config.data.source=folder:{photos}',
                f'--workdir={tmp_path}/run', f'--config.model.weights={run[0]}',
                cache=cache)
  assert done.returncode == 0, done.stderr
  assert 'a new head' in done.stdout


def truncate(file: pathlib.Path) -> pathlib.Path:
  file.write_bytes(b'PK\3\4 cut short')
  return file


BAD_INPUT = {
    'no such folder': (
        lambda tmp, photos: [f'--config.data.source=folder:{tmp}/nowhere'],
        'nowhere'),
    'folder without images': (
        lambda tmp, photos: [
            f'--config.data.source=folder:{(tmp / "a").mkdir() or tmp}'],
        'no photos'),
    'one class only': (
        lambda tmp, photos: ['--config.data.source=folder:'
                             f'{make_folder(tmp / "x", 3, ("cat",))}'],
        'one class only'),
    'an empty class': (
        lambda tmp, photos: ['--config.data.source=folder:'
                             f'{make_folder(tmp / "x", 2)}']
        + ((tmp / 'x' / 'bird').mkdir() or []),
        'bird'),
    'class in val alone': (
        lambda tmp, photos: ['--config.data.source=folder:'
                             f'{make_folder(tmp / "x" / "train", 2).parent}']
        + (make_folder(tmp / 'x' / 'val', 2, ('cat', 'dog', 'fox')) and []),
        'fox'),
    'damaged files': (
        lambda tmp, photos: ['--config.data.source=folder:'
                             f'{damaged(make_folder(tmp / "x", 50), 11)}'],
        '11 of 100'),
    'unknown field': (
        lambda tmp, photos: ['--config.train.nosuch=1'], 'nosuch'),
    'batch size': (
        lambda tmp, photos: ['--config.train.batch_size=0'],
        'config.train.batch_size'),
    'epochs': (
        lambda tmp, photos: ['--config.train.epochs=-1'],
        'config.train.epochs'),
    'image size': (
        lambda tmp, photos: ['--config.data.image_size=31'],
        'config.data.image_size'),
    'no number': (
        lambda tmp, photos: ['--config.train.batch_size=1e3'], '1e3'),
    'no such config': (
        lambda tmp, photos: ['--config=configs/nosuch.py'], 'nosuch.py'),
    'no such flag': (lambda tmp, photos: ['--nosuch'], 'nosuch'),
    'truncated weights': (
        lambda tmp, photos: [
            f'--config.model.weights={truncate(tmp / "cut.pth")}',
            f'--config.data.source=folder:{photos}'],
        'cut.pth'),
    'no such weights': (
        lambda tmp, photos: ['--config.model.weights=nowhere.pth',
                             f'--config.data.source=folder:{photos}'],
        'nowhere.pth'),
    'evaluate before training': (
        lambda tmp, photos: ['--mode=evaluate'], 'train'),
    'predict before training': (
        lambda tmp, photos: ['--mode=predict', f'--images={photos}'], 'train'),
}


def damaged(root: pathlib.Path, count: int) -> pathlib.Path:
  for file in sorted(root.rglob('*.jpg'))[:count]:
    file.write_bytes(b'\xff\xd8 no more')
  return root


@pytest.mark.parametrize('case', BAD_INPUT)
def test_bad_input_gets_one_line_and_status_2(case, photos, cache, tmp_path):
  arguments, word = BAD_INPUT[case]
  arguments = arguments(tmp_path, photos)
  workdir = tmp_path / 'run'
  done = launch(DEBUG, *TINY, ALL, f'--workdir={workdir}', *arguments,
                cache=cache)
  refused(done, word)
  assert not (workdir / 'config.json').exists()  # The mended command works.


def test_weights_of_another_architecture_are_refused(run, photos, cache,
                                                     tmp_path):
  done = launch(DEBUG, *TINY, ALL, f'--config.data.source=folder:{photos}',
                f'--workdir={tmp_path}', f'--config.model.weights={run[0]}',
                '--config.model.name=resnet34', cache=cache)
  refused(done, 'resnet34', 'resnet10t')


def test_another_config_is_refused_with_the_fields_that_differ(
    run, photos, cache):
  done = launch(DEBUG, *TINY, ALL, f'--config.data.source=folder:{photos}',
                f'--workdir={run[0]}', '--config.seed=7', cache=cache)
  refused(done, 'config', 'seed', '--restart')


def test_restart_begins_anew_unless_another_process_is_in_it(
    run, photos, cache, tmp_path):
  workdir = shutil.copytree(run[0], tmp_path / 'run')
  command = (DEBUG, *TINY, ALL, f'--config.data.source=folder:{photos}',
             f'--workdir={workdir}', '--config.seed=7', '--restart')
  with lock.hold(workdir):
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
    done = launch(*command, cache=cache)
    refused(done, f'{workdir} is in use by process {os.getpid()} on ')
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  done = launch(*command, cache=cache)
  assert done.returncode == 0, done.stderr
  assert 'Found 32 training' in done.stdout
  assert json.loads((workdir / 'config.json').read_text())['seed'] == 7


def test_a_checkpoint_folder_that_is_empty_is_refused(run, photos, cache,
                                                      tmp_path):
  workdir = shutil.copytree(run[0], tmp_path / 'run')
  shutil.rmtree(workdir / 'checkpoints')
  (workdir / 'checkpoints').mkdir()
  for mode in ('evaluate', 'predict'):
    refused(launch(f'--mode={mode}', f'--workdir={workdir}', cache=cache,
                   *[f'--images={photos}']), 'checkpoint')


def test_images_that_match_nothing_are_refused(run, cache, tmp_path):
  refused(launch('--mode=predict', f'--workdir={run[0]}', cache=cache,
                 *[f'--images={tmp_path}/*.jpg']), '--images')


def test_no_such_checkpoint_is_refused(run, photos, cache):
  refused(launch('--mode=predict', f'--workdir={run[0]}', '--checkpoint=77',
                 f'--images={photos}', cache=cache), '77', '4')


@pytest.mark.parametrize('field, words, good', [
    ('grad_clip_norm=0', 'the loss is nan', [1]),
    ("lr_mults=(('', 1e30),)", 'the parameters are no longer finite', [])])
def test_what_is_not_finite_ends_the_run_and_is_not_saved(
    photos, cache, tmp_path, field, words, good):
  done = launch(DEBUG, *TINY, ALL, f'--config.data.source=folder:{photos}',
                f'--workdir={tmp_path}', '--config.optim.learning_rate=1e30',
                '--config.train.epochs=5', f'--config.optim.{field}',
                '--config.optim.warmup_epochs=0',
                '--config.train.checkpoint_every_steps=1', cache=cache)
  refused(done, f'step {len(good) + 1}: {words}', 'learning_rate')
  assert saved_steps(tmp_path) == good
  for step in good:
    variables, _ = restore_variables(tmp_path, step)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))
  batch = [row['file'] for row in rows(tmp_path / 'diverged_batch.csv')]
  found = sorted(str(p.relative_to(photos)) for p in photos.rglob('*.jpg'))
  assert len(batch) == 8 and set(batch) <= set(found)
  assert ', '.join(batch[:3]) in done.stderr


@pytest.mark.parametrize('per_class', [
    1, pytest.param(2, marks=pytest.mark.slow)])
def test_fewer_photos_than_a_batch_just_work(cache, tmp_path, per_class):
  photos = make_folder(tmp_path / 'photos', per_class)
  done = launch('--config=configs/finetune.py', *TINY,
                f'--config.data.source=folder:{photos}',
                f'--workdir={tmp_path}/run', cache=cache)
  assert done.returncode == 0, done.stderr
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert results['steps'] == 2 and results['val_count'] == 2


def test_a_debug_run_on_real_photos(cache, tmp_path):
  real = os.environ.get('CATSDOGS_REAL_DATA')
  if not real:
    pytest.skip('CATSDOGS_REAL_DATA names no folder of real photos')
  done = launch(
      DEBUG, *TINY, f'--config.data.source=folder:{real}/dogs-vs-cats',
      f'--workdir={tmp_path}', cache=cache)
  assert done.returncode == 0, done.stderr
  assert ('Found 358 training images belonging to 2 classes (cat 179, dog '
          '179).' in done.stdout)
  assert 'Found 89 validation images' in done.stdout
  done = launch('--mode=predict', f'--workdir={tmp_path}',
                f'--images={real}/full-size', cache=cache)
  assert done.returncode == 0, done.stderr
  table = rows(tmp_path / 'predictions.csv')
  assert len(table) == 286 and not any(row['error'] for row in table)
