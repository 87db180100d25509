"""conv2d and its gradients against XLA's own convolution in float64."""

import functools
import itertools
import re
import threading
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from catsdogs import convolution, onednn
from catsdogs.convolution import conv2d

# A kernel's size, stride, groups, channels in and out: one of each kind in the
# ResNet family, most with channels that fill no vector; then what no network
# has yet: a 7x7 of channels too many to be taken in blocks, and a stride that
# leaves pixels over.
KINDS = {
    '1x1': (1, 1, 1, 19, 13),
    '1x1 strided': (1, 2, 1, 19, 24),
    '3x3': (3, 1, 1, 19, 13),
    '3x3 strided': (3, 2, 1, 8, 19),
    '3x3 in 32 groups': (3, 1, 32, 32, 64),
    '3x3 in 32 groups, strided': (3, 2, 32, 32, 96),
    '3x3 in 19 groups, strided': (3, 2, 19, 57, 38),
    'stem': (7, 2, 1, 3, 19),
    '7x7 strided': (7, 2, 1, 5, 8),
    '3x3 by threes': (3, 3, 1, 5, 7),
}
# Heights and widths, odd and even; in turn with batches, so that every kind
# meets all of both.
SIZES = ((1, 1), (2, 7), (9, 8), (32, 31))
BATCHES = (1, 6, 34, 7)
CASES = [(kind, size, BATCHES[(i + j) % len(BATCHES)])
         for i, kind in enumerate(KINDS) for j, size in enumerate(SIZES)]
# A prime number of photos, more than one result is summed over at once.
CASES.append(('3x3 strided', (9, 8), 37))

needs_cpu = pytest.mark.skipif(
    "jax.default_backend() != 'cpu'", reason='the backend is no CPU')
needs_onednn = pytest.mark.skipif(
    'not onednn.is_available()', reason='oneDNN is not available')


@pytest.fixture(params=[pytest.param('oneDNN', marks=needs_onednn),
                        pytest.param('XLA', marks=needs_cpu)])
def library(request, monkeypatch) -> str:
  """What computes float32: each in turn."""
  if request.param == 'XLA':
    monkeypatch.setattr(onednn, 'is_available', lambda: False)
  return request.param


