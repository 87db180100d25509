"""The table of controls: real runs, tiny photos, a tiny network."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from catsdogs.evaluate import confidence_interval
from runs import ROOT, make_folder

RANDOM = '--config.model.weights=none'
# The network is for `auto` to choose.
SMALL = ('--config.data.image_size=32', '--config.train.batch_size=8')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  return make_folder(tmp_path_factory.mktemp('a photo | two'), per_class=20)


def start(*arguments: str, cache: pathlib.Path) -> subprocess.Popen:
  return subprocess.Popen(
      [sys.executable, '-m', 'benchmarks.why', *SMALL, *arguments], cwd=ROOT,
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      text=True, env={**os.environ, 'CATSDOGS_CACHE': str(cache),
                      'JAX_PLATFORMS': 'cpu', 'CATSDOGS_ONEDNN': '0'})


def why(*arguments: str, cache: pathlib.Path) -> subprocess.CompletedProcess:
  process = start(*arguments, cache=cache)
  out, err = process.communicate(timeout=300)
  return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def result(workdir: pathlib.Path) -> dict:
  return json.loads((workdir / 'results.json').read_text())


@pytest.fixture(scope='module')
def done(photos, tmp_path_factory):
  """Two rows, the arguments that made them, and what came of it."""
  folder = tmp_path_factory.mktemp('why')
  arguments = (f'--config.data.source=folder:{photos}', RANDOM,
               '--rows=random,debug', f'--workdir={folder}/runs',
               f'--json={folder}/rows.json')
  finished = why(*arguments, cache=folder)
  assert finished.returncode == 0, finished.stderr
  return folder, arguments, finished


def test_each_row_is_what_its_run_wrote(done):
  folder, _, finished = done
  rows = {row['row']: row
          for row in json.loads((folder / 'rows.json').read_text())}
  assert list(rows) == ['guess', 'before', 'debug', 'keras_debug', 'random']
  for name in ('debug', 'random'):
    found = result(folder / 'runs' / name)
    for key in ('val_accuracy', 'val_accuracy_interval', 'val_count',
                'seconds_total', 'data', 'model', 'device'):
      assert rows[name][key] == found[key]
    assert rows[name]['benchmark'] == 'why' and rows[name]['machine']
  before = result(folder / 'runs' / 'debug')['before']
  assert rows['before']['val_accuracy'] == before['val_accuracy']
  assert rows['before']['val_count'] == before['val_count']
  assert rows['before']['val_accuracy_interval'] == pytest.approx(
      confidence_interval(round(before['val_accuracy'] * before['val_count']),
                          before['val_count']))
  assert rows['guess']['val_accuracy'] == 0.5
  assert rows['keras_debug']['val_accuracy_interval'] == pytest.approx(
      (0.48, 0.80), abs=5e-3)

  title, rule, *lines = finished.stdout.splitlines()
  assert title.count('|') == rule.count('|') == 7
  assert len(lines) == len(rows)
  for line, row in zip(lines, rows.values()):
    assert line.replace(r'\|', '').count('|') == 7
    assert line.startswith(f'| {row["what"]} | {row["val_accuracy"]:.4f} |')
  assert '| 1/20 of the samples, 1 epoch | ' in finished.stdout
  assert '| all samples, 2 epochs, from random weights | ' in finished.stdout


def test_the_random_network_is_the_one_of_the_others(done):
  folder, _, finished = done
  debug, random = (
      json.loads((folder / 'runs' / name / 'config.json').read_text())
      for name in ('debug', 'random'))
  assert random['model'] == debug['model'] | {'weights': 'none'}
  assert random['data'] == debug['data'] | {'sample_fraction': 1.0}
  assert (f'--config.model.name={debug["model"]["name"]} '
          f'--config.model.width={debug["model"]["width"]} ') in finished.stdout


def test_a_finished_row_is_not_run_again_nor_taken_for_another(done, photos):
  folder, arguments, first = done
  files = [f for f in (folder / 'runs').rglob('*') if f.is_file()]
  before = {file: file.stat().st_mtime_ns for file in files}
  again = why(*arguments, cache=folder)
  assert again.returncode == 0, again.stderr
  assert again.stdout == first.stdout
  assert before == {file: file.stat().st_mtime_ns for file in files}
  other = why(*arguments, '--config.optim.name=adamw', cache=folder)
  assert other.returncode == 2 and not other.stdout
  assert 'optim.name' in other.stderr
  assert before == {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.slow
def test_interrupted_it_goes_on_where_it_was(done, tmp_path):
  folder, arguments, first = done
  shutil.copytree(folder / 'runs' / 'debug', tmp_path / 'runs' / 'debug')
  before = result(tmp_path / 'runs' / 'debug')
  arguments = (*arguments, f'--workdir={tmp_path}/runs',
               f'--json={tmp_path}/rows.json')
  process = start(*arguments, cache=folder)
  deadline = time.monotonic() + 240
  while not (tmp_path / 'runs' / 'random' / 'config.json').exists():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=240)
  assert process.returncode == 128 + signal.SIGTERM and not out, err
  assert not (tmp_path / 'rows.json').exists()
  # The row that ran has ended too, with what it learnt saved.
  assert 'SIGTERM: stopped; the same command goes on.' in err
  assert list((tmp_path / 'runs' / 'random' / 'checkpoints').iterdir())
  again = why(*arguments, cache=folder)
  assert again.returncode == 0, again.stderr
  assert result(tmp_path / 'runs' / 'debug') == before
  assert ([line.split('|')[:5] for line in again.stdout.splitlines()]
          == [line.split('|')[:5] for line in first.stdout.splitlines()])


def test_a_row_that_fails_says_why_and_ends_it(tmp_path):
  finished = why('--config.data.source=folder:/no/such/folder', RANDOM,
                 f'--workdir={tmp_path}', f'--json={tmp_path}/rows.json',
                 cache=tmp_path)
  assert finished.returncode == 2 and not finished.stdout
  assert not (tmp_path / 'rows.json').exists()
  command, message, ours = finished.stderr.strip().splitlines()
  assert command.startswith('debug: python launch.py --config=configs/debug.py')
  assert message.startswith('Error:') and '/no/such/folder' in message
  assert ours.startswith("Error: the row 'debug' ended with status 2")


@pytest.mark.parametrize('arguments, words', [
    (['--rows=debug,all'], "'all' is none of debug, one_epoch"),
    (['--rows=random,frozen'], 'add one of finetune'),
    (['--config.train.epochs=3'], '--config.train.epochs is what the rows'),
    (['--config=configs/debug.py'], "'--config=configs/debug.py' is neither"),
    (['photos'], "'photos' is neither")])
def test_what_makes_no_table_is_refused_before_any_run(tmp_path, arguments,
                                                       words):
  finished = why(*arguments, f'--workdir={tmp_path}/runs', cache=tmp_path)
  assert finished.returncode == 2 and not finished.stdout
  assert words in finished.stderr and len(finished.stderr.splitlines()) == 1
  assert not (tmp_path / 'runs').exists()
