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
from catsdogs.pretrained import names
from catsdogs.pretrained.fit import fit

GOLDEN = pathlib.Path(__file__).parent / 'golden'
SEED = 0
# Largest difference allowed, as a share of the largest value.
TOLERANCE = 1e-4

# What torchvision, timm, Keras and BiT publish, for 1,000 classes; of Keras
# what can be trained, and without the biases that its first version's
# BatchNorm takes away.
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
    'resnet10t': 5_435_488,
    'resnet26d': 16_014_408,
    'resnet50d': 25_576_264,
    'resnet50s': 25_680_808,
    'resnet200d': 64_693_064,
    'resnext50d_32x4d': 25_048_136,
    'resnet50_gn': 25_557_032,
    'resnet50v1': 25_557_032,
    'resnet50v2': 25_568_360,
    'resnet101v2': 44_577_896,
    'bit_r50x1': 25_549_352,
    'bit_r101x3': 387_934_888,
}


@pytest.fixture(autouse=True)
def in_full_float32():
  with jax.default_matmul_precision('highest'):
    yield


def random_variables(model: models.ResNet,
                     naming: names.Naming = names.TORCHVISION
                     ) -> dict[str, Any]:
  """`peers.random_weights` in others' names, brought into ours."""
  shapes = models.variable_shapes(model)
  theirs = {naming.name(path): naming.shape(path, x.shape) for path, x in
            traverse_util.flatten_dict(shapes, sep='/').items()}
  if naming is names.KERAS_V1:
    theirs |= {name.replace('/kernel', '/bias'): shape[-1:]
               for name, shape in theirs.items() if name.endswith('kernel')}
  variables, head_loaded = fit('', peers.random_weights(theirs, SEED), shapes,
                               model.architecture)
  assert head_loaded
  return variables


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
  check_golden_logits(name, model, random_variables(model))


@pytest.mark.parametrize('name, naming', [
    ('resnet18d', names.TIMM_D), ('resnet10t', names.TIMM_D),
    ('resnet50s', names.TORCHVISION), ('resnet50_gn', names.TORCHVISION),
    ('resnet50v1', names.KERAS_V1), ('resnet50v2', names.KERAS_V2),
    ('bit_r50x1', names.BIT)])
def test_logits_are_those_that_the_originals_gave(name, naming):
  model = models.create_model(peers.model_config(name), 10)
  check_golden_logits(name, model, random_variables(model, naming))


def check_golden_logits(name: str, model: models.ResNet,
                        variables: dict[str, Any]) -> None:
  golden = np.load(GOLDEN / f'{name}.npz')
  # The odd size tells more; a second one costs seconds of compiling.
  for size_px in (64, 75) if name == 'resnet18' else (75,):
    logits = model.apply(variables, peers.random_pictures(size_px, SEED))
    assert relative_difference(
        logits, golden[f'logits_{size_px}px']) < TOLERANCE


def test_parameters_are_as_many_as_published():
  counted = {}
  for name in PARAMETERS:
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
