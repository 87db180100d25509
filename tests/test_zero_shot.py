"""What ImageNet's classes say of ours."""

import jax
import numpy as np
import pytest

from catsdogs.pretrained import imagenet
from catsdogs.pretrained.zero_shot import grouped_logits, grouping

THEIRS = ('n01440764', 'n02085620', 'n02123045', 'n02123394')


def members(groups: np.ndarray, column: int) -> list[int]:
  return np.flatnonzero(np.isfinite(groups[:, column])).tolist()


def test_imagenet_has_118_dogs_and_5_cats_where_everyone_has_them():
  classes = imagenet.classes()
  assert len(classes) == 1000 and list(classes) == sorted(classes)
  assert classes['n02123045'] == 'tabby, tabby cat'
  groups = grouping(tuple(classes), ('cat', 'dog'))
  assert members(groups, 0) == list(range(281, 286))
  assert members(groups, 1) == list(range(151, 269))


@pytest.mark.parametrize('ours', [('cat', 'dog'), ('Cats', 'Dogs')])
def test_kinds_are_found_by_their_name(ours):
  groups = grouping(THEIRS, ours)
  assert members(groups, 0) == [2, 3] and members(groups, 1) == [1]
  np.testing.assert_allclose(np.exp(groups).sum(axis=0), 1, rtol=1e-6)


def test_a_class_that_bears_their_id_is_theirs():
  groups = grouping(THEIRS, ('n02123394', 'dog'))
  assert members(groups, 0) == [3] and members(groups, 1) == [1]


def test_names_that_are_alike_are_the_same():
  """Of a run that knew one class more, or spelled them otherwise."""
  groups = grouping(('bird', 'cat', 'dog'), ('Cat', 'Dogs'))
  assert members(groups, 0) == [1] and members(groups, 1) == [2]


@pytest.mark.parametrize('ours', [
    ('cat', 'horse'),  # They have none.
    ('cat', 'n02123394'),  # One of theirs would be both.
    ('cat', 'cats')])
def test_without_an_answer_for_each_class_there_is_none(ours):
  assert grouping(THEIRS, ours) is None


def test_a_kind_is_as_likely_as_its_classes_are_on_average():
  logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
  groups = grouping(THEIRS, ('cat', 'dog'))
  theirs = np.asarray(jax.nn.softmax(logits))
  expected = np.stack([theirs[:, 2:].mean(axis=1), theirs[:, 1]], axis=1)
  ours = jax.nn.softmax(grouped_logits(logits, groups))
  np.testing.assert_allclose(
      ours, expected / expected.sum(axis=1, keepdims=True), rtol=1e-5)
