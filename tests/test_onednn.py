"""oneDNN's operations against XLA's in float64, and where they are used."""

import json
import os
import pathlib
import subprocess
import sys

import jax
from jax import lax
import jaxlib.version
import numpy as np
import pytest

from catsdogs import onednn

# A condition as text is asked when a test starts: to ask already while the
# tests are collected would turn the compilation cache off for all of them.
needs_onednn = pytest.mark.skipif(
    'not onednn.is_available()', reason='oneDNN is not available')

# Prints the devices, whether oneDNN is available, whether what a jitted
# convolution over all devices becomes calls it, and what that gives.
ON_DEVICES = """
import json
import jax
import jax.numpy as jnp
from catsdogs import convolution, onednn
mesh = jax.make_mesh((jax.device_count(),), ('data',))
split = jax.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
x = jax.device_put(jnp.arange(4 * 5 * 5 * 8.).reshape(4, 5, 5, 8) % 7, split)
kernel = jnp.arange(9 * 8 * 8.).reshape(3, 3, 8, 8) % 5
def convolved_by_onednn(x, kernel):
  return convolution.conv2d(x, kernel, stride=2)
step = jax.jit(convolved_by_onednn).lower(x, kernel).compile()
print(json.dumps([jax.device_count(), onednn.is_available(),
                  '__onednn$' in step.as_text(),
                  float(step(x, kernel).sum())]))
"""


def draw(*shape: int) -> np.ndarray:
  return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def assert_near(actual, exact) -> None:
  actual = np.asarray(actual)
  assert actual.dtype == np.float32 and actual.shape == exact.shape
  assert np.abs(actual - exact).max() <= 1e-6 * np.abs(exact).max()


def by_xla(x, kernel, layout, padding, stride=1, dilation=None, groups=1,
           bias=None, add=None, relu=False) -> np.ndarray:
  """The same in float64, by XLA's own operations."""
  pictures = 'N' + 'DHW'[-len(padding):] + 'C'
  with jax.enable_x64(True):
    y = lax.conv_general_dilated(
        x.astype(np.float64), kernel.astype(np.float64),
        (stride,) * len(padding), padding, rhs_dilation=dilation,
        feature_group_count=groups,
        dimension_numbers=(pictures, layout, pictures))
    y = y if bias is None else y + bias
    y = y if add is None else y + add
    return np.asarray(jax.nn.relu(y) if relu else y)


