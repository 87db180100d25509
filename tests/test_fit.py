"""Files of weights: where their tensors go, and what is refused."""

import dataclasses
from typing import Any

from flax import traverse_util
import jax
import ml_dtypes
import numpy as np
import peers
import pytest

from catsdogs import models
from catsdogs.architectures import ARCHITECTURES
from catsdogs.pretrained import fit, keras_layers, names
from weight_files import (CLASSES, load_weights, refusal, small_shapes,
                          weights_like, write_safetensors,
                          write_weights_legacy, write_weights_zip)


@pytest.fixture(scope='module', name='shapes')
def fixture_shapes() -> dict[str, Any]:
  return small_shapes()


@pytest.fixture(name='weights')
def fixture_weights(shapes) -> dict[str, np.ndarray]:
  return weights_like(shapes)


WRITERS = {
    'zip.pth': write_weights_zip,
    'legacy.pth': write_weights_legacy,
    'x.safetensors': write_safetensors,
}


# From a file into a model.

@pytest.mark.parametrize('name', WRITERS)
def test_weights_arrive_where_they_belong(tmp_path, shapes, weights, name):
  counts = {'bn1.num_batches_tracked': np.zeros(1, np.float32)}
  path = WRITERS[name](tmp_path / 'misnamed.bin', {**weights, **counts})
  variables, head_loaded = load_weights(path, shapes)
  flat = traverse_util.flatten_dict(variables, sep='/')
  assert head_loaded
  for array in flat.values():
    assert type(array) is np.ndarray and array.dtype == np.float32
    assert array.flags.c_contiguous and array.flags.writeable
  for ours, theirs in (
      ('params/stem/conv/kernel',
       weights['conv1.weight'].transpose(2, 3, 1, 0)),
      ('params/stem/bn/scale', weights['bn1.weight']),
      ('batch_stats/stage3/block2/conv2/bn/var',
       weights['layer3.1.bn2.running_var']),
      ('params/stage2/block1/shortcut/conv/kernel',
       weights['layer2.0.downsample.0.weight'].transpose(2, 3, 1, 0)),
      ('batch_stats/stage4/block1/shortcut/bn/mean',
       weights['layer4.0.downsample.1.running_mean']),
      ('params/head/kernel', weights['fc.weight'].T),
      ('params/head/bias', weights['fc.bias'])):
    np.testing.assert_array_equal(flat[ours], theirs)
  assert jax.tree.structure(variables) == jax.tree.structure(shapes)
  # And back again.
  state = names.state_dict(variables, ARCHITECTURES['resnet18'])
  assert set(state) == set(weights)
  for key, array in state.items():
    np.testing.assert_array_equal(array, weights[key])


