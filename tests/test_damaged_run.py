"""Runs whose checkpoints are damaged, and whose disk takes none, go on."""

import json
import shutil

import pytest

from catsdogs.checkpoint import restore_variables, saved_steps
from disks import remount, small_disk
from runs import TINY, launch, make_folder
from test_checkpoint import assert_same
from test_damage import cut, flip

RUN = ('--config=configs/finetune.py', *TINY, '--config.train.epochs=3',
       '--config.train.eval_every_epochs=1', '--config.train.keep=3')


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  photos = make_folder(tmp_path_factory.mktemp('photos'), per_class=20)
  return f'--config.data.source=folder:{photos}'


@pytest.fixture(scope='module')
def run(tmp_path_factory, source, cache):
  """A finished run of 12 steps; tests copy its workdir."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  done = launch(*RUN, source, f'--workdir={workdir}', cache=cache)
  assert done.returncode == 0, done.stderr
  assert saved_steps(workdir) == [4, 8, 12]
  return workdir


def unfinished(run, workdir):
  """The run as if it were killed just before its end; its best step is 4."""
  shutil.copytree(run, workdir)
  (workdir / 'results.json').unlink()
  rows = (workdir / 'metrics.csv').read_text().splitlines()
  place = rows[0].split(',').index('eval_accuracy')
  for i, row in enumerate(rows):
    values = row.split(',')
    if values[0] == '4' and values[place]:
      values[place] = '2.0'
      rows[i] = ','.join(values)
  (workdir / 'metrics.csv').write_text('\n'.join(rows) + '\n')
  return workdir


def data_file(workdir, step):
  """The largest file of a checkpoint."""
  files = (workdir / 'checkpoints' / str(step) / 'state').rglob('*')
  return max(files, key=lambda f: f.stat().st_size if f.is_file() else 0)


def refused(done, *words):
  assert done.returncode == 2, done
  assert len(done.stderr.strip().splitlines()) == 1, done.stderr
  for word in words:
    assert word in done.stderr


def assert_ends_alike(workdir, run):
  """Asserts the last parameters of two runs to be equal, bit for bit."""
  found, expected = restore_variables(workdir, 12), restore_variables(run, 12)
  assert_same(found[0], expected[0])


def test_a_run_goes_on_without_its_newest_and_its_best(run, source, cache,
                                                       tmp_path):
  workdir = unfinished(run, tmp_path / 'run')
  cut(data_file(workdir, 12), 0.5)
  flip(data_file(workdir, 4), 0.5)
  folder = workdir / 'checkpoints'
  shutil.copytree(folder / '8', folder / '13.orbax-checkpoint-tmp')
  done = launch('--mode=evaluate', f'--workdir={workdir}', cache=cache)
  refused(done, 'checkpoints/4 is damaged', 'not the bytes', '--checkpoint=')

  done = launch(*RUN, source, f'--workdir={workdir}', cache=cache)
  assert done.returncode == 0 and not done.stderr, done.stderr
  for step in (4, 12):
    assert f'checkpoints/{step} is damaged and passed over' in done.stdout
  assert 'Resuming after step 8 of 12.' in done.stdout
  assert_ends_alike(workdir, run)
  assert saved_steps(workdir) == [8, 12]
  assert {p.name.split('-')[0]
          for p in (workdir / 'damaged_checkpoints').iterdir()} == {'4', '12'}
  results = json.loads((workdir / 'results.json').read_text())
  assert results['status'] == 'finished' and results['best_step'] in (8, 12)


def test_checkpoints_of_another_run_are_refused(run, source, cache, tmp_path):
  workdir = unfinished(run, tmp_path / 'run')
  config = json.loads((workdir / 'config.json').read_text())
  config['seed'] = 7
  (workdir / 'config.json').write_text(json.dumps(config))
  before = saved_steps(workdir)
  done = launch(f'--workdir={workdir}', cache=cache)
  refused(done, 'another config', 'seed', '--restart')
  assert saved_steps(workdir) == before


@pytest.mark.slow
def test_a_run_goes_on_when_a_full_disk_has_room_again(run, source, cache,
                                                       tmp_path):
  # The second checkpoint finds no room for the names of its files.
  with small_disk(tmp_path / 'disk', 'size=2m,nr_inodes=60') as disk:
    command = (*RUN, source, f'--workdir={disk}/run')
    done = launch(*command, cache=cache)
    refused(done, f'{disk}/run/checkpoints', 'MiB left; make room')
    assert 'Before training' not in done.stdout

    remount(disk, 'size=64m')
    done = launch(*command, cache=cache)
    refused(done, f'{disk}/run', 'No space left on device', 'make room')
    assert saved_steps(disk / 'run') == [4]

    remount(disk, 'nr_inodes=1000')
    done = launch(*command, cache=cache)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert 'Resuming after step 4 of 12.' in done.stdout
    assert_ends_alike(disk / 'run', run)
