"""Fixtures that several files of tests share."""

from collections.abc import Callable
import os
import pathlib
import shutil
import tempfile

import numpy as np
from PIL import Image
import pytest

_COMPILED = 'JAX_COMPILATION_CACHE_DIR'


def pytest_configure(config: pytest.Config) -> None:
  """What one process of the tests compiles, the others need not."""
  if _COMPILED not in os.environ:
    config.compiled = os.environ[_COMPILED] = tempfile.mkdtemp()
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'


def pytest_unconfigure(config: pytest.Config) -> None:
  """Removes it where this is the process that made it."""
  if hasattr(config, 'compiled'):
    shutil.rmtree(config.compiled, ignore_errors=True)


@pytest.fixture
def photo_folder(tmp_path) -> Callable[..., pathlib.Path]:
  """Writes tiny JPEGs that can be told apart: `photo_folder({'train/cat': 3})`.

  The classes are the last parts of the paths. The first of them is red with
  horizontal stripes, the second blue with vertical ones, and so on in turn;
  the noise over it is another one for each photo.
  """

  def write(counts: dict[str, int], name: str = 'photos',
            size: tuple[int, int] = (40, 32)) -> pathlib.Path:
    root = tmp_path / name
    classes = sorted({pathlib.PurePath(path).name for path in counts})
    for path, count in counts.items():
      kind = pathlib.PurePath(path).name
      (root / path).mkdir(parents=True, exist_ok=True)
      for index in range(count):
        random = np.random.default_rng([*path.encode(), index])
        picture = _striped(classes.index(kind), size, random)
        picture.save(root / path / f'{kind}.{index}.jpg', quality=90)
    return root

  return write


def _striped(kind: int, size: tuple[int, int],
             random: np.random.Generator) -> Image.Image:
  width, height = size
  pixels = random.normal(90, 20, (height, width, 3))
  pixels[..., (0, 2, 1)[kind % 3]] += 90
  stripes = pixels if kind % 2 == 0 else pixels.swapaxes(0, 1)
  stripes[random.integers(8)::8] += 60
  return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
