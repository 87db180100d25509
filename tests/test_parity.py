"""Others' networks and files, and ours on the same weights: the same numbers.

Where they are not installed, test_models.py holds ours against what they gave.
"""

from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import originals
import peers
import pytest

from catsdogs import models
from catsdogs.architectures import ARCHITECTURES
from catsdogs.pretrained import keras_layers, names
from catsdogs.pretrained.fit import fit
from catsdogs.pretrained.read import read_tensors

SEED = 0
# Largest difference allowed, as a share of the largest value.
TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
# In its fourth stage, torch's own float32 is 1.2e-4 off its float64.
LARGER_TOLERANCE = {'bit_r152x2': 2e-4}
LABELS = np.array([1, 7])
# Of the pictures that are looked at, and of those that gradients go back to.
SIZES_PX, GRADIENT_SIZE_PX = (64, 75), 40
# One of each kind; the others are of the same parts.
IN_DEFAULT_RUN = ('resnet18', 'resnet10t', 'resnet18d', 'resnet50v1',
                  'resnet50v2')
# Theirs and ours take more memory together than most machines have; there are
# smaller ones of the same parts.
TOO_LARGE = ('resnext101_32x48d', 'bit_r152x4')
# Of which gradients are compared: those of float64 take much of it as well.
MAX_PARAMETERS = 100_000_000


def cases() -> list:
  """An architecture of ours, and who publishes it."""
  return [
      pytest.param(name, source,
                   marks=[pytest.mark.slow] * (name not in IN_DEFAULT_RUN))
      for name in ARCHITECTURES if name not in TOO_LARGE
      for source in originals.sources(name)]


@pytest.fixture(autouse=True)
def in_full_float32():
  with jax.default_matmul_precision('highest'):
    yield


@pytest.mark.parametrize('name, source', cases())
def test_outputs_and_gradients_are_as_the_original_has_them(
    tmp_path, name, source):
  original = originals.sources(name)[source]()
  original.save(tmp_path / 'weights')
  model = models.create_model(peers.model_config(name), originals.CLASSES)
  tensors, _ = read_tensors(tmp_path / 'weights')
  variables, head_loaded = fit(tmp_path / 'weights', tensors,
                               models.variable_shapes(model),
                               model.architecture)
  assert head_loaded
  for size_px in SIZES_PX:
    pictures = peers.random_pictures(size_px, SEED)
    differences = compare(outputs(model, variables, pictures),
                          original.features(pictures))
    print(source, name, size_px, differences)  # Seen with `pytest -rP`.
    assert max(differences.values()) < LARGER_TOLERANCE.get(
        name, TOLERANCE), differences

  if sum(x.size for x in jax.tree.leaves(variables)) > MAX_PARAMETERS:
    return
  norm = 'gn' if model.architecture.norm == 'group' else 'bn'
  stem = 'stem/conv1' if model.architecture.deep_stem else 'stem'
  paths = [f'params/{stem}/conv/kernel', 'params/head/bias',
           'params/stage1/block1/conv2/conv/kernel',
           f'params/stage4/block1/conv1/{norm}/scale']
  naming = names.naming_of(keras_layers.plain(tensors))
  pictures = peers.random_pictures(GRADIENT_SIZE_PX, SEED)
  theirs = original.gradients(pictures, LABELS,
                              [naming.name(path) for path in paths])
  theirs = {path: naming.to_ours(path, theirs[naming.name(path)])
            for path in paths} | {'pictures': theirs['pictures']}
  if name.endswith('v1'):
    theirs[paths[0]] = theirs[paths[0]][:, :, ::-1]  # Their blue comes first.
  differences = compare(gradients(model, variables, pictures, paths), theirs)
  print(source, name, differences)
  assert max(differences.values()) < GRADIENT_TOLERANCE, differences


def outputs(model: models.ResNet, variables: dict[str, Any],
            pictures: np.ndarray) -> dict[str, jax.Array]:
  """`features` and `logits`, op by op: no minutes of compiling."""
  def both(model, x):
    features = model.features(x)
    return {**features, 'logits': model.head(features['pooled'])}
  return model.apply(variables, pictures, method=both)


def gradients(model: models.ResNet, variables: dict[str, Any],
              pictures: np.ndarray, paths: list[str]) -> dict[str, jax.Array]:
  """Of the mean cross-entropy, by the pictures and by parameters; exact."""
  def loss(params, pictures):
    logits = model.apply({**variables, 'params': params}, pictures)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
    return losses.mean()

  with jax.enable_x64(True):
    model = model.clone(dtype=jnp.float64)
    variables, pictures = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float64), (variables, pictures))
    of_params, of_pictures = jax.grad(loss, (0, 1))(
        variables['params'], pictures)
  flat = traverse_util.flatten_dict({'params': of_params}, sep='/')
  return {'pictures': of_pictures, **{path: flat[path] for path in paths}}


def compare(ours: dict[str, Any], theirs: dict[str, np.ndarray]
            ) -> dict[str, float]:
  """The largest difference of each, as a share of the largest value."""
  assert ours.keys() == theirs.keys()
  differences = {}
  for name, expected in theirs.items():
    found = np.asarray(ours[name])
    assert found.shape == expected.shape
    differences[name] = float(np.abs(found - expected).max()
                              / np.abs(expected).max())
  return differences
