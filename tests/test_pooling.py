"""The stem's max-pooling against Flax's, in values and in gradients."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catsdogs import pooling

SIZES = ((1, 1), (1, 2), (2, 1), (3, 8), (8, 7), (31, 32))


def flax_max_pool(x):
  return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def value_and_gradient(function, x, g):
  def both(x, g):
    y, pull_back = jax.vjp(function, x)
    return y, pull_back(g)[0]
  return jax.tree.map(np.asarray, jax.jit(both)(x, g))


def assert_as_with_flax(x: np.ndarray) -> np.ndarray:
  """Returns the gradient."""
  b, h, w, c = x.shape
  shape = (b, (h + 1) // 2, (w + 1) // 2, c)
  g = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  g = jnp.asarray(g, x.dtype)
  y, gradient = value_and_gradient(pooling.max_pool, x, g)
  theirs, their_gradient = value_and_gradient(flax_max_pool, x, g)
  assert y.dtype == gradient.dtype == x.dtype
  np.testing.assert_array_equal(y, theirs)
  np.testing.assert_allclose(gradient, their_gradient, rtol=1e-6, atol=1e-6)
  return gradient


def noise(size: tuple[int, int]) -> np.ndarray:
  random = np.random.default_rng(0)
  return random.normal(size=(3, *size, 5)).astype(np.float32)


@pytest.mark.parametrize('size', SIZES)
def test_values_and_gradients_of_any_size(size):
  assert_as_with_flax(noise(size))


@pytest.mark.parametrize('size', SIZES)
def test_of_equal_pixels_the_first_one_wins(size):
  # Few values, so that there are ties at zero and above.
  assert_as_with_flax(np.maximum(noise(size).round(), 0))


@pytest.mark.parametrize('value', [-2.5, 0.0, 3.0])
def test_a_constant_picture(value):
  gradient = assert_as_with_flax(np.full((1, 8, 7, 2), value, np.float32))
  # The first pixel of each window: outside, the border is less than all.
  np.testing.assert_array_equal(np.flatnonzero(gradient.any((0, 2, 3))),
                                [0, 1, 3, 5])


def test_negative_pixels_are_more_than_the_border():
  x = -1 - np.abs(noise((8, 7)))
  assert_as_with_flax(x)
  assert (np.asarray(pooling.max_pool(x)) < 0).all()


def test_bfloat16():
  x = jnp.asarray(noise((8, 8)), jnp.bfloat16)
  g = jnp.ones((3, 4, 4, 5), jnp.bfloat16)
  y, gradient = value_and_gradient(pooling.max_pool, x, g)
  theirs, their_gradient = value_and_gradient(flax_max_pool, x, g)
  assert y.dtype == gradient.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, theirs)
  np.testing.assert_array_equal(gradient, their_gradient)


def test_not_a_number_is_seen_in_every_window_that_has_it():
  x = noise((9, 8))
  x[0, 2, 3, 1] = x[1, 0, 0, 0] = x[2, 8, 7, 4] = np.nan
  y = np.asarray(pooling.max_pool(x))
  np.testing.assert_array_equal(y, flax_max_pool(x))
  assert np.isnan(y).sum() == 1 * 2 + 1 + 1


def test_elsewhere_it_is_flax_s_own(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  function = lambda x: pooling.max_pool(x)  # pylint: disable=W0108
  jaxpr = str(jax.make_jaxpr(function)(noise((8, 7))))
  assert 'reduce_window_max' in jaxpr and 'custom_vjp' not in jaxpr
