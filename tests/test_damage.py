"""Checkpoints that are damaged, and disks that take none: what is lost."""

import collections
import errno
import os
import pathlib
import resource
import shutil

import jax
import numpy as np
from orbax.checkpoint._src.multihost import multihost
import pytest

from catsdogs import checkpoint as checkpoint_lib
from catsdogs.checkpoint import (Checkpoints, choose_step, restore_variables,
                                 saved_steps)
from catsdogs.errors import UserError
from disks import remount, small_disk
from test_checkpoint import assert_same, save, state_of

# Right inside a checkpoint, of Orbax itself, and not needed to restore it.
UNSEALED = {'_CHECKPOINT_METADATA', 'commit_success.txt'}


def large_state(step: int):
  """Noise, which no compression makes smaller: 1 MiB of it."""
  noise = jax.random.normal(jax.random.key(step), (256, 1024))
  return state_of(step).replace(params={'noise': noise})


def opened(workdir, keep=2):
  return Checkpoints(workdir, keep, lambda steps: None)


def assert_whole(workdir, steps):
  """Asserts that just these steps are there, with what was saved."""
  assert saved_steps(workdir) == steps
  for step in steps:
    found, _ = restore_variables(workdir, step)
    assert_same(found, jax.tree.map(np.asarray,
                                    large_state(step).eval_variables()))


def flip(file: pathlib.Path, place: float, bit: int = 0) -> None:
  content = bytearray(file.read_bytes())
  content[int(place * len(content))] ^= 1 << bit
  file.write_bytes(content)


def cut(file: pathlib.Path, share: float) -> None:
  os.truncate(file, int(share * file.stat().st_size))


DAMAGE = {
    'missing': pathlib.Path.unlink,
    'empty': lambda file: cut(file, 0),
    'half': lambda file: cut(file, 0.5),
    'first byte': lambda file: flip(file, 0, 7),
    'byte within': lambda file: flip(file, 0.6, 3),
    'last byte': lambda file: flip(file, 0.9999999, 0),
}


def try_damage(workdir, copy, file, damage, capsys):
  """Damages a file of the newest checkpoint; 'found', or 'unharmed' by it."""
  shutil.rmtree(copy, ignore_errors=True)
  shutil.copytree(workdir, copy)
  damage(copy / 'checkpoints' / '7' / file)
  try:
    variables, _ = restore_variables(copy, 7)
  except UserError as e:
    assert '--checkpoint=STEP' in str(e)
    outcome, step = 'found', 3
  else:
    assert_same(variables, jax.tree.map(np.asarray,
                                        large_state(7).eval_variables()))
    outcome, step = 'unharmed', 7
  checkpoints = opened(copy)
  state, meta = checkpoints.restore_latest(large_state(0))
  checkpoints.close()
  assert_same(state, large_state(step))
  assert meta == {'at': step}
  told = capsys.readouterr().out
  assert told.count('is damaged and passed over') == (step == 3), told
  assert (copy / 'damaged_checkpoints').exists() == (step == 3)
  return outcome


