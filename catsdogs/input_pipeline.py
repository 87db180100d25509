"""From a data set to batches on the devices, in an order that is computed.

The k-th photo of a run is a function of the seed and of k alone: pass k // n
over the n photos goes through them in a permutation of its own. Hence nothing
of the pipeline need be saved, a run continues anywhere, and neither a batch
larger than the data nor a last, smaller batch is a special case.
"""

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any, Callable, Iterator

import jax
from jaxtyping import Float, Int, UInt8
import ml_collections
import numpy as np

from catsdogs import distributed
from catsdogs.datasets import Source, Split, stable_hash
from catsdogs.datasets.folder import open_folder
from catsdogs.errors import UserError
from catsdogs.photos import Decoding, decode_or_reason

# Above this share of files that cannot be decoded, something else is wrong.
MAX_SKIPPED_SHARE = 0.1

Batch = dict[str, Any]


@distributed.process_0_first()  # It draws, or downloads, for all.
def open_source(config: ml_collections.ConfigDict,
                cache: pathlib.Path) -> Source:
  """Opens what `data.source` names; nothing is decoded yet.

  Args:
    config: the config's `data` part, resolved.
    cache: the folder for what is made once and used again.
  """
  kind, _, where = config.source.partition(':')
  if kind == 'folder':
    return open_folder(pathlib.Path(os.path.expanduser(where)),
                       config.val_fraction)
  if kind == 'tfds':
    from catsdogs.datasets.from_tfds import open_tfds
    return open_tfds(where, config.label_key, config.train_split,
                     config.val_split, config.val_fraction)
  from catsdogs.datasets.drawn_builder import open_drawn
  return open_drawn(cache, config.train_split, config.val_split)


def sample(split: Split, fraction: float) -> Split:
  """A share of the photos, in their order, evenly from all classes.

  The share of the whole is rounded down, but each class keeps a photo. A hash
  of the ids chooses.
  """
  classes, counts = np.unique(split.labels, return_counts=True)
  total = int(len(split) * fraction + 1e-9)
  wanted = counts * total / len(split)
  takes = np.maximum(1, np.floor(wanted).astype(int))
  # What rounding left over goes to the classes that lost most by it.
  left_over = max(0, total - takes.sum())
  for i in np.argsort(takes - wanted, kind='stable')[:left_over]:
    takes[i] += 1
  chosen = []
  for label, take in zip(classes, takes):
    members = np.flatnonzero(split.labels == label)
    chosen += sorted(members, key=lambda i: stable_hash(split.ids[i]))[:take]
  return split.select(sorted(chosen))


@dataclasses.dataclass
class Photos:
  """The photos of a split that can be decoded.

  Attributes:
    split: their ids and labels, and how to read them.
    decoding: how they are decoded.
    decoded: the first of them, as many as the memory allowed.
    skipped: (file, reason) of those that were left out; grows where a file
      that was good when the run started is not when it is read again.
    digests: of the files, which must not change while they are trained on.
    fingerprint: a hash of ids, labels and files.
  """

  split: Split
  decoding: Decoding
  decoded: UInt8[np.ndarray, 'n size size 3']
  skipped: list[tuple[str, str]]
  digests: list[bytes]
  fingerprint: str

  def __len__(self) -> int:
    return len(self.split)

  def batch(self, indices: Int[np.ndarray, 'b']) -> dict[str, np.ndarray]:
    """These of them, as a batch; -1 stands for padding."""
    images = np.zeros((len(indices), *self.decoded.shape[1:]), np.uint8)
    mask = np.zeros(len(indices), np.float32)
    kept = (indices >= 0) & (indices < len(self.decoded))
    images[kept], mask[kept] = self.decoded[indices[kept]], 1
    for place in np.flatnonzero(indices >= len(self.decoded)):
      images[place], mask[place] = self._decode(int(indices[place]))
    labels = np.where(indices >= 0, self.split.labels[indices], 0)
    return {'image': images, 'label': labels.astype(np.int32), 'mask': mask}

  def _decode(self, index: int) -> tuple[UInt8[np.ndarray, 's s 3'], bool]:
    """A photo anew; black, and False, if its file is another by now."""
    def read_the_same():
      encoded = self.split.read(index)
      if _digest(encoded) != self.digests[index]:
        raise OSError('the file has changed')
      return encoded

    image, reason = decode_or_reason(read_the_same, self.decoding)
    if reason:
      note = (self.split.ids[index], f'{reason} (it was good at the start)')
      if note not in self.skipped:
        self.skipped.append(note)
    return image, not reason


