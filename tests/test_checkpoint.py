"""What was saved comes back, the right ones stay, damage is passed over."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catsdogs.checkpoint import (Checkpoints, choose_step, restore_variables,
                                 saved_steps)
from catsdogs.errors import UserError
from catsdogs.train_state import TrainState


def state_of(step: int, ema: bool = False) -> TrainState:
  values = {'layer': {'kernel': jnp.full((3, 5), float(step)),
                      'bias': jnp.arange(5.0) + step}}
  return TrainState(
      step=jnp.array(step, jnp.int32), params=values,
      batch_stats={'bn': {'mean': jnp.ones(4) * step}},
      opt_state=({'count': jnp.array(step)}, values),
      ema_params=jax.tree.map(lambda x: x / 2, values) if ema else None,
      ema_batch_stats={'bn': {'mean': jnp.zeros(4)}} if ema else None)


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype


def save(workdir, steps, best=lambda steps: None, keep=2, ema=False):
  checkpoints = Checkpoints(workdir, keep, best)
  for step in steps:
    checkpoints.save(state_of(step, ema), {'at': step, 'exact': 0.1 + 0.2})
  checkpoints.close()


@pytest.mark.parametrize('ema', [False, True])
def test_what_was_saved_comes_back_exactly(tmp_path, ema):
  save(tmp_path, [3, 7], ema=ema)
  checkpoints = Checkpoints(tmp_path, 2, lambda steps: None)
  state, meta = checkpoints.restore_latest(state_of(0, ema))
  checkpoints.close()
  assert_same(state, state_of(7, ema))
  assert meta == {'at': 7, 'exact': 0.1 + 0.2}


def test_there_is_nothing_to_restore_in_a_new_folder(tmp_path):
  checkpoints = Checkpoints(tmp_path, 2, lambda steps: None)
  assert checkpoints.restore_latest(state_of(0)) is None
  checkpoints.close()


def test_the_latest_two_and_the_best_stay(tmp_path):
  save(tmp_path, [1, 2, 3, 4, 5], best=lambda steps: 2)
  assert saved_steps(tmp_path) == [2, 4, 5]


def test_the_newest_stays_though_it_is_not_the_best(tmp_path):
  save(tmp_path, [1, 2, 3], best=lambda steps: 1, keep=1)
  assert saved_steps(tmp_path) == [1, 3]


def test_a_step_is_saved_once(tmp_path):
  save(tmp_path, [4, 4])
  assert saved_steps(tmp_path) == [4]


def test_what_is_saved_is_not_what_the_next_step_makes_of_it(tmp_path):
  step = jax.jit(lambda s: s.replace(
      step=s.step + 1, params=jax.tree.map(lambda x: x + 1, s.params)),
      donate_argnums=0)
  state = jax.device_put(state_of(0))
  state = state.replace(params={'big': jnp.zeros((256, 1024))})
  checkpoints = Checkpoints(tmp_path, 50, lambda steps: None)
  for _ in range(10):
    state = step(state)
    checkpoints.save(state, {})  # In the background, while the next step runs.
  checkpoints.close()
  for i in range(1, 11):
    variables, _ = restore_variables(tmp_path, i)
    np.testing.assert_array_equal(variables['params']['big'], float(i))


def test_a_damaged_newest_is_told_and_passed_over(tmp_path, capsys):
  save(tmp_path, [3, 7])
  for file in (tmp_path / 'checkpoints' / '7' / 'state').rglob('*'):
    if file.is_file() and file.stat().st_size > 0:
      file.write_bytes(file.read_bytes()[:10])
  checkpoints = Checkpoints(tmp_path, 2, lambda steps: None)
  state, _ = checkpoints.restore_latest(state_of(0))
  checkpoints.close()
  assert_same(state, state_of(3))
  assert '7' in capsys.readouterr().out


def test_a_damaged_step_is_set_aside_and_saved_anew(tmp_path):
  save(tmp_path, [3, 7])
  (tmp_path / 'checkpoints' / '7' / 'state' / 'manifest.ocdbt').unlink()
  checkpoints = Checkpoints(tmp_path, 2, lambda steps: None)
  checkpoints.restore_latest(state_of(0))
  for step in (5, 7):
    checkpoints.save(state_of(step), {'at': step})
  checkpoints.close()
  assert saved_steps(tmp_path) == [5, 7]
  variables, _ = restore_variables(tmp_path, 7)
  assert_same(variables, jax.tree.map(np.asarray,
                                      state_of(7).eval_variables()))
  assert len(list((tmp_path / 'damaged_checkpoints').iterdir())) == 1


def test_nothing_but_damage_is_refused_and_left_as_it_is(tmp_path):
  save(tmp_path, [3])
  shutil.rmtree(tmp_path / 'checkpoints' / '3' / 'state')
  checkpoints = Checkpoints(tmp_path, 2, lambda steps: None)
  with pytest.raises(UserError, match='--restart'):
    checkpoints.restore_latest(state_of(0))
  checkpoints.close()
  assert (tmp_path / 'checkpoints' / '3').is_dir()


def test_an_unfinished_save_is_no_checkpoint(tmp_path):
  save(tmp_path, [3])
  shutil.copytree(tmp_path / 'checkpoints' / '3',
                  tmp_path / 'checkpoints' / '9.orbax-checkpoint-tmp')
  assert saved_steps(tmp_path) == [3]
  checkpoints = Checkpoints(tmp_path, 2, lambda steps: None)
  assert int(checkpoints.restore_latest(state_of(0))[0].step) == 3
  checkpoints.close()


@pytest.mark.parametrize('ema', [False, True])
def test_variables_alone_are_those_that_are_evaluated(tmp_path, ema):
  save(tmp_path, [5], ema=ema)
  variables, meta = restore_variables(tmp_path, 5)
  assert_same(variables, jax.tree.map(np.asarray,
                                      state_of(5, ema).eval_variables()))
  assert meta['at'] == 5


def test_a_damaged_checkpoint_cannot_be_predicted_with(tmp_path):
  save(tmp_path, [5])
  (tmp_path / 'checkpoints' / '5' / 'meta' / 'metadata').write_text('{')
  with pytest.raises(UserError, match='damaged'):
    restore_variables(tmp_path, 5)


def test_choosing_a_step(tmp_path):
  with pytest.raises(UserError, match='no checkpoint'):
    choose_step(tmp_path, 'best')
  save(tmp_path, [5, 9])
  assert choose_step(tmp_path, 'last') == 9
  assert choose_step(tmp_path, '5') == 5
  with pytest.raises(UserError, match='5, 9'):
    choose_step(tmp_path, '6')
  with pytest.raises(UserError, match='last'):
    choose_step(tmp_path, 'best')
  (tmp_path / 'metrics.csv').write_text(
      'step,epoch,eval_loss,eval_accuracy\n5,1,0.4,0.9\n9,2,0.5,0.8\n')
  assert choose_step(tmp_path, 'best') == 5
