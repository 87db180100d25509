"""A picture book of cats and dogs that is drawn, not downloaded.

It lets the main command work where there is no network. A person tells the two
apart at a glance and a small network learns to, but no pixel gives the class
away: colours, places, sizes, poses and light are alike for both. Logistic
regression on the pixels stays below 60% on the default set.

The animals are painted in `drawn_animals.py`, everything else in `drawing.py`.
"""

from concurrent import futures
import functools
import itertools
import multiprocessing
import os
import pathlib
import shutil
import uuid

import numpy as np
from PIL import Image, ImageFilter

from catsdogs.datasets import drawing, drawn_animals

KINDS = ('cat', 'dog')
SPLITS = ('train', 'val')
VERSION = 1  # To be raised whenever the same seed draws something else.
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


def _write_picture(folder: pathlib.Path, seed: int,
                   place: tuple[str, str, int]) -> None:
  """Draws and writes a picture, which depends on its arguments alone."""
  split, kind, index = place
  rng = np.random.default_rng(
      [seed, SPLITS.index(split), KINDS.index(kind), index])
  file = folder / split / kind / f'{kind}.{index}.jpg'
  draw(kind, rng).save(file, quality=90)


def write_pictures(folder: pathlib.Path, train_count: int = 2000,
                   val_count: int = 500, seed: int = 0,
                   processes: int | None = None) -> None:
  """Writes `folder/{train,val}/{cat,dog}/{cat,dog}.<i>.jpg`.

  Args:
    folder: where to; made if it is not there.
    train_count: how many pictures to train on, an even number: half of each.
    val_count: how many to validate on, likewise.
    seed: another seed, another book.
    processes: how many draw at once; at least two by default. One draws here,
      without starting another. The pictures do not depend on it.

  Raises:
    ValueError: a count is odd or negative.
  """
  places = []
  for split, count in zip(SPLITS, (train_count, val_count)):
    if count < 0 or count % 2:
      raise ValueError(f'{split}: {count} pictures are not as many of each '
                       f'of {len(KINDS)} classes; ask for an even number.')
    for kind in KINDS:
      (folder / split / kind).mkdir(parents=True, exist_ok=True)
    places += itertools.product([split], KINDS, range(count // 2))
  write = functools.partial(_write_picture, folder, seed)
  if processes is None:
    processes = max(2, os.cpu_count() or 1)
  if processes == 1:
    for place in places:
      write(place)
    return
  # Spawned, since a fork of a process that runs JAX's threads may hang.
  # Each imports the main script anew, which thus has to guard its `main`.
  context = multiprocessing.get_context('spawn')
  with futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
    for _ in pool.map(write, places, chunksize=25):
      pass  # Only to raise here what was raised there.


def prepare(cache: pathlib.Path, train_count: int = 2000,
            val_count: int = 500, seed: int = 0,
            processes: int | None = None) -> pathlib.Path:
  """The folder of the pictures under the cache, drawn the first time.

  The folder appears in one instant, whole: whoever is killed while drawing, or
  draws the same at the same time, never leaves half of it.

  Args:
    cache: where prepared data lies; made if it is not there.
    train_count: as for `write_pictures`, and so are those below.
    val_count: see there.
    seed: see there.
    processes: see there.

  Returns:
    The folder, named after its version, counts and seed.
  """
  name = f'drawn-v{VERSION}-train{train_count}-val{val_count}-seed{seed}'
  folder = cache / name
  if folder.is_dir():
    return folder
  unfinished = cache / f'.{name}.{uuid.uuid4().hex}'
  try:
    write_pictures(unfinished, train_count, val_count, seed, processes)
    unfinished.rename(folder)
  except OSError:
    if not folder.is_dir():  # Else another run was first, with the same.
      raise
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return folder