@dataclasses.dataclass
class Features:
  """What a frozen backbone makes of the photos of a split, in their place.

  Attributes:
    split: the photos' ids and labels.
    values: the features of each photo.
    mask: 0 for a photo that could not be read again.
    skipped: as those of `Photos`.
    fingerprint: likewise.
  """

  split: Split
  values: Float[np.ndarray, 'n features']
  mask: Float[np.ndarray, 'n']
  skipped: list[tuple[str, str]]
  fingerprint: str

  def __len__(self) -> int:
    return len(self.split)

  def batch(self, indices: Int[np.ndarray, 'b']) -> dict[str, np.ndarray]:
    """These of them, as a batch; -1 stands for padding."""
    return {'image': self.values[indices],
            'label': self.split.labels[indices],
            'mask': np.where(indices >= 0, self.mask[indices],
                             np.float32(0))}


def read_photos(split: Split, decoding: Decoding, cache_bytes: float,
                check: Callable[[], None] = lambda: None) -> Photos:
  """Decodes every photo once: keeps what fits, leaves out what is damaged.

  Args:
    split: the photos.
    decoding: how they are decoded.
    cache_bytes: host memory for decoded photos.
    check: called between the photos; what it raises ends the reading.
  """
  tf = import_tensorflow()

  def read(index):
    digest = b''

    def read_and_hash():
      nonlocal digest
      encoded = split.read(int(index))
      digest = _digest(encoded)
      return encoded

    image, reason = decode_or_reason(read_and_hash, decoding)
    return image, digest, reason

  photos = tf.data.Dataset.range(len(split)).map(
      lambda i: tf.numpy_function(read, [i], [tf.uint8, tf.string, tf.string]),
      num_parallel_calls=tf.data.AUTOTUNE)
  size = decoding.size_px
  room = min(len(split), int(cache_bytes // (size * size * 3)))
  decoded = np.empty((room, size, size, 3), np.uint8)
  good, skipped, digests = [], [], []
  fingerprint = hashlib.blake2b(digest_size=16)
  for i, (image, digest, reason) in enumerate(photos.as_numpy_iterator()):
    check()
    if reason:
      skipped.append((split.ids[i], reason.decode('utf-8', 'replace')))
      continue
    if len(good) < room:
      decoded[len(good)] = image
    fingerprint.update(f'{split.ids[i]!a} {split.labels[i]} '.encode() + digest)
    good.append(i)
    digests.append(digest)
  return Photos(split.select(good), decoding, decoded[:len(good)], skipped,
                digests, fingerprint.hexdigest())


def _digest(encoded: bytes) -> bytes:
  # In letters: tf.data takes a string for one that ends at the first zero.
  digest = hashlib.blake2b(encoded, digest_size=16)
  return digest.hexdigest().encode('ascii')


@dataclasses.dataclass
class Data:
  """A data set that is ready to be trained and evaluated on."""

  source: Source
  train: Photos | Features
  val: Photos | Features

  @property
  def class_names(self) -> tuple[str, ...]:
    return self.source.class_names

  @property
  def fingerprint(self) -> str:
    return f'{self.train.fingerprint}-{self.val.fingerprint}'

  @property
  def skipped(self) -> list[tuple[str, str]]:
    return self.train.skipped + self.val.skipped

  def gather_skipped(self) -> None:
    """Adds what other processes of the run left out since it started."""
    for photos in (self.train, self.val):
      for note in distributed.gather(photos.skipped):
        if note not in photos.skipped:
          photos.skipped.append(note)


def prepare_data(config: ml_collections.ConfigDict, decoding: Decoding,
                 cache: pathlib.Path,
                 check: Callable[[], None] = lambda: None) -> Data:
  """Opens, samples and decodes both splits.

  Args:
    config: the config's `data` part, resolved.
    decoding: how photos are decoded.
    cache: the folder for what is made once and used again.
    check: called between the photos; what it raises ends the reading.

  Raises:
    UserError: the data cannot be used, or too much of it is damaged.
  """
  source = open_source(config, cache)
  cache_bytes = config.cache_gib * 2**30
  train = read_photos(sample(source.train, config.sample_fraction), decoding,
                      cache_bytes, check)
  val = read_photos(sample(source.val, config.sample_fraction), decoding,
                    cache_bytes - train.decoded.nbytes, check)
  check_photos(source, train, val)
  return Data(source, train, val)


def check_photos(source: Source, *sides: Photos | Features) -> None:
  """Raises `UserError` where too few photos could be decoded."""
  skipped = [note for photos in sides for note in photos.skipped]
  total = len(skipped) + sum(len(photos) for photos in sides)
  if len(skipped) > MAX_SKIPPED_SHARE * total:
    file, reason = skipped[0]
    raise UserError(
        f'data.source: {len(skipped)} of {total} files in {source.name} '
        f'cannot be decoded, more than {MAX_SKIPPED_SHARE:.0%}, such as '
        f'{file!a} ({reason}); replace or remove them')
  for photos in sides:
    present = set(photos.split.labels.tolist())
    for label, name in enumerate(source.class_names):
      if label not in present:
        raise UserError(f'data.source: no photo of class {name!r} in '
                        f'{source.name} can be decoded; replace them')


def check_classes(source: Source, class_names: tuple[str, ...]) -> None:
  """Raises `UserError` unless a source has the classes of a checkpoint."""
  if source.class_names != class_names:
    raise UserError(
        f'data.source: {source.name} has the classes '
        f'{", ".join(source.class_names)}, but the checkpoint knows '
        f'{", ".join(class_names)}; give photos of the same classes')


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int
                 ) -> Int[np.ndarray, 'count']:
  return np.random.default_rng([seed, epoch]).permutation(count)


def train_indices(seed: int, count: int, step: int,
                  batch_size: int) -> Int[np.ndarray, 'batch_size']:
  """Which photos the global batch of a step holds."""
  places = np.arange(step * batch_size, (step + 1) * batch_size)
  epochs, within = np.divmod(places, count)
  indices = np.empty(batch_size, np.int64)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    indices[here] = _permutation(seed, int(epoch), count)[within[here]]
  return indices


def eval_indices(count: int, step: int,
                 batch_size: int) -> Int[np.ndarray, 'batch_size']:
  """Which photos are evaluated in a step; -1 pads the last batch."""
  places = np.arange(step * batch_size, (step + 1) * batch_size)
  return np.where(places < count, places, -1)


def create_train_iter(photos: Photos | Features, seed: int, batch_size: int,
                      start_step: int, stop_step: int,
                      sharding: jax.sharding.Sharding) -> Iterator[Batch]:
  """Yields the batches of steps `start_step` to `stop_step` on the devices.

  Each is a dict of `image` uint8[b s s 3], or float32[b features] in its
  place, `label` int32[b] and `mask` float32[b], which is 0 for a photo that
  could not be read again.
  """
  indices = functools.partial(train_indices, seed, len(photos),
                              batch_size=batch_size)
  rows = distributed.rows_of_process(sharding, batch_size)
  batches = _batches(photos, indices, start_step, stop_step, rows)
  return _to_devices(batches, sharding)


def create_eval_iter(photos: Photos | Features, batch_size: int,
                     sharding: jax.sharding.Sharding) -> Iterator[Batch]:
  """Yields every photo once, like `create_train_iter`, in order.

  Padding has the mask 0; it ends the last batch.
  """
  indices = functools.partial(eval_indices, len(photos), batch_size=batch_size)
  steps = -(-len(photos) // batch_size)
  rows = distributed.rows_of_process(sharding, batch_size)
  return _to_devices(_batches(photos, indices, 0, steps, rows), sharding)


def _batches(photos: Photos | Features, indices, start_step: int,
             stop_step: int, rows: Int[np.ndarray, 'rows']
             ) -> Iterator[dict[str, np.ndarray]]:
  """These rows of each batch, made ahead of time by tf.data."""
  tf = import_tensorflow()

  def batch(step):
    return photos.batch(indices(step=int(step))[rows])

  # Of a batch without photos, the types that tf.data wants to know.
  types = {key: value.dtype
           for key, value in photos.batch(np.zeros(0, np.int64)).items()}

  def batch_in_graph(step):
    # One call for a batch: one for each photo would cost more than the photo.
    values = tf.numpy_function(lambda s: tuple(batch(s).values()), [step],
                               list(types.values()))
    return dict(zip(types, values))

  dataset = tf.data.Dataset.range(start_step, stop_step)
  dataset = dataset.map(batch_in_graph, num_parallel_calls=tf.data.AUTOTUNE)
  return dataset.prefetch(2).as_numpy_iterator()


def _to_devices(batches: Iterator[dict[str, np.ndarray]],
                sharding: jax.sharding.Sharding) -> Iterator[Batch]:
  """Moves batches to the devices, one ahead of the one in use."""
  queue = collections.deque()
  for batch in batches:
    queue.append({key: jax.make_array_from_process_local_data(sharding, value)
                  for key, value in batch.items()})
    if len(queue) > 1:
      yield queue.popleft()
  yield from queue


def import_tensorflow():
  """Imports TensorFlow, late since that takes seconds, without accelerators.

  It feeds data only; the memory of GPUs and TPUs is JAX's.
  """
  import tensorflow as tf
  tf.config.set_visible_devices([], 'GPU')
  tf.config.set_visible_devices([], 'TPU')
  return tf