def make_arguments(kind: str, size: tuple[int, int], batch: int,
                   bias: bool = True, add: bool = True) -> tuple[Any, ...]:
  """x, kernel, bias, add and the gradient of the result."""
  k, stride, groups, i, o = KINDS[kind]
  random = np.random.default_rng([*size, batch, k, stride, groups])
  result = (batch, *((n - 1) // stride + 1 for n in size), o)
  draw = lambda shape: random.normal(size=shape).astype(np.float32)
  return (draw((batch, *size, i)), draw((k, k, i // groups, o)),
          draw((o,)) if bias else None, draw(result) if add else None,
          draw(result))


def ours(kind: str, relu: bool, x, kernel, bias, add, g) -> tuple[Any, Any]:
  """The result, and the gradients that come from `g`."""
  _, stride, groups, _, _ = KINDS[kind]
  y, pull_back = jax.vjp(
      functools.partial(conv2d, stride=stride, groups=groups, relu=relu),
      x, kernel, bias, add)
  return y, pull_back(g)


def expected(kind: str, relu: bool, x, kernel, bias, add, g
             ) -> tuple[Any, Any, Any]:
  """The same by XLA, and `g` without the places where a ReLU may flip."""
  k, stride, groups, _, _ = KINDS[kind]

  def linear(x, kernel, bias, add):
    y = lax.conv_general_dilated(
        x, kernel, (stride, stride), ((k // 2, k // 2),) * 2,
        feature_group_count=groups, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    y = y if bias is None else y + bias
    return y if add is None else y + add

  y, pull_back = jax.vjp(linear, x, kernel, bias, add)
  if relu:
    g = jnp.where(jnp.abs(y) > 1e-3, g, 0)
    y, pull_back_relu = jax.vjp(jax.nn.relu, y)
    return y, pull_back(*pull_back_relu(g)), g
  return y, pull_back(g), g


def in_float64(function, kind: str, relu: bool, arguments) -> Any:
  with jax.enable_x64(True):
    arguments = jax.tree.map(lambda x: np.asarray(x, np.float64), arguments)
    jitted = jax.jit(lambda *args: function(kind, relu, *args))
    return jax.tree.map(np.asarray, jitted(*arguments))


def compiled(function, *arguments) -> jax.stages.Compiled:
  """As the training step is; of a new function, so that no cache is hit."""
  options = convolution.compiler_options()
  return jax.jit(lambda *args: function(*args)).lower(  # pylint: disable=W0108
      *arguments).compile(compiler_options=options)


def difference(actual: Any, exact: Any) -> float:
  """The largest difference, as a share of the largest value."""
  actual = np.asarray(actual, np.float64)
  assert actual.shape == exact.shape and np.isfinite(actual).all()
  return np.abs(actual - exact).max() / max(np.abs(exact).max(), 1e-30)


def assert_same(actual, exact, of_values: float, of_gradients: float) -> None:
  assert difference(actual[0], exact[0]) < of_values
  assert [x is None for x in actual[1]] == [x is None for x in exact[1]]
  differences = {
      name: difference(ours, theirs)
      for name, ours, theirs in zip(('x', 'kernel', 'bias', 'add'), actual[1],
                                    exact[1]) if theirs is not None}
  assert max(differences.values()) < of_gradients, differences


def assert_in_float32(kind: str, exact, arguments, relu: bool = True) -> None:
  arguments = jax.tree.map(np.float32, arguments)
  step = compiled(functools.partial(ours, kind, relu), *arguments)
  assert ('__onednn$' in step.as_text()) == onednn.is_available()
  assert_same(step(*arguments), exact, 1e-5, 1e-4)


@needs_cpu
@pytest.mark.parametrize('kind, size, batch', CASES)
def test_every_kind_and_size_is_exact(kind, size, batch):
  arguments = make_arguments(kind, size, batch)
  y, gradients, g = in_float64(expected, kind, True, arguments)
  arguments = (*arguments[:-1], g)
  assert_same(in_float64(ours, kind, True, arguments), (y, gradients),
              1e-12, 1e-12)
  if onednn.is_available():
    assert_in_float32(kind, (y, gradients), arguments)


@needs_cpu
@pytest.mark.parametrize('kind', KINDS)
def test_float32_without_onednn(monkeypatch, kind):
  monkeypatch.setattr(onednn, 'is_available', lambda: False)
  arguments = make_arguments(kind, (8, 9), 6)
  y, gradients, g = in_float64(expected, kind, True, arguments)
  assert_in_float32(kind, (y, gradients), (*arguments[:-1], g))


@pytest.mark.parametrize('bias, add, relu',
                         list(itertools.product((False, True), repeat=3))[:-1])
def test_what_follows_can_be_left_out(library, bias, add, relu):
  del library
  kind = '1x1'
  arguments = make_arguments(kind, (7, 8), 2, bias, add)
  y, gradients, g = in_float64(expected, kind, relu, arguments)
  assert_in_float32(kind, (y, gradients), (*arguments[:-1], g), relu)


def test_a_relu_at_zero_has_no_gradient(library):
  del library
  zeros = jnp.zeros((2, 4, 4, 3))
  y, gradients = ours('stem', True, zeros, jnp.ones((7, 7, 3, 19)), None,
                      jnp.zeros((2, 2, 2, 19)), jnp.ones((2, 2, 2, 19)))
  assert not y.any()
  assert not any(x.any() for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize('kind', ['1x1 strided', '3x3 strided',
                                  '3x3 in 32 groups, strided', 'stem'])
def test_bfloat16(kind):
  rough = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16),
                       make_arguments(kind, (8, 9), 2))
  y, gradients, _ = in_float64(expected, kind, False, rough)
  actual = compiled(functools.partial(ours, kind, False), *rough)(*rough)
  assert {x.dtype for x in jax.tree.leaves(actual)} == {
      jnp.dtype('bfloat16')}
  assert_same(actual, (y, gradients), 0.01, 0.01)


@pytest.mark.parametrize('kind', KINDS)
def test_no_gradient_is_a_dilated_convolution(library, kind):
  del library
  arguments = make_arguments(kind, (8, 9), 2)
  lower = lambda function: jax.jit(lambda *args: function(
      kind, True, *args)).lower(*arguments).as_text()
  dilated = re.compile(r'lhs_dilate = \[(?!1, 1\])')
  assert bool(dilated.search(lower(expected))) == (KINDS[kind][1] > 1)
  assert not dilated.search(lower(ours))


@needs_cpu
def test_what_is_materialized_stays_so():
  x = np.ones((2, 4), np.float32)
  function = lambda x: jnp.sin(convolution.materialize(jnp.exp(x)))
  assert 'opt-barrier' in compiled(function, x).as_text()
  assert 'opt-barrier' not in jax.jit(function).lower(x).compile().as_text()
  step = functools.partial(ours, '3x3', True)
  arguments = make_arguments('3x3', (7, 7), 2)
  # The input, and the gradient that comes back.
  assert compiled(step, *arguments).as_text().count(' opt-barrier(') >= 2


@pytest.mark.parametrize('kind', KINDS)
def test_elsewhere_it_is_xla_s_own_convolution(monkeypatch, kind):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  _, stride, groups, _, _ = KINDS[kind]
  x, kernel, bias, add, _ = make_arguments(kind, (8, 9), 2)
  function = lambda *args: conv2d(*args, stride=stride, groups=groups,
                                  relu=True)
  primitives = [str(eqn.primitive) for eqn in jax.make_jaxpr(function)(
      x, kernel, bias, add).eqns]
  assert primitives.count('conv_general_dilated') == 1
  assert not {p for p in primitives
              if 'custom_vjp' in p or 'ffi' in p or 'barrier' in p}
  text = jax.jit(lambda *args: function(*args)).lower(  # pylint: disable=W0108
      x, kernel, bias, add).as_text()
  assert text.count('stablehlo.convolution(') == 1
  assert 'custom_call' not in text and 'optimization_barrier' not in text
  assert convolution.compiler_options() is None
  assert convolution.materialize(x) is x


def small_step() -> tuple[jax.stages.Compiled, tuple[Any, ...]]:
  """A jitted gradient of a few convolutions, and what it takes."""
  random = np.random.default_rng(0)
  kernels = [random.normal(size=shape).astype(np.float32) for shape in (
      (7, 7, 3, 19), (3, 3, 19, 32), (3, 3, 1, 32), (1, 1, 32, 64))]
  x = random.normal(size=(16, 32, 32, 3)).astype(np.float32)

  def loss(x, kernels):
    x = conv2d(x, kernels[0], stride=2, relu=True)
    x = conv2d(x, kernels[1], stride=2, relu=True)
    x = conv2d(x, kernels[2], groups=32, relu=True)
    return jnp.square(conv2d(x, kernels[3], stride=2)).mean()

  arguments = (x, kernels)
  return compiled(jax.value_and_grad(loss, (0, 1)), *arguments), arguments


def same_bits(one: Any, other: Any) -> bool:
  return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_every_run_gives_the_same_bits_in_any_thread(library):
  del library
  step, arguments = small_step()
  first = jax.block_until_ready(step(*arguments))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(first))
  for _ in range(20):
    assert same_bits(first, step(*arguments))

  same, start = [], threading.Barrier(2)

  def run():
    start.wait(60)
    for _ in range(20):
      same.append(same_bits(first, step(*arguments)))

  threads = [threading.Thread(target=run) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(120)
  assert len(same) == 40 and all(same)
