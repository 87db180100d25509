"""The ResNets: the originals' numbers, and what the settings do."""

import pathlib
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from catsdogs import models
from catsdogs.pretrained import torchvision_names

GOLDEN = pathlib.Path(__file__).parent / 'golden'
SEED = 0
# Largest difference allowed, as a share of the largest value.
TOLERANCE = 1e-4

# What torchvision publishes with its weights, for 1,000 classes.
PARAMETERS = {
    'resnet18': 11_689_512,
    'resnet34': 21_797_672,
    'resnet50': 25_557_032,
    'resnet101': 44_549_160,
    'resnet152': 60_192_808,
    'wide_resnet50_2': 68_883_240,
    'wide_resnet101_2': 126_886_696,
    'resnext50_32x4d': 25_028_904,
    'resnext101_32x8d': 88_791_336,
    'resnext101_64x4d': 83_455_272,
}


@pytest.fixture(autouse=True)
def in_full_float32():
  with jax.default_matmul_precision('highest'):
    yield


def random_variables(model: models.ResNet) -> dict[str, Any]:
  """`peers.random_weights`, brought into our names by our own table."""
  flat = traverse_util.flatten_dict(models.variable_shapes(model), sep='/')
  names = {path: torchvision_names.torchvision_name(path) for path in flat}
  weights = peers.random_weights(
      {names[path]: torchvision_names.torchvision_shape(array.shape)
       for path, array in flat.items()}, SEED)
  return traverse_util.unflatten_dict(
      {path: torchvision_names.from_torchvision(weights[name])
       for path, name in names.items()}, sep='/')


def all_outputs(model: models.ResNet, variables: dict[str, Any],
                pictures: np.ndarray) -> dict[str, np.ndarray]:
  """`features` and `logits` of one pass, op by op: no minutes of compiling."""
  def both(model, x):
    features = model.features(x)
    return {**features, 'logits': model.head(features['pooled'])}
  return model.apply(variables, pictures, method=both)


def relative_difference(ours: Any, theirs: np.ndarray) -> float:
  ours = np.asarray(ours)
  assert ours.shape == theirs.shape
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def small_model(**kwargs) -> models.ResNet:
  config = peers.model_config('resnet18', width=0.125, **kwargs)
  return models.create_model(config, 3)


@pytest.fixture(scope='module', name='small_variables')
def fixture_small_variables() -> dict[str, Any]:
  return random_variables(small_model())


@pytest.mark.parametrize('name', [
    'resnet18', 'resnet50', 'resnext50_32x4d', 'wide_resnet50_2'])
def test_logits_are_those_that_torchvision_gave(name):
  model = models.create_model(peers.model_config(name), 1000)
  variables = random_variables(model)
  golden = np.load(GOLDEN / f'{name}.npz')
  # The odd size tells more; a second one costs seconds of compiling.
  for size_px in (64, 75) if name == 'resnet18' else (75,):
    logits = model.apply(variables, peers.random_pictures(size_px, SEED))
    assert relative_difference(
        logits, golden[f'logits_{size_px}px']) < TOLERANCE


@pytest.mark.parametrize('name', models.ARCHITECTURES)
def test_every_stage_is_as_torchvision_has_it(name):
  pytest.importorskip('torch', reason='the peer, torch, is not installed')
  original = peers.torchvision_model(name, SEED)
  model = models.create_model(peers.model_config(name), 1000)
  variables = random_variables(model)
  for size_px in (64, 75):
    pictures = peers.random_pictures(size_px, SEED)
    theirs = peers.torchvision_features(original, pictures)
    ours = all_outputs(model, variables, pictures)
    differences = {name: relative_difference(ours[name], theirs[name])
                   for name in theirs}
    print(name, size_px, differences)  # Seen with `pytest -rP`.
    assert max(differences.values()) < TOLERANCE, differences


def test_parameters_are_as_many_as_published():
  counted = {}
  for name in models.ARCHITECTURES:
    model = models.create_model(peers.model_config(name), 1000)
    params = jax.tree.leaves(models.variable_shapes(model)['params'])
    counted[name] = sum(x.size for x in params)
  assert counted == PARAMETERS


def test_width_multiplies_the_channels():
  model = models.create_model(peers.model_config('resnet50', 0.5), 2)
  features = jax.eval_shape(
      lambda x: model.init_with_output(
          jax.random.key(0), x, method='features')[0],
      jnp.zeros((2, 64, 64, 3)))
  assert {name: x.shape for name, x in features.items()} == {
      'stem': (2, 16, 16, 32),
      'stage1': (2, 16, 16, 128),
      'stage2': (2, 8, 8, 256),
      'stage3': (2, 4, 4, 512),
      'stage4': (2, 2, 2, 1024),
      'pooled': (2, 1024),
  }


@pytest.mark.parametrize('batch_norm, train, moves', [
    ('batch', True, True),
    ('batch', False, False),
    ('running', True, False),
    ('running', False, False),
])
def test_statistics_move_only_where_the_batch_normalises(
    small_variables, batch_norm, train, moves):
  model = small_model(batch_norm=batch_norm)
  pictures = peers.random_pictures(32, SEED)
  logits, updated = model.apply(
      small_variables, pictures, train, mutable=['batch_stats'])
  moved = jax.tree.map(lambda old, new: bool((old != new).any()),
                       small_variables['batch_stats'], updated['batch_stats'])
  assert set(jax.tree.leaves(moved)) == {moves}
  evaluated = model.apply(small_variables, pictures)
  assert np.array_equal(logits, evaluated) != moves


def test_running_statistics_move_by_a_tenth(small_variables):
  pictures = peers.random_pictures(32, SEED)
  model = small_model()
  _, updated = model.apply(
      small_variables, pictures, True, mutable=['batch_stats'])
  convolved = model.apply(
      small_variables, pictures,
      method=lambda model, x: jax.lax.conv_general_dilated(
          x, model.stem.variables['params']['conv']['kernel'], (2, 2),
          ((3, 3), (3, 3)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')))
  old = small_variables['batch_stats']['stem']['bn']['mean']
  np.testing.assert_allclose(
      updated['batch_stats']['stem']['bn']['mean'],
      0.9 * old + 0.1 * convolved.mean(axis=(0, 1, 2)), atol=1e-5)


def test_bfloat16_gives_float32_logits_near_those_of_float32(small_variables):
  pictures = peers.random_pictures(64, SEED)
  exact = small_model().apply(small_variables, pictures)
  model = small_model(dtype='bfloat16')
  features = model.apply(small_variables, pictures, method='features')
  rough = model.apply(small_variables, pictures)
  assert features['stage4'].dtype == jnp.bfloat16
  assert features['pooled'].dtype == rough.dtype == jnp.float32
  assert 0 < relative_difference(rough, np.asarray(exact)) < 0.1


def test_initial_variables_are_float32_and_the_new_head_is_impartial():
  model = small_model(dtype='bfloat16')
  variables = models.init_variables(model, seed=1)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {
      jnp.dtype('float32')}
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
      jnp.shape, models.variable_shapes(model))
  head = variables['params']['head']
  assert not head['kernel'].any() and not head['bias'].any()
  kernel = variables['params']['stage1']['block1']['conv1']['conv']['kernel']
  fan_out = 9 * kernel.shape[-1]
  assert float(kernel.std()) == pytest.approx((2 / fan_out)**0.5, rel=0.1)
