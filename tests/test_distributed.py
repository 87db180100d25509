"""Several processes on 127.0.0.1 do what one does, and end together."""

import csv
import json
import os
import pathlib
import signal
import socket
import subprocess

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

import runs
from catsdogs import distributed
from catsdogs.checkpoint import restore_variables, saved_steps
from catsdogs.errors import UserError
from catsdogs.interruption import Interrupted

# 20 steps; every one tells its loss.
ARGUMENTS = ('--config=configs/finetune.py', *runs.TINY,
             '--config.train.log_every_steps=1', '--config.train.epochs=4.4',
             '--config.train.eval_every_epochs=5')
ENDLESS = (*ARGUMENTS, '--config.train.epochs=5000',
           '--config.train.checkpoint_every_steps=4',
           '--config.train.evaluate_before=False',
           '--config.train.eval_every_epochs=5000')


def start(count: int, folder: pathlib.Path, workdir: pathlib.Path,
          *arguments: str, devices: int = 1) -> list[subprocess.Popen]:
  """Starts the processes of a run; one is told nothing of others."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  processes = []
  for index in range(count):
    with pytest.MonkeyPatch.context() as patch:
      patch.setenv('JAX_NUM_CPU_DEVICES', str(devices))
      if count > 1:
        patch.setenv('JAX_COORDINATOR_ADDRESS', address)
        patch.setenv('JAX_NUM_PROCESSES', str(count))
        patch.setenv('JAX_PROCESS_ID', str(index))
      processes.append(runs.start(
          *arguments, f'--config.data.source=folder:{folder}',
          f'--workdir={workdir}', *['--distributed'] * (count > 1),
          cache=workdir.parent / 'cache'))
  return processes


def end(processes: list[subprocess.Popen], seconds: float = 300
        ) -> list[tuple[int, str, str]]:
  """Exit status, stdout and stderr of each."""
  outputs = [process.communicate(timeout=seconds) for process in processes]
  return [(process.returncode, *output)
          for process, output in zip(processes, outputs)]


def column(workdir: pathlib.Path, name: str) -> list[float]:
  with (workdir / 'metrics.csv').open() as f:
    return [float(row[name]) for row in csv.DictReader(f) if row[name]]


def predictions(workdir: pathlib.Path) -> list[dict[str, str]]:
  with (workdir / 'predictions' / 'val.csv').open() as f:
    return list(csv.DictReader(f))


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  return runs.make_folder(tmp_path_factory.mktemp('data') / 'photos', 23)


@pytest.fixture(scope='module')
def alone(folder, tmp_path_factory) -> pathlib.Path:
  """The workdir of one process that trained by itself."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  (status, _, err), = end(start(1, folder, workdir, *ARGUMENTS))
  assert (status, err) == (0, '')
  return workdir


@pytest.fixture(scope='module',
                params=[2, pytest.param(4, marks=pytest.mark.slow)])
def together(request, folder, tmp_path_factory):
  """The workdir of several that trained together, and what they said."""
  workdir = tmp_path_factory.mktemp('together') / 'run'
  return workdir, end(start(request.param, folder, workdir, *ARGUMENTS))


def test_all_end_well_and_only_the_first_one_speaks(together):
  _, ((status, out, err), *others) = together
  assert (status, err) == (0, '')
  assert out.startswith('Data: ') and 'Finished in' in out
  assert others == [(0, '', '')] * len(others)


def test_several_processes_take_the_steps_of_one(alone, together):
  workdir, _ = together
  losses = column(workdir, 'train_loss')
  assert len(losses) == 20
  # The first other photo, or crop of it, would differ in the second digit.
  np.testing.assert_allclose(losses, column(alone, 'train_loss'), rtol=1e-4)
  np.testing.assert_allclose(column(workdir, 'grad_norm'),
                             column(alone, 'grad_norm'), rtol=1e-3)


def test_the_statistics_are_those_of_the_global_batch(alone, together):
  workdir, _ = together
  (one, _), (several, _) = (restore_variables(w, 20) for w in (alone, workdir))
  for name, rtol in (('batch_stats', 1e-3), ('params', 1e-2)):
    jax.tree.map(lambda a, b, rtol=rtol: np.testing.assert_allclose(
        a, b, rtol=rtol, atol=1e-4), several[name], one[name])


def test_each_photo_is_evaluated_once_on_any_number(alone, together):
  workdir, _ = together
  rows, expected = predictions(workdir), predictions(alone)
  assert len(rows) % 8, 'the last batch is to be padded'
  assert len({row['file'] for row in rows}) == len(rows)
  for row, other in zip(rows, expected, strict=True):
    assert (row['file'], row['label']) == (other['file'], other['label'])
    assert float(row['cat']) == pytest.approx(float(other['cat']), abs=1e-4)
  results = json.loads((workdir / 'results.json').read_text())
  assert results['val_count'] == len(rows)


def test_one_process_writes(together):
  workdir, outputs = together
  assert len(list(workdir.glob('events.out.tfevents.*'))) == 1
  assert not list(workdir.rglob('*partial*')) + list(workdir.rglob('*tmp*'))
  steps = column(workdir, 'step')
  assert len(steps) == len(set(steps)) + 1  # Step 20 learns, and is evaluated.
  results = json.loads((workdir / 'results.json').read_text())
  assert results['device']['processes'] == len(outputs)


