"""SIGTERM and SIGINT end a run where it can be left; SIGKILL loses nothing."""

import json
import pathlib
import signal

import jax
import numpy as np
import pytest

from catsdogs.checkpoint import restore_variables, saved_steps
from catsdogs.errors import UserError
from catsdogs.interruption import Interrupted, Interruption
from runs import (LONG, TINY, launch, make_folder, rows, start,
                  wait_for_checkpoint)


@pytest.mark.parametrize('signum,status', [
    (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_remembered_until_it_is_asked_for(signum, status):
  with Interruption() as interruption:
    interruption.check()
    signal.raise_signal(signum)
    with pytest.raises(Interrupted, match=signum.name) as interrupted:
      interruption.check()
  assert interrupted.value.exit_status == status


def test_what_fails_in_the_last_save_is_told():
  with pytest.raises(UserError), Interruption() as interruption:
    signal.raise_signal(signal.SIGTERM)
    try:
      interruption.check()
    except Interrupted:
      raise UserError('no room') from None


def test_what_breaks_with_a_signal_to_all_processes_is_not():
  with pytest.raises(Interrupted), Interruption():
    signal.raise_signal(signal.SIGTERM)
    raise UserError('the download broke off')


def test_a_second_sigint_is_obeyed_at_once():
  with Interruption():
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)


def test_the_signals_are_handled_as_before_afterwards():
  before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  with pytest.raises(ValueError), Interruption():
    raise ValueError
  assert before == [signal.getsignal(s)
                    for s in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize('signum, onednn', [
    pytest.param(signal.SIGKILL, True, marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_as_one_left_alone(tmp_path, signum,
                                                   onednn):
  photos, cache = make_folder(tmp_path / 'photos', 20), tmp_path / 'cache'
  source = f'--config.data.source=folder:{photos}'
  alone, killed = tmp_path / 'alone', tmp_path / 'killed'
  done = launch(*LONG, source, f'--workdir={alone}', cache=cache,
                onednn=onednn)
  assert done.returncode == 0, done.stderr

  for step in (4, 18):  # In the middle of an epoch, twice.
    process = start(*LONG, source, f'--workdir={killed}', cache=cache,
                    onednn=onednn)
    wait_for_checkpoint(process, killed, step)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if signum == signal.SIGKILL
                                  else 128 + signum), err
    assert 'Traceback' not in err
  done = launch(*LONG, source, f'--workdir={killed}', cache=cache,
                onednn=onednn)
  assert done.returncode == 0, done.stderr
  assert 'Resuming after step' in done.stdout

  assert saved_steps(alone)[-2:] == saved_steps(killed)[-2:]
  for step in saved_steps(alone)[-2:]:
    expected, _ = restore_variables(alone, step)
    found, _ = restore_variables(killed, step)
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found)):
      np.testing.assert_array_equal(a, b)
  assert ((alone / 'predictions' / 'val.csv').read_text()
          == (killed / 'predictions' / 'val.csv').read_text())
  assert ([{**row, 'images_per_sec': ''} for row in rows(
      alone / 'metrics.csv')] == [{**row, 'images_per_sec': ''}
                                  for row in rows(killed / 'metrics.csv')])
  timed = ('seconds_total', 'seconds_to_first_step', 'images_per_second')
  results = [json.loads((w / 'results.json').read_text())
             for w in (alone, killed)]
  for key in timed:
    del results[0][key], results[1][key]
  assert results[0] == results[1]


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_photos_are_read_ends_the_run(tmp_path, signum):
  photos, cache = make_folder(tmp_path / 'photos', 1500), tmp_path / 'cache'
  process = start('--config=configs/debug.py', *TINY,
                  '--config.data.sample_fraction=1.0',
                  f'--config.data.source=folder:{photos}',
                  f'--workdir={tmp_path}/run', cache=cache)
  while not tensorflow_is_loaded(process.pid):
    assert process.poll() is None, process.communicate()
  process.send_signal(signum)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 128 + signum, err
  assert 'Traceback' not in err


def tensorflow_is_loaded(pid: int) -> bool:
  return '_pywrap_tensorflow' in pathlib.Path(f'/proc/{pid}/maps').read_text()
