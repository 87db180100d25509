"""Cross-entropy and accuracy as sums under a mask, divided once, at the end."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import optax


def smoothed_targets(labels: Int[Array, 'b'], num_classes: int,
                     smoothing: float) -> Float[Array, 'b classes']:
  """One-hot targets, a share of which is spread over all classes.

  Szegedy et al. 2015 (arXiv:1512.00567), section 7.
  """
  return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), smoothing)


def cross_entropy(logits: Float[Array, 'b classes'],
                  targets: Float[Array, 'b classes']) -> Float[Array, 'b']:
  """Of each example, in nats."""
  return optax.softmax_cross_entropy(logits, targets)


def correct(logits: Float[Array, 'b classes'],
            labels: Int[Array, 'b']) -> Bool[Array, 'b']:
  """Whether the largest logit is the label's."""
  return jnp.argmax(logits, axis=-1) == labels
