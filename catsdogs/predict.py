"""Predicts the class of any photos: a table, a CSV file, a contact sheet."""

from concurrent import futures
import dataclasses
import glob
import os
import pathlib
from typing import Iterator

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxtyping import Float, UInt8
import ml_collections
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from catsdogs.console import printable, say
from catsdogs.csv_file import write_csv_file
from catsdogs.datasets.folder import files_below, read_file
from catsdogs.errors import UserError
from catsdogs.evaluate import create_eval_step, create_mesh
from catsdogs.photos import decode_or_reason
from catsdogs.restore import Restored, restore_checkpoint

BATCH_SIZE = 32
# Rows of the table on the terminal; the CSV file has them all.
MAX_TABLE_ROWS = 50
# Photos of the contact sheet, and how it is laid out, in pixels.
MAX_SHEET_PHOTOS = 120
_TILE, _CAPTION, _GAP, _COLUMNS = 160, 34, 8, 6


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What the model says of one file.

  Attributes:
    file: its path.
    probabilities: of each class; None where the file is no photo.
    error: why it is none, or empty.
    thumbnail: the decoded photo, of those that the contact sheet shows.
  """

  file: str
  probabilities: Float[np.ndarray, 'classes'] | None
  error: str = ''
  thumbnail: UInt8[np.ndarray, 's s 3'] | None = None


def find_files(images: str) -> list[str]:
  """The files that `--images` names: files, folders and globs, by commas.

  Raises:
    UserError: a part matches nothing.
  """
  files = _matches(images)  # A path may hold a comma itself.
  if not files:
    for part in images.split(','):
      found = _matches(part)
      if not found:
        raise UserError(f'--images: {part!r} matches no file; check the path')
      files += found
  return list(dict.fromkeys(files))


def _matches(pattern: str) -> list[str]:
  """The file, the files of the folder, or those that the glob matches."""
  if not pattern:
    return []  # To pathlib, it would be the current folder.
  path = str(pathlib.Path(os.path.expanduser(pattern)))
  if os.path.isdir(path):
    return [os.path.join(path, name)
            for name in files_below(pathlib.Path(path))]
  # A file's name may hold a bracket itself, and a link may lead nowhere.
  if os.path.lexists(path):
    return [path]
  return [file for name in sorted(glob.glob(path, recursive=True))
          if os.path.lexists(name) for file in _matches(name)]


def predict(restored: Restored, files: list[str]) -> Iterator[Prediction]:
  """Yields what the model says of each file, in their order.

  Args:
    restored: the model.
    files: paths.
  """
  mesh = create_mesh()
  batch_size = min(BATCH_SIZE, len(files))
  batch_size = -(-batch_size // mesh.size) * mesh.size
  eval_step = create_eval_step(restored.model, restored.preprocessing, mesh,
                               restored.groups)
  variables = jax.device_put(restored.variables, NamedSharding(mesh, P()))
  decoding = restored.preprocessing.decoding
  size = decoding.size_px

  def load(file):
    return decode_or_reason(lambda: read_file(pathlib.Path(file)), decoding)

  shown = 0
  with futures.ThreadPoolExecutor() as pool:
    for start in range(0, len(files), batch_size):
      part = files[start:start + batch_size]
      photos, errors = zip(*pool.map(load, part))
      images = np.zeros((batch_size, size, size, 3), np.uint8)
      images[:len(part)] = photos
      batch = {'image': images, 'label': np.zeros(batch_size, np.int32),
               'mask': np.ones(batch_size, np.float32)}
      batch = jax.device_put(batch, NamedSharding(mesh, P('data')))
      outputs = np.asarray(eval_step(variables, batch)['probabilities'])
      for file, photo, error, output in zip(part, photos, errors, outputs):
        if error:
          yield Prediction(file, None, error)
          continue
        shown += 1
        yield Prediction(file, output, '',
                         photo if shown <= MAX_SHEET_PHOTOS else None)


def predict_with_checkpoint(config: ml_collections.ConfigDict,
                            workdir: pathlib.Path, cache: pathlib.Path,
                            which: str, images: str | None) -> None:
  """Predicts with a checkpoint of a run, as `predict_files` says.

  Args:
    config: of the run.
    workdir: of the run.
    cache: the folder for what is made once and used again.
    which: `best`, `last`, a step or `pretrained`.
    images: as `find_files` takes it.

  Raises:
    UserError: the checkpoint or the files cannot be used.
  """
  if not images:
    raise UserError('--mode=predict needs --images=PATH[,PATH...]')
  predict_files(restore_checkpoint(workdir, config, which, cache), images,
                workdir)


def predict_files(restored: Restored, images: str,
                  workdir: pathlib.Path) -> None:
  """Predicts, and writes `predictions.csv` and `predictions.png`.

  Args:
    restored: the model.
    images: as `find_files` takes it.
    workdir: where the files are written.

  Raises:
    UserError: `images` matches nothing, or none of its files is a photo.
  """
  files = find_files(images)
  names = restored.class_names
  say(f'Predicting {len(files)} files with {restored.name}.')
  predictions = list(predict(restored, files))
  write_csv(predictions, names, workdir / 'predictions.csv')
  contact_sheet(predictions, names).save(workdir / 'predictions.png')
  _print_table(predictions, names)
  say(f'All of them are in {workdir / "predictions.csv"}, the photos in '
      f'{workdir / "predictions.png"}.')
  if all(p.error for p in predictions):
    raise UserError(f'--images: none of the {len(files)} files is a photo, '
                    f'such as {printable(files[0])} ({predictions[0].error}); '
                    'give others')


def write_csv(predictions: list[Prediction], class_names: tuple[str, ...],
              file: pathlib.Path) -> None:
  """Writes a row a file: label, probability, that of each class, error."""
  rows = []
  for p in predictions:
    if p.error:
      figures = ['', '', *('' for _ in class_names)]
    else:
      label, probability = _answer(p, class_names)
      figures = [label, f'{probability:.6f}',
                 *(f'{x:.6f}' for x in p.probabilities)]
    rows.append([p.file, *figures, p.error])
  write_csv_file(file, ['file', 'label', 'probability', *class_names, 'error'],
                 rows)


def contact_sheet(predictions: list[Prediction],
                  class_names: tuple[str, ...]) -> Image.Image:
  """The photos side by side, with what the model says of them below."""
  shown = [p for p in predictions if p.thumbnail is not None]
  columns = max(1, min(_COLUMNS, len(shown)))
  rows = -(-len(shown) // columns)
  cell_width, cell_height = _TILE + _GAP, _TILE + _CAPTION + _GAP
  sheet = Image.new('RGB', (columns * cell_width + _GAP,
                            max(1, rows) * cell_height + _GAP), 'white')
  pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
  for i, p in enumerate(shown):
    x = _GAP + i % columns * cell_width
    y = _GAP + i // columns * cell_height
    sheet.paste(Image.fromarray(p.thumbnail).resize((_TILE, _TILE)), (x, y))
    label, probability = _answer(p, class_names)
    name = os.path.basename(p.file)
    for line, text in enumerate((f'{label} {probability:.1%}', name)):
      pen.text((x, y + _TILE + 1 + 16 * line),
               _fitted(printable(text), font), 'black', font)
  return sheet


def _answer(prediction: Prediction, class_names: tuple[str, ...]
            ) -> tuple[str, float]:
  best = int(prediction.probabilities.argmax())
  return class_names[best], float(prediction.probabilities[best])


def _fitted(text: str, font: ImageFont.ImageFont) -> str:
  """The text, cut so that it is no wider than a photo."""
  while font.getlength(text) > _TILE:
    text = text[:-2] + '…'
  return text


def _print_table(predictions: list[Prediction],
                 class_names: tuple[str, ...]) -> None:
  rows = predictions[:MAX_TABLE_ROWS]
  width = max(len('file'), *(len(printable(p.file)) for p in rows))
  label_width = max(len('label'),
                    *(len(printable(name)) for name in class_names))
  say(f'{"file":{width}}  {"label":{label_width}}  probability')
  for p in rows:
    if p.error:
      answer = f'not a photo: {p.error}'
    else:
      label, probability = _answer(p, class_names)
      answer = f'{printable(label):{label_width}}  {probability:.4f}'
    say(f'{printable(p.file):{width}}  {answer}')
  if len(predictions) > len(rows):
    say(f'... and {len(predictions) - len(rows)} more.')
