"""Where photos come from: class folders, TFDS, or drawn pictures.

Every source gives the same thing, a `Source` of two `Split`s; the photos are
still encoded there, and read by index.
"""

import dataclasses
import hashlib
from typing import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
  """Encoded photos and their labels, readable in any order.

  Attributes:
    ids: a name for each photo that leads back to it, such as its path.
    labels: the index of its class, int32.
    read: gives the encoded photo of an index; raises OSError.
  """

  ids: Sequence[str]
  labels: np.ndarray
  read: Callable[[int], bytes]

  def __len__(self) -> int:
    return len(self.ids)

  def select(self, indices: Sequence[int]) -> 'Split':
    """The split of these photos alone, in this order."""
    indices = np.asarray(indices, np.int64)
    return Split([self.ids[i] for i in indices], self.labels[indices],
                 lambda i: self.read(int(indices[i])))


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set: what it is called, its classes, and its two splits.

  Attributes:
    name: as in `data.source`.
    class_names: in the order of the labels.
    train: the split that is learnt from.
    val: the split that is evaluated.
    passed_over: (file, reason) of what is no photo of any class.
    notices: lines that a person should read before the run.
  """

  name: str
  class_names: tuple[str, ...]
  train: Split
  val: Split
  passed_over: tuple[tuple[str, str], ...] = ()
  notices: tuple[str, ...] = ()


def stable_hash(name: str) -> str:
  """A hash that is the same on every machine and in every process."""
  encoded = name.encode('utf-8', 'surrogateescape')
  return hashlib.blake2b(encoded, digest_size=16).hexdigest()