@pytest.fixture(scope='module')
def two_checkpoints(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('two')
  checkpoints = opened(workdir)
  for step in (3, 7):
    checkpoints.save(large_state(step), {'at': step})
  checkpoints.close()
  return workdir


def files_of(workdir):
  newest = workdir / 'checkpoints' / '7'
  return sorted(str(f.relative_to(newest)) for f in newest.rglob('*')
                if f.is_file())


@pytest.mark.parametrize('kind', DAMAGE)
def test_damage_to_any_file_is_found_or_does_no_harm(
    two_checkpoints, tmp_path, capsys, kind):
  outcomes = collections.Counter()
  for file in files_of(two_checkpoints):
    outcome = try_damage(two_checkpoints, tmp_path / 'copy', file,
                         DAMAGE[kind], capsys)
    assert outcome == ('unharmed' if file in UNSEALED else 'found'), file
    outcomes[outcome] += 1
  assert outcomes['found'] >= 12
  assert outcomes['unharmed'] == len(UNSEALED)


@pytest.mark.slow
def test_a_thousand_flipped_bits_are_found_or_do_no_harm(
    two_checkpoints, tmp_path, capsys):
  random = np.random.default_rng(0)
  outcomes = collections.Counter()
  files = files_of(two_checkpoints)
  for _ in range(1000):
    file, place = random.choice(files), random.random()
    outcomes[try_damage(two_checkpoints, tmp_path / 'copy', file,
                        lambda f: flip(f, place, random.integers(8)),
                        capsys)] += 1
  assert outcomes.total() == 1000
  print(dict(outcomes))


def test_two_exchanged_checkpoints_are_found(two_checkpoints, tmp_path):
  folder = shutil.copytree(two_checkpoints, tmp_path / 'x') / 'checkpoints'
  (folder / '7').rename(folder / '9')
  with pytest.raises(UserError, match='saved as 7'):
    restore_variables(tmp_path / 'x', 9)


def test_a_checkpoint_without_checksums_is_told(two_checkpoints, tmp_path):
  workdir = shutil.copytree(two_checkpoints, tmp_path / 'x')
  for step in (3, 7):
    (workdir / 'checkpoints' / str(step) / 'checksums.json').unlink()
  checkpoints = opened(workdir)
  with pytest.raises(UserError, match='no checkpoint in .* is whole.*restart'):
    checkpoints.restore_latest(large_state(0))
  checkpoints.close()
  assert saved_steps(workdir) == [3, 7]  # And left where they are.


def test_a_whole_checkpoint_that_does_not_fit_is_our_fault(two_checkpoints,
                                                           tmp_path):
  workdir = shutil.copytree(two_checkpoints, tmp_path / 'x')
  checkpoints = opened(workdir)
  with pytest.raises(Exception) as raised:
    checkpoints.restore_latest(state_of(0))
  checkpoints.close()
  assert not isinstance(raised.value, UserError)
  assert saved_steps(workdir) == [3, 7]


def test_a_checkpoint_of_another_run_is_left_alone(two_checkpoints):
  def refuse(meta):
    raise UserError(f'of another run: {meta["at"]}')

  checkpoints = opened(two_checkpoints)
  with pytest.raises(UserError, match='of another run: 7'):
    checkpoints.restore_latest(state_of(0), refuse)
  checkpoints.close()
  assert saved_steps(two_checkpoints) == [3, 7]


def test_the_best_that_is_whole_is_the_best(tmp_path, capsys):
  save(tmp_path, [3, 5, 7], keep=3)
  (tmp_path / 'metrics.csv').write_text(
      'step,epoch,eval_loss,eval_accuracy\n'
      '3,1,0.4,0.9\n5,2,0.5,0.8\n7,3,0.6,0.7\n')
  assert choose_step(tmp_path, 'best') == 3
  flip(tmp_path / 'checkpoints' / '3' / 'state' / 'manifest.ocdbt', 0.5)
  with pytest.raises(UserError, match='checkpoints/3 is damaged'):
    restore_variables(tmp_path, choose_step(tmp_path, 'best'))
  best = lambda steps: max(steps, key=lambda step: -step)
  checkpoints = Checkpoints(tmp_path, 1, best)
  checkpoints.restore_latest(state_of(0))
  assert checkpoints.steps() == [5, 7]
  capsys.readouterr()
  assert choose_step(tmp_path, 'best') == 5
  assert 'Step 3 was better than 5' in capsys.readouterr().out
  checkpoints.save(state_of(9), {})  # Keeps the best that remains.
  checkpoints.close()
  assert saved_steps(tmp_path) == [5, 9]


def test_what_a_killed_run_left_is_removed(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:  # Killed before it could remove any.
    patch.setattr(checkpoint_lib.shutil, 'rmtree', lambda *_, **__: None)
    save(tmp_path, [1, 2, 3])
  assert saved_steps(tmp_path) == [2, 3]  # None of them half removed.
  folder = tmp_path / 'checkpoints'
  shutil.copytree(folder / '3', folder / '4.orbax-checkpoint-tmp')
  opened(tmp_path).close()
  assert {p.name for p in folder.iterdir()} == {'2', '3'}


@pytest.mark.parametrize('missing', [900_000, 2**19, 2**18, 2**17, 2**16])
def test_a_full_disk_is_told_and_costs_no_checkpoint(tmp_path, missing):
  with small_disk(tmp_path / 'disk', 'size=16m') as disk:
    checkpoints = opened(disk, keep=1)
    checkpoints.save(large_state(1), {})
    checkpoints.wait()
    size = 16 * 2**20 - shutil.disk_usage(disk).free
    room = size - missing
    (disk / 'other').write_bytes(bytes(shutil.disk_usage(disk).free - room))
    with pytest.raises(UserError, match='checkpoints cannot be written .No '
                                        'space left on device.; make room'):
      checkpoints.save(large_state(2), {})
      checkpoints.wait()
    assert_whole(disk, [1])
    checkpoints.close()
    (disk / 'other').unlink()
    checkpoints = opened(disk, keep=1)  # The same command again.
    checkpoints.save(large_state(2), {})
    checkpoints.close()
    assert_whole(disk, [2])
    assert {p.name for p in (disk / 'checkpoints').iterdir()} == {'2'}


def test_no_room_for_the_checksums_costs_no_checkpoint(tmp_path, monkeypatch):
  def full(folder, name):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  checkpoints = opened(tmp_path, keep=1)
  checkpoints.save(large_state(1), {})
  checkpoints.wait()
  monkeypatch.setattr(checkpoint_lib.checksum, 'seal', full)
  checkpoints.save(large_state(2), {})
  with pytest.raises(UserError, match='No space left on device'):
    checkpoints.close()
  assert_whole(tmp_path, [1])


def test_files_that_may_not_grow_are_told_and_cost_no_checkpoint(tmp_path):
  checkpoints = opened(tmp_path, keep=1)
  checkpoints.save(large_state(1), {})
  checkpoints.wait()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, hard))
  try:
    with pytest.raises(UserError, match='File too large'):
      checkpoints.save(large_state(2), {})
      checkpoints.save(large_state(3), {})  # Tells of the save before.
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert_whole(tmp_path, [1])
  checkpoints.close()
  checkpoints = opened(tmp_path, keep=1)  # The same command again.
  checkpoints.save(large_state(4), {})
  checkpoints.close()
  assert_whole(tmp_path, [4])