def run(**environment: str) -> tuple[list, str]:
  """What `ON_DEVICES` prints with this environment, and its complaints."""
  done = subprocess.run(
      [sys.executable, '-c', ON_DEVICES], capture_output=True, text=True,
      check=False, env={
          **os.environ, 'JAX_PLATFORMS': 'cpu', **environment,
          'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)})
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout), done.stderr


@needs_onednn
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('add', [False, True])
@pytest.mark.parametrize('relu', [False, True])
def test_convolution_and_what_follows(bias, add, relu):
  then = {'bias': draw(13) if bias else None,
          'add': draw(2, 9, 8, 13) if add else None, 'relu': relu}
  arguments = draw(2, 9, 8, 19), draw(3, 3, 19, 13), 'HWIO', ((1, 1), (1, 1))
  assert_near(onednn.convolution(*arguments, **then),
              by_xla(*arguments, **then))


@needs_onednn
@pytest.mark.parametrize('kernel, layout, padding, settings', [
    ((1, 1, 19, 13), 'HWIO', ((0, 0), (0, 0)), {}),
    ((3, 2, 19, 13), 'HWIO', ((0, 2), (1, 0)), {}),
    ((3, 3, 13, 19), 'HWOI', ((1, 1), (1, 1)), {}),
    ((19, 3, 3, 13), 'IHWO', ((1, 1), (1, 1)), {}),
    ((3, 3, 19, 13), 'HWIO', ((1, 0), (1, 2)), {'stride': 2}),
    ((3, 3, 19, 13), 'HWIO', ((2, 3), (0, 0)), {'dilation': (2, 3)}),
    ((3, 3, 1, 38), 'HWIO', ((1, 1), (1, 1)), {'groups': 19, 'stride': 2}),
])
def test_convolution_of_pictures(kernel, layout, padding, settings):
  arguments = draw(3, 9, 8, 19), draw(*kernel), layout, padding
  assert_near(jax.jit(lambda x, kernel: onednn.convolution(
      x, kernel, layout, padding, **settings))(*arguments[:2]),
              by_xla(*arguments, **settings))


@needs_onednn
@pytest.mark.parametrize('kernel, layout, padding, settings', [
    ((2, 3, 3, 7, 13), 'DHWIO', ((0, 1), (1, 1), (2, 0)), {'stride': 2}),
    # As the gradient of a kernel has it.
    ((5, 7, 4, 4, 13), 'DIHWO', ((0, 0), (1, 0), (3, 3)),
     {'dilation': (1, 2, 6)}),
])
def test_convolution_in_three_dimensions(kernel, layout, padding, settings):
  arguments = draw(1, 5, 8, 24, 7), draw(*kernel), layout, padding
  assert_near(onednn.convolution(*arguments, **settings),
              by_xla(*arguments, **settings))


@needs_onednn
@pytest.mark.parametrize('batch', [(), (3,), (2, 3)])
def test_product_transposes_the_first(batch):
  a, b = draw(*batch, 37, 19), draw(*batch, 37, 13)
  exact = a.astype(np.float64).swapaxes(-1, -2) @ b.astype(np.float64)
  assert_near(onednn.product(a, b), exact)


@needs_onednn
@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 7, 300), (2, 32, 31),
                                   (3, 17, 1000)])
def test_transpose_keeps_every_bit(shape):
  x = draw(*shape) * np.float32(10) ** draw(*shape)
  transposed = np.asarray(jax.jit(lambda x: onednn.transpose(x * 1))(x))
  np.testing.assert_array_equal(transposed.view(np.uint32),
                                x.swapaxes(1, 2).copy().view(np.uint32))


def is_available() -> bool:
  """Not from the cache."""
  return onednn.is_available.__wrapped__()


@needs_onednn
@pytest.mark.parametrize('value', ['0', '1'])
def test_the_environment_turns_it_off(monkeypatch, value):
  monkeypatch.setenv('CATSDOGS_ONEDNN', value)
  assert is_available() == (value == '1')


@needs_onednn
@pytest.mark.parametrize('owner, name, value', [
    (jaxlib.version, '__version__', '0.10.99'),
    (pathlib.Path, 'read_text', lambda self: 'flags : fpu sse4_2 avx avx512f'),
    (sys, 'platform', 'darwin'),
    (jax, 'default_backend', lambda: 'gpu'),
    (jax, 'device_count', lambda: 2),
], ids=['another jaxlib', 'no AVX2', 'no Linux', 'no CPU', 'two devices'])
def test_not_where_it_is_not_known_to_work(monkeypatch, owner, name, value):
  assert is_available()
  monkeypatch.setattr(owner, name, value)
  assert not is_available()


@needs_onednn
def test_not_on_two_devices_which_convolve_all_the_same():
  (devices, available, called, two), _ = run(JAX_NUM_CPU_DEVICES='2')
  assert (devices, available, called) == (2, False, False)
  (devices, available, called, one), _ = run(JAX_NUM_CPU_DEVICES='1')
  assert (devices, available, called) == (1, True, True)
  assert one == two


@needs_onednn
@pytest.mark.parametrize('turned_on', [True, False])
def test_no_call_is_written_to_the_compilation_cache(tmp_path, turned_on):
  (_, available, called, _), complaints = run(
      CATSDOGS_ONEDNN=str(int(turned_on)), JAX_NUM_CPU_DEVICES='1',
      JAX_COMPILATION_CACHE_DIR=str(tmp_path),
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0')
  assert available == called == turned_on
  assert not complaints
  written = any('convolved_by_onednn' in path.name
                for path in tmp_path.rglob('*'))
  assert written != turned_on
