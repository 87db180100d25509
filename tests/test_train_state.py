"""The state of a run: what it holds and what it evaluates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from catsdogs.train_state import all_finite, create_train_state

VARIABLES = {
    'params': {'stem': {'kernel': jnp.ones((2, 2))},
               'head': {'kernel': jnp.zeros((2, 3))}},
    'batch_stats': {'stem': {'mean': jnp.zeros(2), 'var': jnp.ones(2)}}}
TRAINABLE = {'head': VARIABLES['params']['head']}


def create(ema: bool):
  return create_train_state(VARIABLES, TRAINABLE, optax.sgd(0.1, 0.9), ema)


def test_a_new_state_has_taken_no_step_and_holds_the_variables():
  state = create(ema=False)
  assert int(state.step) == 0 and state.step.dtype == jnp.int32
  jax.tree.map(np.testing.assert_array_equal, state.eval_variables(),
               VARIABLES)


def test_only_what_learns_has_optimizer_state_and_averages():
  state = create(ema=True)
  assert [x.shape for x in jax.tree.leaves(state.opt_state)] == [(2, 3)]
  assert jax.tree.structure(state.ema_params) == jax.tree.structure(TRAINABLE)


def test_averages_are_evaluated_where_they_are_kept_beside_what_is_frozen():
  state = create(ema=True).replace(
      ema_params={'head': {'kernel': jnp.full((2, 3), 5.0)}},
      ema_batch_stats={'stem': {'mean': jnp.full(2, 7.0),
                                'var': jnp.ones(2)}})
  variables = state.eval_variables()
  assert variables['params']['head']['kernel'].min() == 5
  assert variables['params']['stem']['kernel'].min() == 1
  assert variables['batch_stats']['stem']['mean'].min() == 7


def test_the_state_is_a_pytree_whose_buffers_may_be_given_away():
  step = jax.jit(lambda state: state.replace(step=state.step + 1),
                 donate_argnums=0)
  state = jax.tree.map(jnp.copy, create(ema=False))
  assert int(step(step(state)).step) == 2
  # The averages must not share a buffer with the parameters they start from.
  state = create(ema=True)
  assert (state.ema_params['head']['kernel'].unsafe_buffer_pointer()
          != state.params['head']['kernel'].unsafe_buffer_pointer())


def test_one_number_that_is_not_finite_is_found_wherever_it_is():
  assert all_finite(create(ema=True))
  for bad in (jnp.inf, -jnp.inf, jnp.nan):
    state = create(ema=True)
    leaves, tree = jax.tree.flatten(state)
    for i, leaf in enumerate(leaves):
      if jnp.issubdtype(leaf.dtype, jnp.inexact):
        broken = [*leaves]
        broken[i] = leaf.at[(0,) * leaf.ndim].set(bad)
        assert not all_finite(jax.tree.unflatten(tree, broken))
