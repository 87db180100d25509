"""Where only the head learns, the backbone sees each photo once.

Frozen, with the running statistics and without augmentation, the backbone says
of a photo the same in each epoch. So that is computed once; the head then
learns from it, and is evaluated on it, as the whole network would be.
"""

import functools
import time
from typing import Any, Callable

from flax import linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float
import ml_collections

from catsdogs.console import say
from catsdogs.evaluate import apply_to_each
from catsdogs.input_pipeline import Data, Features, Photos
from catsdogs.models import ResNet
from catsdogs.preprocessing import Preprocessing, model_input


def applies(config: ml_collections.ConfigDict, trainable: Any) -> bool:
  """Whether a run may learn from features that are computed once.

  Args:
    config: resolved.
    trainable: the part of the parameters that learns.
  """
  augment = config.augment
  neutral = augment.crop_scale == (1.0, 1.0) and not (
      augment.flip or augment.color_jitter or augment.mixup or augment.cutmix)
  return (trainable.keys() == {'head'} and neutral
          and config.model.batch_norm == 'running')


class Head(nn.Module):
  """The last layer of a `ResNet`, which finds its parameters among them all.

  Attributes:
    num_classes: outputs.
  """

  num_classes: int

  @nn.compact
  def __call__(self, pooled: Float[Array, 'b features'],
               train: bool = False) -> Float[Array, 'b classes']:
    """Logits, alike in training and in evaluation."""
    del train
    return nn.Dense(self.num_classes, name='head')(pooled)


def head_of(model: ResNet) -> Head:
  """The head alone, to be applied to the features of `compute_features`."""
  return Head(model.num_classes)


def compute_features(data: Data, model: ResNet, variables: Any,
                     preprocessing: Preprocessing, batch_size: int, mesh: Mesh,
                     check: Callable[[], None]) -> Data:
  """The data with the backbone's features of each photo in place of photos.

  Photos go into the model as they do in evaluation.

  Args:
    data: holds photos.
    model: the whole network.
    variables: `params` and `batch_stats`, on the devices.
    preprocessing: between a photo and the model.
    batch_size: photos at a time, over all devices.
    mesh: the devices.
    check: called between the batches; what it raises ends this.
  """
  started, count = time.monotonic(), len(data.train) + len(data.val)
  say('Only the head learns, so each photo goes through the backbone once.')

  @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
  def step(variables, batch):
    images = model_input(batch['image'], preprocessing)
    features = model.apply(variables, images, method='features')
    return {'features': features['pooled'], 'mask': batch['mask']}

  def features_of(photos: Photos) -> Features:
    outputs = apply_to_each(step, variables, photos, batch_size, mesh, check)
    return Features(photos.split, outputs['features'], outputs['mask'],
                    photos.skipped, photos.fingerprint)

  data = Data(data.source, features_of(data.train), features_of(data.val))
  seconds = time.monotonic() - started
  say(f'Computed the features of {count} photos in {seconds:.0f} s.')
  return data
