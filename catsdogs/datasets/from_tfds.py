"""Photos of any classification set of TensorFlow Datasets."""

from typing import Any, Sequence

import numpy as np

from catsdogs.console import say
from catsdogs.datasets import Source, Split
from catsdogs.errors import UserError

VAL_NAMES = ('validation', 'val', 'valid', 'test')
# Features that name an example, where a set has one of them.
_ID_KEYS = ('image/filename', 'file_name', 'filename', 'id')


def open_tfds(name: str, label_key: str, train_split: str, val_split: str,
              val_fraction: float) -> Source:
  """Opens a prepared set, or downloads and prepares it.

  A set in ArrayRecord is read where it lies. One in TFRecord, which has no
  random access, is held in memory, still encoded.

  Args:
    name: as `tfds.builder` takes it, such as `cats_vs_dogs`.
    label_key: the feature that holds the class; `auto` where there is one.
    train_split: such as `train[:80%]`; empty for the set's own.
    val_split: likewise; both or none are given.
    val_fraction: share of a single split that validates.

  Raises:
    UserError: no such set or split, or it is no set of photos and classes.
  """
  import tensorflow_datasets as tfds  # Late: most runs need nothing of it.

  source, builder = f'tfds:{name}', _prepared(tfds, name)
  keys = _keys(tfds, builder.info.features, source, label_key)
  if not train_split:
    train_split, val_split = _own_splits(builder.info.splits, source,
                                         val_fraction)
  return read_builder(builder, source, *keys, train_split, val_split)


def read_builder(builder, source: str, image_key: str, label_key: str,
                 train_split: str, val_split: str) -> Source:
  """Two splits of a builder that is prepared.

  Args:
    builder: a `tfds.core.DatasetBuilder`.
    source: as in `data.source`; what the source is called.
    image_key: the feature that holds the photo.
    label_key: the feature that holds the class.
    train_split: such as `train[:80%]`.
    val_split: likewise.

  Raises:
    UserError: there is no such split, or it lacks a class.
  """
  import tensorflow_datasets as tfds

  class_names = tuple(builder.info.features[label_key].names)
  splits = []
  for split in (train_split, val_split):
    try:
      examples = _examples(tfds, builder, split, image_key)
      splits.append(_split(examples, f'{source.removeprefix("tfds:")}/{split}',
                           image_key, label_key))
    except (ValueError, KeyError) as e:
      raise UserError(f'data.source: {source} has no split {split!r}; it has '
                      f'{", ".join(builder.info.splits)}') from e
  for split, labels in zip((train_split, val_split),
                           (s.labels for s in splits)):
    missing = sorted(set(range(len(class_names))) - set(labels.tolist()))
    if missing:
      raise UserError(
          f'data.source: {split!r} of {source} has no photo of '
          f'{class_names[missing[0]]!r}; choose another data.train_split and '
          'data.val_split')
  return Source(source, class_names, *splits)


def _prepared(tfds, name: str):
  try:
    builder = tfds.builder(name)
  except (tfds.core.registered.DatasetNotFoundError, ValueError) as e:
    raise UserError(f'data.source: TFDS knows no set {name!r}; its names are '
                    'in tfds.list_builders()') from e
  if not builder.is_prepared():
    say(f'Downloading and preparing {name} in {builder.data_dir}.')
    try:
      builder = tfds.builder(name, file_format='array_record')
      builder.download_and_prepare()
    except Exception as e:  # TFDS raises whatever its builders and servers do.
      reason = str(e).splitlines()[0] if str(e) else type(e).__name__
      raise UserError(
          f'data.source: tfds:{name} could not be prepared ({reason}); prepare '
          f'it where there is a network, or point TFDS_DATA_DIR to it') from e
  return builder


def _keys(tfds, features, source: str, label_key: str) -> tuple[str, str]:
  """The features that hold the photo and its class."""
  images = [k for k, f in features.items()
            if isinstance(f, tfds.features.Image)]
  labels = [k for k, f in features.items()
            if isinstance(f, tfds.features.ClassLabel)]
  if not images or not labels:
    raise UserError(f'data.source: {source} is no set of photos and '
                    f'classes; it holds {", ".join(features)}')
  if label_key == 'auto':
    if len(labels) > 1:
      raise UserError(f'data.source: {source} has several labels; set '
                      f'data.label_key to one of {", ".join(labels)}')
    label_key = labels[0]
  if label_key not in labels:
    raise UserError(f'data.label_key: {source} has no label '
                    f'{label_key!r}; it has {", ".join(labels)}')
  return images[0], label_key


def _own_splits(splits, source: str, val_fraction: float) -> tuple[str, str]:
  """The set's train and validation splits, or `train` in two parts."""
  if 'train' not in splits:
    raise UserError(f'data.source: {source} has no split train; set '
                    'data.train_split and data.val_split to two of '
                    f'{", ".join(splits)}')
  for val in VAL_NAMES:
    if val in splits:
      return 'train', val
  percent = round(100 * (1 - val_fraction))
  return f'train[:{percent}%]', f'train[{percent}%:]'


def _examples(tfds, builder, split: str, image_key: str
              ) -> Sequence[dict[str, Any]]:
  """The examples of a split by index, their photos still encoded."""
  encoded = {image_key: tfds.decode.SkipDecoding()}
  random_access = tfds.core.file_adapters.FileFormat.with_random_access()
  if builder.info.available_file_formats() & set(random_access):
    return builder.as_data_source(split=split, decoders=encoded)
  # One file after the other, so that an example keeps its place.
  in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
  return list(tfds.as_numpy(builder.as_dataset(
      split=split, decoders=encoded, read_config=in_order)))


def _split(examples: Sequence[dict[str, Any]], prefix: str, image_key: str,
           label_key: str) -> Split:
  ids, labels = [], []
  for i in range(len(examples)):
    example = examples[i]
    id_key = next((k for k in _ID_KEYS if k in example), None)
    own = example[id_key] if id_key else i
    ids.append(f'{prefix}/{own.decode() if isinstance(own, bytes) else own}')
    labels.append(example[label_key])
  return Split(ids, np.array(labels, np.int32),
               lambda i: examples[i][image_key])