def tells_of_a_loss(status: int, err: str) -> bool:
  """Whether a process ended as one does that has lost another.

  In a step, our line tells. Elsewhere, such as while saving, JAX does, when
  it has missed the other's heartbeat for long enough, and aborts.
  """
  ours = 'Error: another process of this run is lost (' in err
  return (status == 1 and ours
          or status == -signal.SIGABRT and 'another task died' in err)


@pytest.mark.slow
def test_they_stop_together_go_on_and_are_ended_by_a_loss(folder, tmp_path):
  workdir = tmp_path / 'run'
  processes = start(2, folder, workdir, *ENDLESS)
  runs.wait_for_checkpoint(processes[0], workdir, 4)
  processes[1].send_signal(signal.SIGTERM)  # The other is told by this one.
  assert [status for status, _, _ in end(processes)] == [143, 143]
  stopped = saved_steps(workdir)[-1]

  processes = start(2, folder, workdir, *ENDLESS)
  runs.wait_for_checkpoint(processes[0], workdir, stopped + 1)
  processes[1].kill()
  (status, out, err), _ = end(processes, seconds=60)
  assert f'Resuming after step {stopped} ' in out
  assert tells_of_a_loss(status, err)
  # Killed at some step, they logged none twice.
  steps = column(workdir, 'step')
  assert steps == sorted(set(steps))


@pytest.mark.slow
@pytest.mark.parametrize('count, victim', [(2, 0), (4, 0), (4, 3)])
def test_the_loss_of_any_ends_all(folder, tmp_path, count, victim):
  workdir = tmp_path / 'run'
  processes = start(count, folder, workdir, *ENDLESS)
  runs.wait_for_checkpoint(processes[0], workdir, 4)
  processes[victim].kill()
  for index, (status, _, err) in enumerate(end(processes, seconds=60)):
    assert index == victim or tells_of_a_loss(status, err)


@pytest.mark.slow
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_run_goes_on_with_other_processes_and_devices(folder, alone,
                                                        tmp_path, signum):
  workdir = tmp_path / 'run'
  every = ('--config.train.checkpoint_every_steps=1',)
  arguments = (*ARGUMENTS, *every)
  seen = []
  for processes, devices in ((1, 1), (2, 1), (1, 4), (2, 4), (1, 1)):
    running = start(processes, folder, workdir, *arguments, devices=devices)
    runs.wait_for_checkpoint(running[0], workdir, len(seen) * 4 + 1)
    for process in running:
      process.send_signal(signum)
    seen.append([status for status, _, _ in end(running)])
  (status, _, err), = end(start(1, folder, workdir, *arguments))
  assert status == 0, err
  assert all(set(s) <= {0, 128 + signum} for s in seen)
  np.testing.assert_allclose(column(workdir, 'train_loss'),
                             column(alone, 'train_loss'), rtol=1e-3)


def test_the_rows_of_a_process_are_those_that_its_devices_hold():
  mesh = Mesh(jax.devices()[:1], ('data',))
  rows = distributed.rows_of_process(NamedSharding(mesh, P('data')), 6)
  np.testing.assert_array_equal(rows, np.arange(6))

  class Wired:  # As a mesh of four devices that two processes share in turn.
    def addressable_devices_indices_map(self, shape):
      assert shape == (8,)
      return {'c': (slice(4, 6),), 'a': (slice(0, 2),)}

  np.testing.assert_array_equal(distributed.rows_of_process(Wired(), 8),
                                [0, 1, 4, 5])


@pytest.fixture
def look(monkeypatch):
  """JAX's look for a cluster, though a backend is in use in this process."""
  monkeypatch.setattr(jax.distributed, 'initialize',
                      jax._src.distributed.global_state.initialize)


@pytest.mark.parametrize('variables', [
    {'JAX_COORDINATOR_ADDRESS': '127.0.0.1:9'},
    {'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'},
    {'JAX_COORDINATOR_ADDRESS': '127.0.0.1', 'JAX_NUM_PROCESSES': '2',
     'JAX_PROCESS_ID': '0'},
    {'JAX_COORDINATOR_ADDRESS': '127.0.0.1:9', 'JAX_NUM_PROCESSES': '2',
     'JAX_PROCESS_ID': '2'}])
def test_half_of_an_answer_is_refused(monkeypatch, look, variables):
  del look
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match='JAX_COORDINATOR_ADDRESS=HOST:PORT'):
    distributed.initialize(None)


def test_without_a_cluster_a_process_is_alone_unless_asked(monkeypatch, look):
  del look
  distributed.initialize(None)
  distributed.initialize(False)
  assert not jax.distributed.is_initialized()
  with pytest.raises(UserError, match='--distributed: .*SLURM'):
    distributed.initialize(True)
  # One of many runs side by side in a job does not look for the others.
  monkeypatch.setattr(os, 'environ', {**os.environ, 'SLURM_NTASKS': '1'})
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **_: 1 / 0)
  distributed.initialize(None)


def test_one_process_asks_nobody():
  def check():
    raise Interrupted(signal.SIGTERM)

  assert distributed.in_agreement(check, None) is check
  assert distributed.gather([('a', 'b')]) == [('a', 'b')]
  with distributed.process_0_first():
    distributed.check_same('text', 'never')
  with pytest.raises(UserError, match='^so it is$'):
    distributed.check_everywhere(False, 'so it is')
