"""The training step against plain references, and what must not change."""

import json
import os
import pathlib
import subprocess
import sys

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import optax
import pytest

from catsdogs import auto, config as config_lib
from catsdogs import onednn
from catsdogs.models import create_model, init_variables
from catsdogs.optimizer import (create_learning_rate_fn, create_optimizer,
                                split_params)
from catsdogs.preprocessing import Preprocessing, model_input
from catsdogs.train_state import create_train_state
from catsdogs.train_step import create_train_step
from configs import finetune

BATCH = 8
ONEDNN_IS_AVAILABLE = onednn.is_available


@pytest.fixture(autouse=True)
def without_onednn(monkeypatch):
  """Then the tests share what they compile (conftest.py)."""
  monkeypatch.setattr(onednn, 'is_available', lambda: False)


def tiny_config(**fields):
  config = finetune.get_config()
  config.update_from_flattened_dict({
      'model.name': 'resnet10t', 'model.width': 0.125,
      'model.weights': 'none', 'data.source': 'bundled', 'data.image_size': 32,
      'train.batch_size': BATCH, 'optim.warmup_epochs': 0.0,
      'optim.schedule': 'constant', 'optim.grad_clip_norm': 0.0,
      'augment.crop_scale': (0.999, 1.0), 'augment.flip': False,
      'augment.color_jitter': 0.0})
  config.update_from_flattened_dict(fields)
  config_lib.check(config)
  return auto.resolve(config, 'cpu', pathlib.Path())[0]


def one_device():
  return jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,),
                       devices=jax.devices()[:1])


def build(config):
  """The compiled step and the state before it; the head is not zero."""
  model = create_model(config.model, 2)
  variables = init_variables(model, config.seed)
  head = variables['params']['head']
  head['kernel'] = jax.random.normal(jax.random.key(1), head['kernel'].shape)
  trainable, _ = split_params(variables['params'], config.model.freeze)
  learning_rate_fn = create_learning_rate_fn(config.optim, 10, 20)
  optimizer = create_optimizer(config.optim, trainable, learning_rate_fn)
  state = create_train_state(variables, trainable, optimizer,
                             ema=config.optim.ema_decay > 0)
  step = create_train_step(config, model,
                           Preprocessing(config.data.image_size), optimizer,
                           learning_rate_fn, one_device())
  return model, state, step


def batch_of(seed=0, size=37):
  rng = np.random.default_rng(seed)
  return {'image': jnp.array(rng.integers(0, 256, (BATCH, size, size, 3),
                                          np.uint8)),
          'label': jnp.array(rng.integers(0, 2, BATCH, np.int32)),
          'mask': jnp.ones(BATCH)}


def host(tree):
  return jax.tree.map(np.array, tree)


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def test_a_step_is_sgd_on_the_mean_cross_entropy(monkeypatch):
  monkeypatch.setattr(onednn, 'is_available', ONEDNN_IS_AVAILABLE)
  # Without augmentation the step sees what evaluation sees.
  from catsdogs import augment
  from catsdogs.preprocessing import center_crop
  monkeypatch.setattr(
      augment, 'augment',
      lambda key, images, size, config: center_crop(images, size).astype(
          jnp.float32))
  config = tiny_config(**{'model.name': 'resnet18', 'optim.weight_decay': 0.0,
                          'optim.learning_rate': 0.1})
  model, state, step = build(config)
  batch = batch_of()
  batch['mask'] = batch['mask'].at[3].set(0.0)
  variables = host(state.eval_variables())

  def loss_fn(params):
    logits, updates = model.apply(
        {'params': params, 'batch_stats': variables['batch_stats']},
        model_input(batch['image'], Preprocessing(32)), train=True,
        mutable=['batch_stats'])
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch['label'])
    kept = jnp.delete(losses, 3)
    return kept.mean(), updates['batch_stats']

  (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      variables['params'])
  state, metrics = step(state, batch)
  assert float(metrics['loss'] / metrics['count']) == pytest.approx(
      float(loss), rel=1e-5)
  assert float(metrics['grad_norm']) == pytest.approx(
      float(optax.tree.norm(grads)), rel=1e-3)
  # Nesterov's first step goes (1 + momentum) times the gradient.
  for path, old in flat(variables['params']).items():
    expected = old - 0.1 * 1.9 * np.asarray(flat(grads)[path])
    np.testing.assert_allclose(flat(state.params)[path], expected,
                               rtol=2e-3, atol=2e-4, err_msg=path)
  for path, expected in flat(stats).items():
    np.testing.assert_allclose(flat(state.batch_stats)[path], expected,
                               rtol=1e-4, atol=1e-5, err_msg=path)


def test_the_loss_falls_on_a_batch_that_is_seen_again():
  _, state, step = build(tiny_config(**{'optim.learning_rate': 0.05}))
  losses = []
  for _ in range(20):
    state, metrics = step(state, batch_of())
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.2 * losses[0]


FREEZE = {'model.freeze': '^(stem|stage[123])/'}


def test_frozen_parameters_stay_and_have_no_state():
  _, state, step = build(tiny_config(**FREEZE))
  before = host(state.params)
  for i in range(2):
    state, _ = step(state, batch_of(i))
  for path, old in flat(before).items():
    same = np.array_equal(old, flat(state.params)[path])
    assert same == path.startswith(('stem', 'stage1', 'stage2', 'stage3')), (
        path)
  moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
  learning = sum(leaf.size for path, leaf in flat(before).items()
                 if path.startswith(('stage4', 'head')))
  assert sum(m.size for m in moments) == learning