@pytest.fixture
def impatient(monkeypatch):
  """Threads of Orbax wait 5 minutes for a folder that cannot be made.

  A run that ends does not wait for them; the tests' own process would.
  """
  monkeypatch.setattr(multihost, 'coordination_timeout', lambda: 2)


def test_a_disk_that_becomes_read_only_is_told(tmp_path, impatient):
  with small_disk(tmp_path / 'disk', 'size=16m') as disk:
    checkpoints = opened(disk)
    checkpoints.save(large_state(1), {})
    checkpoints.wait()
    remount(disk, 'ro')
    with pytest.raises(UserError, match='Read-only file system'):
      checkpoints.save(large_state(2), {})
      checkpoints.close()
    assert_whole(disk, [1])


def test_a_file_in_place_of_the_folder_is_told(tmp_path, impatient):
  checkpoints = opened(tmp_path)
  (tmp_path / 'checkpoints').rmdir()
  (tmp_path / 'checkpoints').write_text('')
  with pytest.raises(UserError, match='checkpoints cannot be written'):
    checkpoints.save(large_state(1), {})
    checkpoints.wait()
  with pytest.raises(UserError, match='checkpoints cannot be written'):
    opened(tmp_path)


def test_room_is_asked_for_all_that_will_lie_there(tmp_path, monkeypatch):
  free = 0
  monkeypatch.setattr(checkpoint_lib.shutil, 'disk_usage',
                      lambda _: shutil._ntuple_diskusage(0, 0, free))
  state = large_state(1)
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  checkpoints = opened(tmp_path, keep=2)
  free = 4 * size - 1
  with pytest.raises(UserError, match=r'up to 4\.0 MiB \(4 of 1\.0 MiB\)'):
    checkpoints.check_room(state, 100)
  free = 4 * size
  checkpoints.check_room(state, 100)
  free = int(3.2 * size)  # Zstandard takes 7% off the noise.
  with pytest.raises(UserError):
    checkpoints.check_room(state, 100)
  checkpoints.save(state, {})
  checkpoints.wait()
  checkpoints.check_room(state, 100)  # One of the four lies there already.
  free = int(2.2 * size)
  checkpoints.check_room(state, 3)  # Of three, however many are kept.
  checkpoints.close()
