"""Evaluates a model: every photo exactly once, and what follows from it."""

import dataclasses
import functools
import json
import math
import os
import pathlib
from typing import Any, Callable

from flax import linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float, Int, Num
import ml_collections
import numpy as np

from catsdogs import config as config_lib, distributed, losses
from catsdogs.console import printable, say
from catsdogs.csv_file import write_csv_file
from catsdogs.datasets.folder import open_labelled
from catsdogs.errors import UserError
from catsdogs.input_pipeline import (Batch, Features, Photos, check_classes,
                                     create_eval_iter, open_source,
                                     read_photos, sample)
from catsdogs.preprocessing import Preprocessing, model_input
from catsdogs.pretrained import zero_shot
from catsdogs.restore import restore_checkpoint


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The model's answer on each photo.

  Attributes:
    ids: of the photos.
    class_names: in the order of the labels.
    labels: the true classes.
    probabilities: of each class.
    losses: cross-entropy of each photo, in nats.
  """

  ids: list[str]
  class_names: tuple[str, ...]
  labels: Int[np.ndarray, 'n']
  probabilities: Float[np.ndarray, 'n classes']
  losses: Float[np.ndarray, 'n']

  @property
  def count(self) -> int:
    return len(self.labels)

  @property
  def correct(self) -> np.ndarray:
    return self.probabilities.argmax(axis=1) == self.labels

  @property
  def accuracy(self) -> float:
    return int(self.correct.sum()) / self.count

  @property
  def loss(self) -> float:
    return float(self.losses.astype(np.float64).sum()) / self.count

  def per_class_recall(self) -> dict[str, float]:
    """Share of each class that was recognised."""
    return {name: float(self.correct[self.labels == label].mean())
            for label, name in enumerate(self.class_names)
            if (self.labels == label).any()}

  def expected_calibration_error(self, bins: int = 15) -> float:
    """How far confidence is from accuracy: Guo et al. 2017 (arXiv:1706.04599).

    Args:
      bins: equally wide intervals of confidence; theirs were 15.
    """
    confidence = self.probabilities.max(axis=1).astype(np.float64)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, confidence - self.correct, minlength=bins)
    return float(np.abs(gaps).sum() / self.count)

  def roc_auc(self) -> float | None:
    """Area under the ROC curve of the second class; None unless there are two.

    The chance that a photo of the second class scores above one of the first,
    ties counting half (Mann and Whitney 1947).
    """
    if len(self.class_names) != 2:
      return None
    score = self.probabilities[:, 1].astype(np.float64)
    positive, negative = score[self.labels == 1], np.sort(
        score[self.labels == 0])
    if not len(positive) or not len(negative):
      return None
    below = np.searchsorted(negative, positive, 'left')
    up_to = np.searchsorted(negative, positive, 'right')
    return float((below + up_to).sum() / 2 / len(positive) / len(negative))

  def summary(self) -> dict[str, Any]:
    """The figures, under the names of `results.json`."""
    return {
        'val_accuracy': self.accuracy,
        'val_accuracy_interval': confidence_interval(
            int(self.correct.sum()), self.count),
        'val_loss': self.loss,
        'val_count': self.count,
        'per_class': self.per_class_recall(),
        'expected_calibration_error': self.expected_calibration_error(),
        'roc_auc': self.roc_auc(),
    }

  def write_csv(self, file: pathlib.Path) -> None:
    """Writes a row a photo: file, label, prediction, and the probabilities."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_csv_file(
        file, ['file', 'label', 'prediction', *self.class_names, 'loss'],
        ([name, self.class_names[label], self.class_names[row.argmax()],
          *(f'{p:.6f}' for p in row), f'{loss:.6f}']
         for name, label, row, loss in zip(self.ids, self.labels,
                                           self.probabilities, self.losses)))


def confidence_interval(correct: int, count: int) -> tuple[float, float]:
  """The 95% interval of an accuracy: Wilson 1927, at z = 1.96."""
  z = 1.959964
  share, spread = correct / count, z**2 / count
  center = (share + spread / 2) / (1 + spread)
  half = z / (1 + spread) * math.sqrt(
      share * (1 - share) / count + spread / (4 * count))
  return max(0.0, center - half), min(1.0, center + half)


def describe(accuracy: float, count: int) -> str:
  """An accuracy in words, with what it rests on."""
  correct = round(accuracy * count)
  low, high = confidence_interval(correct, count)
  return (f'{accuracy:.4f} ({correct} of {count}; 95% interval {low:.3f} to '
          f'{high:.3f})')


def create_mesh() -> Mesh:
  """All devices along one axis, `data`, over which a batch is divided."""
  return jax.make_mesh((jax.device_count(),), ('data',),
                       axis_types=(AxisType.Auto,))


