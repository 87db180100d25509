"""BatchNorm beside its definition, differentiated by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catsdogs.normalization import batch_norm

EPSILON = 1e-5


def plain(x, scale, bias, add=None, relu=False):
  """The definition, operation by operation."""
  mean = x.mean((0, 1, 2))
  var = jnp.square(x - mean).mean((0, 1, 2))
  y = (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias
  y = y if add is None else y + add
  return jax.nn.relu(y) if relu else y


def arguments(shape, dtype, with_add):
  random = np.random.RandomState(0)
  values = [2 * random.randn(*shape) + 1, random.randn(shape[-1]),
            random.randn(shape[-1])]
  if with_add:
    values.append(random.randn(*shape))
  return ([jnp.asarray(v, dtype) for v in values],
          jnp.asarray(random.randn(*shape), dtype))


@pytest.mark.parametrize('dtype, values, gradients',
                         [('float32', 1e-5, 1e-4), ('float64', 1e-12, 1e-12)])
@pytest.mark.parametrize('with_add', [False, True])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('shape', [(4, 5, 6, 7), (1, 3, 2, 3), (6, 1, 1, 19)])
def test_it_equals_the_definition(shape, relu, with_add, dtype, values,
                                  gradients):
  with jax.enable_x64(dtype == 'float64'):
    inputs, g = arguments(shape, dtype, with_add)
    expected, expected_vjp = jax.vjp(
        lambda *inputs: plain(*inputs, relu=relu), *inputs)
    (y, mean, var), vjp = jax.vjp(
        lambda *inputs: batch_norm(*inputs, epsilon=EPSILON, relu=relu),
        *inputs)
    assert y.dtype == mean.dtype == dtype
    np.testing.assert_allclose(y, expected, rtol=values, atol=values)
    np.testing.assert_allclose(mean, inputs[0].mean((0, 1, 2)), rtol=values)
    np.testing.assert_allclose(var, inputs[0].var((0, 1, 2)), rtol=values,
                               atol=values)
    zeros = jnp.zeros_like(mean), jnp.zeros_like(var)
    for name, ours, theirs in zip(('x', 'scale', 'bias', 'add'),
                                  vjp((g, *zeros)), expected_vjp(g)):
      scale = float(abs(theirs).max()) or 1.0
      np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0,
                                 atol=gradients, err_msg=name)


def test_a_channel_of_one_value_gives_the_bias_and_no_nan():
  x, bias = jnp.full((2, 3, 3, 2), 1e3), jnp.array([0.5, -0.5])

  def total(x):
    return batch_norm(x, jnp.ones(2), bias, epsilon=EPSILON)[0].sum()

  y, _, var = batch_norm(x, jnp.ones(2), bias, epsilon=EPSILON)
  assert (np.asarray(var) >= 0).all()
  np.testing.assert_allclose(y, jnp.broadcast_to(bias, x.shape), atol=1e-3)
  assert np.isfinite(jax.grad(total)(x)).all()


def test_bfloat16_keeps_float32_statistics():
  (x, scale, bias), _ = arguments((4, 5, 6, 7), 'float32', False)
  y, mean, var = batch_norm(x.astype(jnp.bfloat16), scale, bias,
                            epsilon=EPSILON, relu=True)
  assert y.dtype == jnp.bfloat16
  assert mean.dtype == var.dtype == jnp.float32
  np.testing.assert_allclose(y.astype(jnp.float32),
                             plain(x, scale, bias, relu=True),
                             rtol=0.05, atol=0.05)
