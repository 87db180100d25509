"""The benchmarks: that they run, and that what they compare is the same."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from benchmarks import contenders
from benchmarks.linen_resnet import LinenResNet
from catsdogs.architectures import ARCHITECTURES
from catsdogs.models import ResNet, variable_shapes
from runs import ROOT

SMALL = ('--model=resnet18', '--width=0.125', '--batch_size=2',
         '--image_size=32', '--rounds=1', '--seconds=0.1')


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
  return subprocess.run(
      [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True,
      check=False, timeout=300,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment})


def architecture(name: str, width: float):
  return dataclasses.replace(ARCHITECTURES[name], width=width)


@pytest.mark.slow
def test_a_table_and_its_rows_come_of_those_who_can_run(tmp_path):
  pytest.importorskip('torch', reason='the peer, torch, is not installed')
  file = tmp_path / 'rows.json'
  done = python('-m', 'benchmarks.train_step', *SMALL,
                '--contenders=linen,torch,keras', f'--json={file}')
  assert done.returncode == 0, done.stderr
  rows = {row['contender']: row for row in json.loads(file.read_text())}
  assert list(rows) == ['ours', 'linen', 'torch']
  for row in rows.values():
    assert row['benchmark'] == 'train_step' and row['model'] == 'resnet18'
    assert 0 < row['images_per_second'] < math.inf
    assert row['ratio_to_ours'] == pytest.approx(
        row['images_per_second'] / rows['ours']['images_per_second'])
  assert rows['ours']['ratio_to_ours'] == 1.0
  table = {line.split()[0]: line for line in done.stdout.splitlines()}
  assert rows.keys() < table.keys()
  assert 'keras.applications has no resnet18' in table['keras']


def test_a_contender_that_nobody_knows_is_told_with_those_who_are(tmp_path):
  file = tmp_path / 'rows.json'
  done = python('-m', 'benchmarks.train_step', *SMALL, '--contenders=caffe',
                f'--json={file}')
  assert done.returncode != 0 and not file.exists()
  assert done.stderr.splitlines() == [
      "--contenders: 'caffe' is none of ours, linen, torch, torch_compile, "
      'keras']


# TensorFlow would bring a thread pool of its own into the process.
WITHOUT_TENSORFLOW = '''
import argparse, sys

class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] == 'tensorflow':
      raise ImportError('tensorflow is not to be imported')

sys.meta_path.insert(0, Refuse())
from benchmarks import contenders
flags = argparse.Namespace(model='resnet18', width=0.125, batch_size=2,
                           image_size=32)
step, about = getattr(contenders, sys.argv[1])(flags)
step()
step()
assert about['compile_seconds'] > 0
print('done')
'''


@pytest.mark.parametrize('contender', ['ours_training', 'linen_inference'])
def test_jax_contenders_do_without_tensorflow(contender):
  done = python('-c', WITHOUT_TENSORFLOW, contender,
                CATSDOGS_ONEDNN='0')  # What was compiled already, stays so.
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ['done']


@pytest.mark.parametrize('name, width', [
    ('resnet18', 0.125), ('resnet50', 0.125), ('resnext50_32x4d', 0.5)])
def test_the_plain_network_has_parameters_of_the_same_shapes(name, width):
  arch = architecture(name, width)
  plain, ours = LinenResNet(arch, 10), ResNet(arch, 10)
  pictures = jnp.zeros((2, 64, 64, 3))
  shapes = jax.eval_shape(lambda: plain.init(jax.random.key(0), pictures,
                                             train=False))
  expected = variable_shapes(ours)
  for kind in ('params', 'batch_stats'):
    assert (sorted(x.shape for x in jax.tree.leaves(shapes[kind]))
            == sorted(x.shape for x in jax.tree.leaves(expected[kind])))
  for train in (False, True):
    outputs = [jax.eval_shape(
        lambda variables, model=model, train=train: model.apply(
            variables, pictures, train=train, mutable=['batch_stats'])[0],
        variables) for model, variables in ((plain, shapes),
                                            (ours, expected))]
    assert outputs[0].shape == outputs[1].shape == (2, 10)
    assert outputs[0].dtype == outputs[1].dtype == jnp.float32


def in_order(variables):
  """Our variables under the names of the plain network, as it calls them."""
  def layers(params):
    yield params['stem']
    for stage in range(1, 5):
      blocks = params[f'stage{stage}']
      for block in sorted(blocks, key=lambda name: int(name[5:])):
        convs = sorted(blocks[block])  # conv1, conv2, ..., then shortcut.
        yield from (blocks[block][name] for name in convs)

  params, stats = {}, {}
  for i, layer in enumerate(layers(variables['params'])):
    params[f'Conv_{i}'] = layer['conv']
    params[f'BatchNorm_{i}'] = layer['bn']
  for i, layer in enumerate(layers(variables['batch_stats'])):
    stats[f'BatchNorm_{i}'] = layer['bn']
  params['Dense_0'] = variables['params']['head']
  return {'params': params, 'batch_stats': stats}


@pytest.mark.parametrize('train', [False, True])
def test_the_plain_network_computes_the_same(train):
  arch = architecture('resnet18', 0.125)
  plain, ours = LinenResNet(arch, 10), ResNet(arch, 10)
  random = np.random.default_rng(0)
  variables = jax.tree.map(  # Variances have to be positive.
      lambda x: random.uniform(0.1, 0.3, x.shape).astype(np.float32),
      variable_shapes(ours))
  pictures = random.standard_normal((4, 64, 64, 3), np.float32)
  (expected, moved), (found, plainly_moved) = (
      jax.jit(lambda v, x, model=model: model.apply(
          v, x, train=train, mutable=['batch_stats']))(v, pictures)
      for model, v in ((ours, variables), (plain, in_order(variables))))
  np.testing.assert_allclose(found, expected, rtol=1e-3)
  moved = in_order({**variables, **moved})['batch_stats']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3),
               plainly_moved['batch_stats'], moved)


@pytest.mark.parametrize('name, width', [('resnet18', 0.5), ('resnet50', 0.5),
                                         ('resnet18', 1.0)])
def test_torch_gets_networks_as_wide_as_ours(name, width):
  torch = pytest.importorskip('torch',
                              reason='the peer, torch, is not installed')
  with torch.device('meta'):
    model = peers.torchvision_models().get_model(name, num_classes=1000)
    contenders._widen(model, width)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
  ours = variable_shapes(ResNet(architecture(name, width), 1000))['params']
  assert (sum(p.numel() for p in model.parameters())
          == sum(x.size for x in jax.tree.leaves(ours)))
