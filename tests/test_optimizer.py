"""The learning rate, the update rules, and which parameters learn."""

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from catsdogs import optimizer
from catsdogs.errors import UserError

PATHS = ('stem/conv/kernel', 'stem/bn/scale', 'stem/bn/bias',
         'stage1/block1/conv1/conv/kernel', 'head/kernel', 'head/bias')


def settings(**values) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      'name': 'sgd', 'learning_rate': 0.1, 'schedule': 'constant',
      'warmup_epochs': 0.0, 'weight_decay': 0.0, 'lr_mults': (),
      'grad_clip_norm': 0.0, **values})


def tree(seed: int = 0, scale: float = 1.0):
  random = np.random.default_rng(seed)
  return traverse_util.unflatten_dict(
      {path: jnp.asarray(scale * random.normal(size=(3, 2)), jnp.float32)
       for path in PATHS}, sep='/')


def flat(params) -> dict[str, np.ndarray]:
  return {path: np.asarray(x, np.float64) for path, x in
          traverse_util.flatten_dict(params, sep='/').items()}


def after_steps(config, params, all_grads, learning_rate=lambda step: 0.1):
  """The parameters after a step for each of the gradients."""
  rule = optimizer.create_optimizer(config, params, learning_rate)
  state = rule.init(params)
  for grads in all_grads:
    updates, state = jax.jit(rule.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
  return flat(params)


def schedule(config, steps_per_epoch=10, total_steps=50):
  rate = jax.jit(optimizer.create_learning_rate_fn(
      config, steps_per_epoch, total_steps))
  return lambda step: float(rate(jnp.int32(step)))


# What is left of the peak halfway from the end of the warm-up to the end.
@pytest.mark.parametrize('name,half', [
    ('cosine', 0.5), ('linear', 0.5), ('constant', 1.0)])
def test_the_rate_warms_up_peaks_and_falls_as_its_schedule_says(name, half):
  rate = schedule(settings(schedule=name, warmup_epochs=1.0))
  np.testing.assert_allclose(
      [rate(step) for step in range(11)], 0.1 * np.arange(1, 12) / 11,
      rtol=1e-5)
  assert rate(10) == pytest.approx(0.1)
  assert rate(30) == pytest.approx(0.1 * half)
  assert rate(50) == pytest.approx(0.1 if name == 'constant' else 0, abs=1e-8)
  assert rate(60) == pytest.approx(rate(50), abs=1e-8)


def test_cosine_is_a_quarter_of_the_way_down_where_linear_is_and_higher():
  cosine = schedule(settings(schedule='cosine'), total_steps=40)
  linear = schedule(settings(schedule='linear'), total_steps=40)
  assert cosine(10) == pytest.approx(0.1 * (1 + np.cos(np.pi / 4)) / 2)
  assert linear(10) == pytest.approx(0.075)


@pytest.mark.parametrize('name', ['cosine', 'linear', 'constant'])
def test_without_warm_up_the_first_step_has_the_peak(name):
  assert schedule(settings(schedule=name))(0) == pytest.approx(0.1)


@pytest.mark.parametrize('name', ['cosine', 'linear', 'constant'])
def test_each_step_learns_even_in_the_shortest_and_warmest_run(name):
  for total, warmup in ((1, 0.0), (1, 1.0), (5, 5.0), (7, 2.5)):
    rate = schedule(settings(schedule=name, warmup_epochs=warmup),
                    steps_per_epoch=1.0, total_steps=total)
    rates = [rate(step) for step in range(total)]
    assert all(0 < r <= 0.1 + 1e-7 for r in rates), (total, warmup)


def test_sgd_is_nesterov_s_with_decay_of_kernels_alone():
  params, all_grads = tree(), [tree(seed) for seed in range(1, 6)]
  expected = flat(params)
  momentum = {path: 0.0 for path in PATHS}
  rates = [0.1, 0.2, 0.05, 0.3, 0.01]
  for rate, grads in zip(rates, all_grads):
    for path, grad in flat(grads).items():
      if path.endswith('/kernel'):
        grad = grad + 0.01 * expected[path]
      momentum[path] = 0.9 * momentum[path] + grad
      expected[path] = expected[path] - rate * (grad + 0.9 * momentum[path])
  actual = after_steps(settings(weight_decay=0.01), params, all_grads,
                       lambda step: jnp.array(rates)[step])
  for path in PATHS:
    np.testing.assert_allclose(actual[path], expected[path], rtol=1e-5,
                               atol=1e-6)


def test_adamw_decouples_the_decay_and_spares_biases_and_batch_norm():
  params, all_grads = tree(), [tree(seed) for seed in range(1, 6)]
  expected = flat(params)
  mean, square = ({path: 0.0 for path in PATHS} for _ in range(2))
  for step, grads in enumerate(all_grads, 1):
    for path, grad in flat(grads).items():
      mean[path] = 0.9 * mean[path] + 0.1 * grad
      square[path] = 0.999 * square[path] + 0.001 * grad**2
      move = (mean[path] / (1 - 0.9**step)) / (
          np.sqrt(square[path] / (1 - 0.999**step)) + 1e-8)
      if path.endswith('/kernel'):
        move = move + 0.3 * expected[path]
      expected[path] = expected[path] - 0.1 * move
  actual = after_steps(settings(name='adamw', weight_decay=0.3), params,
                       all_grads)
  for path in PATHS:
    np.testing.assert_allclose(actual[path], expected[path], rtol=1e-4,
                               atol=1e-5)


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_lr_mults_scale_the_update_of_the_first_pattern_that_matches(name):
  params, grads = tree(), [tree(1)]
  plain = after_steps(settings(name=name, weight_decay=0.01), params, grads)
  scaled = after_steps(settings(name=name, weight_decay=0.01, lr_mults=(
      ('^head/', 10.0), ('kernel', 0.0), ('bn', 0.5))), params, grads)
  start = flat(params)
  factors = {
      'stem/conv/kernel': 0, 'stage1/block1/conv1/conv/kernel': 0,
      'stem/bn/scale': 0.5, 'stem/bn/bias': 0.5, 'head/kernel': 10,
      'head/bias': 10}
  for path, factor in factors.items():
    np.testing.assert_allclose(scaled[path] - start[path],
                               factor * (plain[path] - start[path]),
                               rtol=1e-4, atol=1e-5)


def test_lr_mults_leave_the_rest_at_one():
  assert set(jax.tree.leaves(optimizer.lr_multipliers(tree(), ()))) == {1.0}


@pytest.mark.parametrize('lr_mults', [
    (('^haed/', 10.0),), (('^head/', 10.0), ('^head/kernel', 1.0))],
    ids=['misspelt', 'shadowed'])
def test_a_pattern_that_changes_nothing_is_refused(lr_mults):
  with pytest.raises(UserError, match=r'config\.optim\.lr_mults.*ha?ea?d'):
    optimizer.create_optimizer(settings(lr_mults=lr_mults), tree(),
                               lambda step: 0.1)


def test_gradients_above_the_norm_are_scaled_down_to_it_and_no_others():
  params = tree()
  for scale, clipped in ((100.0, True), (1e-3, False)):
    grads = tree(1, scale)
    norm = np.sqrt(sum((g**2).sum() for g in flat(grads).values()))
    factor = 1 / norm if clipped else 1.0
    assert (norm > 1) == clipped
    actual = after_steps(settings(grad_clip_norm=1.0), params, [grads])
    unscaled = after_steps(
        settings(), params, [jax.tree.map(lambda g: g * factor, grads)])
    for path in PATHS:
      np.testing.assert_allclose(actual[path], unscaled[path], rtol=1e-5,
                                 atol=1e-6)


def test_no_clipping_where_the_norm_is_zero():
  params, grads = tree(), tree(1, 1e4)
  actual = after_steps(settings(), params, [grads])
  for path, grad in flat(grads).items():
    np.testing.assert_allclose(actual[path],
                               flat(params)[path] - 0.1 * 1.9 * grad,
                               rtol=1e-5)


@pytest.mark.parametrize('freeze,frozen', [
    ('', set()),
    ('^(stem|stage1)/', {p for p in PATHS if not p.startswith('head')}),
    ('bn', {'stem/bn/scale', 'stem/bn/bias'}),
    ('kernel$', {p for p in PATHS if p.endswith('kernel')})])
def test_split_takes_what_the_regex_finds_and_merge_puts_it_back(freeze,
                                                                 frozen):
  params = tree()
  learns, rest = optimizer.split_params(params, freeze)
  assert set(flat(rest)) == frozen
  assert set(flat(learns)) == set(PATHS) - frozen
  for merged in (optimizer.merge_params(rest, learns),
                 optimizer.merge_params(learns, rest)):
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_merge_lets_the_second_tree_override():
  params, learns = tree(0), {'head': tree(1)['head']}
  merged = flat(optimizer.merge_params(params, learns))
  np.testing.assert_array_equal(merged['head/bias'], flat(tree(1))['head/bias'])
  np.testing.assert_array_equal(merged['stem/bn/bias'],
                                flat(params)['stem/bn/bias'])


@pytest.mark.parametrize('freeze', ['^steem/', '.', '^(stem|stage1|head)/'])
def test_freezing_nothing_or_everything_by_a_regex_is_refused(freeze):
  with pytest.raises(UserError, match=r'config\.model\.freeze'):
    optimizer.split_params(tree(), freeze)


def test_what_is_frozen_has_no_optimizer_state():
  learns, _ = optimizer.split_params(tree(), '^(stem|stage1)/')
  rule = optimizer.create_optimizer(settings(), learns, lambda step: 0.1)
  moments = [x for x in jax.tree.leaves(rule.init(learns)) if jnp.ndim(x)]
  assert len(moments) == 2
