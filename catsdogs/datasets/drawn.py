"""A picture book of cats and dogs that is drawn, not downloaded.

It lets the main command work where there is no network. A person tells the two
apart at a glance and a small network learns to, but no pixel gives the class
away: colours, places, sizes, poses and light are alike for both. Logistic
regression on the pixels stays below 60% on the default set.

The animals are painted in `drawn_animals.py`, everything else in `drawing.py`.
"""

from collections.abc import Iterator
from concurrent import futures
import functools
import io
import itertools
import multiprocessing
import os
import signal
import sys
import threading

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from catsdogs.datasets import drawing, drawn_animals

KINDS = ('cat', 'dog')
SPLITS = ('train', 'validation')
SUPERSAMPLING = 2  # Painted larger, then reduced, for smooth edges.


def draw(kind: str, rng: np.random.Generator, size_px: int = 128
         ) -> Image.Image:
  """Draws one picture.

  Args:
    kind: 'cat' or 'dog'.
    rng: where every choice comes from; the same state, the same picture.
    size_px: the shorter side. Two pictures in five are 5/4 as wide as high,
      or the other way round; the others are square.

  Returns:
    The picture, RGB.

  Raises:
    ValueError: the kind is neither 'cat' nor 'dog'.
  """
  if kind not in KINDS:
    raise ValueError(f'kind is {kind!r}; it must be one of {KINDS}.')
  long_px = size_px * 5 // 4
  size = drawing.pick(rng, (
      (size_px, size_px), (size_px, size_px), (size_px, size_px),
      (long_px, size_px), (size_px, long_px)))
  canvas = drawing.scenery((size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING),
                           rng)
  _place(canvas, drawn_animals.imagine(kind, rng), rng)
  if rng.random() < 0.3:
    drawing.foreground(canvas, rng)
  picture = canvas.image.resize(size, Image.Resampling.LANCZOS)
  return _photograph(picture, rng)


def _place(canvas: drawing.Canvas, animal: drawn_animals.Animal,
           rng: np.random.Generator) -> None:
  """Paints the animal into the scene in some pose, place, size and slant."""
  pose, (left, top, right, bottom) = drawing.pick(rng, drawn_animals.POSES)
  width, height = (side / min(canvas.image.size) for side in canvas.image.size)
  scale = min(width / (right - left), height / (bottom - top))
  scale *= rng.uniform(0.68, 1.02)
  slack = np.subtract((width, height), np.multiply(
      (right - left, bottom - top), scale))
  shift = rng.uniform((-0.6, -0.3), (0.6, 0.6))  # Rather low than high.
  x, y = shift * slack + (width / 2, height / 2)
  spot = canvas.moved(x, y, scale, rng.normal(0, 6), flip=rng.random() < 0.5)
  pose(spot.moved(-(left + right) / 2, -(top + bottom) / 2), animal, rng)


def _photograph(picture: Image.Image, rng: np.random.Generator
                ) -> Image.Image:
  """What a camera adds: uneven light, its colour, a little blur and noise."""
  if rng.random() < 0.25:
    blur = ImageFilter.GaussianBlur(rng.uniform(0.4, 1.0))
    picture = picture.filter(blur)
  pixels = np.asarray(picture, np.float32)
  height, width, _ = pixels.shape
  slope_x, slope_y = rng.uniform(-0.15, 0.15, 2)
  light = (rng.uniform(0.8, 1.1)
           + slope_x * np.linspace(-1, 1, width, dtype=np.float32)
           + slope_y * np.linspace(-1, 1, height, dtype=np.float32)[:, None])
  pixels = pixels * light[..., None] * rng.normal(1, 0.05, 3)
  grain = rng.standard_normal((height, width, 1), np.float32)
  pixels += grain * rng.uniform(0, 4)
  return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_split(split: str, count: int, seed: int = 0,
               processes: int | None = None
               ) -> Iterator[tuple[str, str, bytes]]:
  """Draws the pictures of a split, several at once.

  Args:
    split: one of SPLITS.
    count: how many pictures, an even number: half of each kind.
    seed: another seed, another book.
    processes: how many draw; at least two by default. One draws here, without
      starting another. The pictures do not depend on it.

  Yields:
    The name of a picture, such as 'cat.12', its kind, and the picture as JPEG.

  Raises:
    ValueError: the count is odd or negative.
  """
  if count < 0 or count % 2:
    raise ValueError(f'{split}: {count} pictures are not as many of each of '
                     f'{len(KINDS)} classes; ask for an even number.')
  places = list(itertools.product(KINDS, range(count // 2)))
  paint = functools.partial(_jpeg, seed, SPLITS.index(split))
  if processes == 1:
    yield from map(paint, places)
    return
  # Spawned, since a fork of a process that runs JAX's threads may hang.
  # Each imports the main script anew, which thus has to guard its `main`.
  with futures.ProcessPoolExecutor(
      processes or max(2, os.cpu_count() or 1),
      mp_context=multiprocessing.get_context('spawn'),
      initializer=_begin_to_paint) as pool:
    yield from pool.map(paint, places, chunksize=25)


def _begin_to_paint() -> None:
  """Sees to it that a painter goes when its parent does, without a word."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)

  def leave_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=leave_with_parent, daemon=True).start()


def _jpeg(seed: int, split: int, place: tuple[str, int]
          ) -> tuple[str, str, bytes]:
  """Draws a picture, which depends on its arguments alone."""
  kind, index = place
  rng = np.random.default_rng([seed, split, KINDS.index(kind), index])
  file = io.BytesIO()
  draw(kind, rng).save(file, 'JPEG', quality=90)
  return f'{kind}.{index}', kind, file.getvalue()


def contact_sheet(columns: int = 8, rows: int = 3, side_px: int = 124
                  ) -> Image.Image:
  """The first pictures of the validation split, cats and dogs in turn."""
  sheet = Image.new('RGB', (columns * side_px, rows * side_px))
  for place in range(columns * rows):
    row, column = divmod(place, columns)
    kind = KINDS[(row + column) % 2]
    _, _, jpeg = _jpeg(0, SPLITS.index('validation'), (kind, place // 2))
    picture = ImageOps.fit(Image.open(io.BytesIO(jpeg)), (side_px, side_px))
    sheet.paste(picture, (column * side_px, row * side_px))
  return sheet


if __name__ == '__main__':  # python -m catsdogs.datasets.drawn FILE
  contact_sheet().save(sys.argv[1], quality=88, optimize=True)