def test_frozen_parameters_cost_no_gradient():
  # What oneDNN computes, XLA does not count.
  flops = {}
  for name, fields in (('whole', {}), ('frozen', FREEZE)):
    _, state, step = build(tiny_config(**fields))
    lowered = step.lower(state, batch_of())
    assert '__onednn' not in lowered.as_text()
    flops[name] = lowered.compile().cost_analysis()['flops']
  assert flops['frozen'] < 0.6 * flops['whole']


def test_lr_mults_scale_the_update_of_their_parameters_alone():
  plain, scaled = (build(tiny_config(**fields)) for fields in (
      {}, {'optim.lr_mults': (('^head/', 0.0), ('stage4', 0.5))}))
  before = host(plain[1].params)
  one, _ = plain[2](plain[1], batch_of())
  two, _ = scaled[2](scaled[1], batch_of())
  for path, old in flat(before).items():
    factor = (0.0 if path.startswith('head') else
              0.5 if 'stage4' in path else 1.0)
    np.testing.assert_allclose(
        flat(two.params)[path] - old,
        factor * (np.asarray(flat(one.params)[path]) - old), atol=1e-6,
        err_msg=path)


@pytest.mark.parametrize(
    'parts', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_batch_in_parts_gives_the_same_step(parts):
  fields = {'model.batch_norm': 'running', 'augment.mixup': 0.4,
            'augment.crop_scale': (0.5, 1.0), 'augment.flip': True}
  _, whole, whole_step = build(tiny_config(**fields))
  _, split, split_step = build(tiny_config(
      **fields, **{'optim.accumulate_steps': parts}))
  for i in range(3):
    whole, expected = whole_step(whole, batch_of(i))
    split, found = split_step(split, batch_of(i))
    assert float(found['loss']) == pytest.approx(float(expected['loss']),
                                                 rel=1e-4)
  for path, expected in flat(host(whole.params)).items():
    np.testing.assert_allclose(flat(split.params)[path], expected, rtol=1e-3,
                               atol=1e-5, err_msg=path)


def test_running_statistics_stay_where_they_normalise():
  for mode, moves in (('batch', True), ('running', False)):
    _, state, step = build(tiny_config(**{'model.batch_norm': mode}))
    before = host(state.batch_stats)
    state, _ = step(state, batch_of())
    same = jax.tree.map(np.array_equal, before, host(state.batch_stats))
    assert all(jax.tree.leaves(same)) != moves


def test_the_running_average_lags_behind_and_is_what_is_evaluated():
  _, state, step = build(tiny_config(**{
      'optim.ema_decay': 0.9, 'model.freeze': '^stem/'}))
  params = [host(state.params)]
  average = flat(host(state.params))
  for i in range(3):
    state, _ = step(state, batch_of(i))
    params.append(host(state.params))
    decay = min(0.9, (1 + i + 1) / (10 + i + 1))
    for path, new in flat(params[-1]).items():
      average[path] = decay * average[path] + (1 - decay) * new
  evaluated = flat(host(state.eval_variables()['params']))
  assert evaluated.keys() == average.keys()
  for path, expected in average.items():
    np.testing.assert_allclose(evaluated[path], expected, rtol=1e-4,
                               atol=1e-6, err_msg=path)


def test_augmentation_is_a_function_of_seed_and_step():
  config = tiny_config(**{'augment.crop_scale': (0.3, 1.0),
                          'augment.color_jitter': 0.3,
                          'augment.cutmix': 1.0})
  losses = []
  for seed in (0, 0, 1):
    with config.unlocked():
      config.seed = seed
    _, state, step = build(config)
    losses.append([])
    for _ in range(2):
      state, metrics = step(state, batch_of())
      losses[-1].append(float(metrics['loss']))
  assert losses[0] == losses[1]
  assert losses[0] != losses[2]


ON_DEVICES = '''
import json, sys
import jax, numpy as np
from test_train import BATCH, batch_of, tiny_config
import test_train
from catsdogs.evaluate import create_mesh
test_train.one_device = create_mesh
config = tiny_config(**{'augment.mixup': 0.3, 'augment.crop_scale': (0.4, 1.0),
                        'optim.accumulate_steps': int(sys.argv[1])})
_, state, step = test_train.build(config)
losses = []
for i in range(3):  # A fourth would show how rounding differs, enlarged.
  state, metrics = step(state, batch_of(i))
  losses.append(float(metrics['loss']))
stats = jax.tree.leaves(state.batch_stats)
print(json.dumps([jax.device_count(), losses,
                  [float(np.abs(s).sum()) for s in stats]]))
'''


@pytest.mark.parametrize(
    'parts', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_one_device_and_four_take_the_same_steps(parts):
  answers = []
  for devices in (1, 4):
    done = subprocess.run(
        [sys.executable, '-c', ON_DEVICES, str(parts)], capture_output=True,
        text=True, check=False, env={
            **os.environ, 'JAX_NUM_CPU_DEVICES': str(devices),
            'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)})
    assert done.returncode == 0, done.stderr
    answers.append(json.loads(done.stdout))
  (one, losses, stats), (four, four_losses, four_stats) = answers
  assert (one, four) == (1, 4)
  np.testing.assert_allclose(four_losses, losses, rtol=1e-3)
  np.testing.assert_allclose(four_stats, stats, rtol=1e-3)