def create_eval_step(model: nn.Module, preprocessing: Preprocessing | None,
                     mesh: Mesh, groups: np.ndarray | None = None
                     ) -> Callable[[Any, Batch], dict[str, Array]]:
  """Returns the compiled step: probabilities, losses and mask of a batch.

  Args:
    model: a `ResNet`, or the head of one.
    preprocessing: between a photo and the model; None where a batch holds
      features.
    mesh: the devices.
    groups: of `zero_shot.grouping`, where the model's classes are finer.
  """
  everywhere = NamedSharding(mesh, P())

  @functools.partial(jax.jit, out_shardings=everywhere)
  def eval_step(variables, batch):
    inputs = batch['image']
    if preprocessing is not None:
      inputs = model_input(inputs, preprocessing)
    logits = model.apply(variables, inputs)
    if groups is not None:
      logits = zero_shot.grouped_logits(logits, groups)
    targets = losses.smoothed_targets(batch['label'], logits.shape[-1], 0.0)
    return {'probabilities': jax.nn.softmax(logits),
            'losses': losses.cross_entropy(logits, targets),
            'mask': batch['mask']}

  return eval_step


def evaluate(eval_step: Callable[[Any, Batch], dict[str, Array]],
             variables: Any, photos: Photos | Features,
             class_names: tuple[str, ...], batch_size: int, mesh: Mesh,
             check: Callable[[], None] = lambda: None) -> Evaluation:
  """Evaluates every photo exactly once.

  Args:
    eval_step: of `create_eval_step`.
    variables: `params` and `batch_stats`, on the devices.
    photos: what to evaluate.
    class_names: in the order of the labels.
    batch_size: photos a step, over all devices; the last batch is padded.
    mesh: the devices.
    check: called between the batches; what it raises ends the evaluation.
  """
  outputs = apply_to_each(eval_step, variables, photos, batch_size, mesh,
                          check)
  seen = np.flatnonzero(outputs['mask'] > 0)
  if not len(seen):
    raise UserError(f'none of {len(photos)} photos can be read any more, such '
                    f'as {photos.split.ids[0]!a}; put them back')
  split = photos.split.select(seen)
  return Evaluation(list(split.ids), class_names, split.labels,
                    outputs['probabilities'][seen], outputs['losses'][seen])


def apply_to_each(step: Callable[[Any, Batch], dict[str, Array]],
                  variables: Any, photos: Photos | Features, batch_size: int,
                  mesh: Mesh, check: Callable[[], None]
                  ) -> dict[str, Num[np.ndarray, 'n ...']]:
  """What a step gives for each photo, exactly once and in order, by name.

  The arguments are those of `evaluate`.
  """
  outputs = []
  for batch in create_eval_iter(photos, batch_size,
                                NamedSharding(mesh, P('data'))):
    check()
    outputs.append(step(variables, batch))
    # Waits for the last but one, so that batches do not pile up.
    outputs[-2:-1] = jax.device_get(outputs[-2:-1])
  outputs = jax.device_get(outputs)
  # The last batch is padded at its end.
  return {key: np.concatenate([o[key] for o in outputs])[:len(photos)]
          for key in outputs[0]}


@distributed.loss_of_others_ends()
def evaluate_checkpoint(config: ml_collections.ConfigDict,
                        workdir: pathlib.Path, cache: pathlib.Path,
                        which: str, images: str | None) -> Evaluation:
  """Evaluates a checkpoint of a run, and writes `evaluation.json`.

  Args:
    config: of the run.
    workdir: of the run.
    cache: the folder for what is made once and used again.
    which: `best`, `last`, a step or `pretrained`.
    images: a folder of class folders; None for the validation split.

  Raises:
    UserError: the checkpoint or the photos cannot be used.
  """
  source = None if images else open_source(config.data, cache)
  restored = restore_checkpoint(workdir, config, which, cache,
                                source and source.class_names)
  mesh = create_mesh()
  config_lib.check_devices(config, mesh.size)
  if images:
    split = open_labelled(pathlib.Path(os.path.expanduser(images)),
                          restored.class_names)
    split_name = images
  else:
    check_classes(source, restored.class_names)
    split = sample(source.val, config.data.sample_fraction)
    split_name = f'the validation split of {source.name}'
  photos = read_photos(split, restored.preprocessing.decoding,
                       config.data.cache_gib * 2**30)
  for file, reason in photos.skipped:
    say(f'Left out {printable(file)}: {reason}.')
  if not len(photos):
    raise UserError(f'none of the files of {split_name} is a photo; give '
                    'others')
  say(f'Evaluating {restored.name} on {len(photos)} images of {split_name}.')
  evaluation = evaluate(
      create_eval_step(restored.model, restored.preprocessing, mesh,
                       restored.groups),
      jax.device_put(restored.variables, NamedSharding(mesh, P())), photos,
      restored.class_names, config.train.batch_size, mesh)
  say(f'val_loss {evaluation.loss:.4f}, val_accuracy '
      f'{describe(evaluation.accuracy, evaluation.count)}')
  values = {'checkpoint': restored.name, 'images': split_name,
            **evaluation.summary()}
  if jax.process_index() == 0:
    evaluation.write_csv(workdir / 'predictions' / 'evaluation.csv')
    (workdir / 'evaluation.json').write_text(
        json.dumps(values, indent=2) + '\n')
  return evaluation
