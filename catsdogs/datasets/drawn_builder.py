"""The picture book of `drawn.py` as a set of TensorFlow Datasets."""

import contextlib
import io
import pathlib

import tensorflow_datasets as tfds

from catsdogs.console import say
from catsdogs.datasets import Source, drawn
from catsdogs.datasets.from_tfds import read_builder
from catsdogs.errors import UserError


class DrawnCatsDogs(tfds.core.GeneratorBasedBuilder):
  """Cats and dogs, half of each; needs no network, and draws at most once."""

  # To be raised whenever the same seed draws something else.
  VERSION = tfds.core.Version('1.0.0')
  COUNTS = {'train': 2000, 'validation': 500}
  SEED = 0

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description='A picture book of cats and dogs, drawn from a seed.',
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(encoding_format='jpeg'),
            'label': tfds.features.ClassLabel(names=drawn.KINDS),
            'id': tfds.features.Text()}),
        supervised_keys=('image', 'label'))

  def _split_generators(self, dl_manager):
    del dl_manager
    return {split: self._generate_examples(split, count)
            for split, count in self.COUNTS.items()}

  def _generate_examples(self, split: str, count: int):
    for name, kind, jpeg in drawn.draw_split(split, count, self.SEED):
      # TFDS stores encoded bytes as they are.
      yield name, {'image': io.BytesIO(jpeg), 'label': kind, 'id': name}


def open_drawn(cache: pathlib.Path, train_split: str = '',
               val_split: str = '') -> Source:
  """Opens the picture book, which is drawn the first time.

  TFDS moves it to its place whole: whoever is killed while drawing, or draws
  at the same time as another, never leaves half of it.

  Args:
    cache: where prepared data lies; made if it is not there.
    train_split: such as `train[:80%]`; empty for the book's own.
    val_split: likewise.

  Raises:
    UserError: there is no such split, it lacks a class, or the cache cannot be
      written.
  """
  builder = _prepared(cache / 'tfds')
  return read_builder(builder, 'bundled', 'image', 'label',
                      train_split or 'train', val_split or 'validation')


def _prepared(data_dir: pathlib.Path) -> DrawnCatsDogs:
  builder = DrawnCatsDogs(data_dir=data_dir)
  if builder.is_prepared():
    return builder
  say('Drawing the picture book of cats and dogs, this first time only.')
  tfds.disable_progress_bar()
  # For random access. Whoever prepared it otherwise is not contradicted.
  builder = DrawnCatsDogs(data_dir=data_dir, file_format='array_record')
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  except OSError as e:
    builder = DrawnCatsDogs(data_dir=data_dir)
    if not builder.is_prepared():  # Else another run was first.
      raise UserError(f'{data_dir} cannot be written ({e.strerror or e}); set '
                      'CATSDOGS_CACHE to another folder') from e
  return builder