@pytest.mark.parametrize('dtype', [
    np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_become_float32(tmp_path, shapes, weights, dtype):
  path = write_safetensors(tmp_path / 'x', {
      f'module.{name}': x.astype(dtype) for name, x in weights.items()})
  variables, _ = load_weights(path, shapes)
  loaded = variables['params']['stem']['bn']['scale']
  np.testing.assert_array_equal(
      loaded, weights['bn1.weight'].astype(dtype).astype(np.float32))


def test_our_own_names_are_taken_as_they_are(tmp_path, shapes, weights):
  variables, _ = load_weights(
      write_safetensors(tmp_path / 'theirs', weights), shapes)
  flat = traverse_util.flatten_dict(variables, sep='/')
  path = write_safetensors(tmp_path / 'ours', flat)
  again, head_loaded = load_weights(path, shapes)
  assert head_loaded
  jax.tree.map(np.testing.assert_array_equal, again, variables)

  del flat['params/stem/conv/kernel']
  flat['params/stem/conv/kernle'] = np.zeros(3, np.float32)
  message = refusal(
      load_weights, write_safetensors(path, flat), shapes)
  assert '1 missing: params/stem/conv/kernel' in message
  assert '1 unexpected: params/stem/conv/kernle' in message


@pytest.mark.parametrize('classes', [3, 1000, None])
@pytest.mark.parametrize('ours', [False, True])
def test_a_head_of_other_classes_or_none_stays_new(
    tmp_path, shapes, weights, classes, ours):
  fresh = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  if classes is None:
    del weights['fc.weight'], weights['fc.bias']
  else:
    weights['fc.weight'] = np.ones((classes, 64), np.float32)
    weights['fc.bias'] = np.ones(classes, np.float32)
  if ours:
    weights = {path: names.TORCHVISION.to_ours(path, weights[name])
               for path in traverse_util.flatten_dict(fresh, sep='/')
               if (name := names.TORCHVISION.name(path)) in weights}
  path = write_safetensors(tmp_path / 'x', weights)
  variables, head_loaded = load_weights(path, fresh)
  assert not head_loaded
  for leaf in ('kernel', 'bias'):
    assert variables['params']['head'][leaf] is fresh['params']['head'][leaf]
  assert variables['params']['stem']['conv']['kernel'].any()


def test_all_that_differs_is_told_in_one_line(tmp_path, shapes, weights):
  for i in range(7):
    weights[f'extra{i}.weight'] = np.zeros(3, np.float32)
  del weights['bn1.bias'], weights['layer4.1.bn2.running_var']
  weights['layer1.0.conv1.weight'] = np.zeros((8, 8, 1, 1), np.float32)
  weights['bn1.weight'] = weights['bn1.weight'].astype(np.int32)
  path = write_safetensors(tmp_path / 'x', weights)
  message = refusal(load_weights, path, shapes)
  for part in ('2 missing: ', 'bn1.bias', 'layer4.1.bn2.running_var',
               '7 unexpected: ', 'extra0.weight', ' and 2 more',
               'layer1.0.conv1.weight (8, 8, 1, 1) instead of (8, 8, 3, 3)',
               'bn1.weight int32 instead of float32'):
    assert part in message


@pytest.mark.parametrize('head, part', [
    ({'fc.bias': None}, '1 missing: fc.bias'),
    ({'fc.weight': None}, '1 missing: fc.weight'),
    ({'fc.weight': (9, 65), 'fc.bias': (9,)}, 'fc.weight (9, 65) instead of'),
    ({'fc.weight': (9, 64), 'fc.bias': (8,)}, 'fc.weight (9, 64) instead of'),
    ({'fc.bias': (1, 5)}, 'fc.bias (1, 5) instead of (5,)'),
])
def test_a_head_that_fits_nowhere_is_refused(
    tmp_path, shapes, weights, head, part):
  for name, shape in head.items():
    if shape is None:
      del weights[name]
    else:
      weights[name] = np.zeros(shape, np.float32)
  path = write_safetensors(tmp_path / 'x', weights)
  assert part in refusal(load_weights, path, shapes)


@pytest.mark.parametrize(
    'name', [name for name in ARCHITECTURES if name != 'resnet18'
             and (not name.startswith('bit_') or name.endswith('x1'))])
def test_weights_of_another_architecture_are_recognised(tmp_path, shapes, name):
  naming = naming_for(name)
  content = {naming.name(path): np.zeros(naming.shape(path, x.shape), np.int8)
             for path, x in traverse_util.flatten_dict(
                 small_shapes(name, width=0.5), sep='/').items()}
  path = write_safetensors(tmp_path / 'x', content)
  message = refusal(load_weights, path, shapes)
  assert f'they look like {name} of width 0.5' in message
  assert 'the model is resnet18 of width 0.125' in message


def naming_for(name: str) -> names.Naming:
  """Of those who publish an architecture of ours."""
  if name.startswith('bit_'):
    return names.BIT
  if name.endswith('v1'):
    return names.KERAS_V1
  if name.endswith('v2'):
    return names.KERAS_V2
  if ARCHITECTURES[name].mean_shortcut:
    return names.TIMM_D
  return names.TORCHVISION


@pytest.mark.parametrize('made_for, model, told', [
    ('resnet50', 'resnet50v1', 'stride_first = False'),
    ('resnet50v1', 'resnet50', 'stride_first = True'),
    ('resnet50c', 'resnet50d', 'mean_shortcut = False'),
])
def test_weights_that_fit_and_yet_mean_another_network_are_refused(
    made_for, model, told):
  naming, shapes = naming_for(made_for), small_shapes(model)
  tensors = {naming.name(path): np.zeros(naming.shape(path, x.shape))
             for path, x in traverse_util.flatten_dict(
                 shapes, sep='/').items()}
  architecture = dataclasses.replace(ARCHITECTURES[model], width=0.125)
  message = refusal(fit.fit, 'weights', tensors, shapes, architecture)
  assert told in message and f'set model.name = {made_for} of' in message


def test_keras_biases_go_into_the_means_and_blue_comes_last():
  tensors = {'conv1_conv/conv1_conv/kernel:0': np.arange(6.0).reshape(
                 1, 1, 3, 2),
             'conv1_conv/conv1_conv/bias:0': np.array([0.5, 1.0]),
             'conv1_bn/conv1_bn/gamma:0': np.ones(2),
             'conv1_bn/conv1_bn/moving_mean:0': np.array([3.0, 3.0])}
  plain = keras_layers.plain(tensors)
  assert plain.keys() == {'conv1_conv/kernel', 'conv1_bn/gamma',
                          'conv1_bn/moving_mean'}
  assert plain['conv1_bn/moving_mean'].tolist() == [2.5, 2.0]
  assert plain['conv1_conv/kernel'].tolist() == [[[[4, 5], [2, 3], [0, 1]]]]
  assert tensors['conv1_bn/conv1_bn/moving_mean:0'].tolist() == [3, 3]


def test_weights_of_no_resnet_are_recognised(tmp_path, shapes):
  path = write_safetensors(tmp_path / 'x', {
      'features.0.weight': np.zeros((64, 3, 3, 3), np.float32)})
  message = refusal(load_weights, path, shapes)
  assert 'look like no ResNet' in message


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(
    tmp_path, shapes, weights, value):
  weights['layer2.0.bn1.running_var'][3] = value
  path = write_safetensors(tmp_path / 'x', weights)
  message = refusal(load_weights, path, shapes)
  assert 'layer2.0.bn1.running_var' in message


# Against torch itself.

@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors', 'checkpoint'])
def test_what_torch_saves_gives_its_logits(tmp_path, kind):
  torch = pytest.importorskip(
      'torch', reason='the peer, torch, is not installed')
  original = peers.torchvision_model('resnet18', seed=2)
  path = tmp_path / 'weights.bin'
  if kind == 'safetensors':
    # pylint: disable-next=g-import-not-at-top
    from safetensors import torch as safetensors_torch
    safetensors_torch.save_file(original.state_dict(), path)
  elif kind == 'checkpoint':
    optimizer = torch.optim.SGD(original.parameters(), 0.1, momentum=0.9)
    torch.save({'model': torch.nn.DataParallel(original).state_dict(),
                'optimizer': optimizer.state_dict(), 'epoch': 3}, path)
  else:
    torch.save(original.state_dict(), path,
               _use_new_zipfile_serialization=kind == 'zip')
  model = models.create_model(peers.model_config('resnet18'), 1000)
  variables, head_loaded = load_weights(
      path, small_shapes(classes=1000, width=1.0))
  assert head_loaded
  pictures = peers.random_pictures(75, seed=2)
  with jax.default_matmul_precision('highest'):
    ours = np.asarray(model.apply(variables, pictures))
  theirs = peers.torchvision_features(original, pictures)['logits']
  assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_torch_loads_what_goes_back_in_its_names():
  torch = pytest.importorskip(
      'torch', reason='the peer, torch, is not installed')
  original = peers.torchvision_models().resnet18(num_classes=CLASSES)
  shapes = small_shapes(width=1.0)
  variables = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
  state = {name: torch.from_numpy(np.ascontiguousarray(x))
           for name, x in names.state_dict(
               variables, ARCHITECTURES['resnet18']).items()}
  left = original.load_state_dict(state, strict=False)
  assert not left.unexpected_keys
  assert all(name.endswith('num_batches_tracked') for name in left.missing_keys)
