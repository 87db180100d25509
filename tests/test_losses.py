"""Cross-entropy and accuracy against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from catsdogs import losses

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(50, 5)).astype(np.float32) * 4
LABELS = RANDOM.integers(0, 5, 50).astype(np.int32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
  logits = logits.astype(np.float64)
  return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_without_smoothing_targets_are_one_hot():
  np.testing.assert_array_equal(losses.smoothed_targets(LABELS, 5, 0.0),
                                np.eye(5)[LABELS])


@pytest.mark.parametrize('smoothing', [0.1, 0.5, 0.99])
def test_smoothing_spreads_its_share_over_all_classes(smoothing):
  targets = np.asarray(losses.smoothed_targets(LABELS, 5, smoothing))
  expected = np.full((50, 5), smoothing / 5)
  expected[np.arange(50), LABELS] += 1 - smoothing
  np.testing.assert_allclose(targets, expected, atol=1e-6)
  np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)


def test_cross_entropy_is_minus_the_log_of_the_label_s_probability():
  targets = losses.smoothed_targets(LABELS, 5, 0.0)
  np.testing.assert_allclose(
      losses.cross_entropy(LOGITS, targets),
      -log_softmax(LOGITS)[np.arange(50), LABELS], rtol=1e-5, atol=1e-6)


def test_cross_entropy_of_soft_targets_weighs_all_classes():
  targets = RANDOM.dirichlet(np.ones(5), 50).astype(np.float32)
  np.testing.assert_allclose(
      losses.cross_entropy(LOGITS, targets),
      -(targets * log_softmax(LOGITS)).sum(axis=1), rtol=1e-5)


def test_an_undecided_model_loses_the_log_of_the_classes():
  targets = losses.smoothed_targets(LABELS, 5, 0.3)
  np.testing.assert_allclose(losses.cross_entropy(jnp.zeros((50, 5)), targets),
                             np.log(5), rtol=1e-6)


def test_huge_logits_give_a_finite_loss():
  logits = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
  loss = losses.cross_entropy(logits, jnp.array([[1.0, 0.0], [1.0, 0.0]]))
  np.testing.assert_allclose(loss, [0, 2e4])


def test_correct_is_where_the_largest_logit_is_the_label_s():
  np.testing.assert_array_equal(losses.correct(LOGITS, LABELS),
                                LOGITS.argmax(axis=1) == LABELS)
