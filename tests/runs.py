"""Real runs of launch.py, for the tests: tiny photos, a tiny network."""

import csv
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent

# A network that compiles in seconds and takes milliseconds a step: one block a
# stage.
TINY = ('--config.model.name=resnet10t', '--config.model.width=0.125',
        '--config.model.weights=none', '--config.data.image_size=32',
        '--config.train.batch_size=8', '--config.train.log_every_steps=3')
# A run of some seconds: evaluations and checkpoints within the epochs.
LONG = ('--config=configs/finetune.py', *TINY,
        '--config.train.epochs=10.5', '--config.train.eval_every_epochs=2.5',
        '--config.train.checkpoint_every_steps=5',
        '--config.optim.ema_decay=0.9', '--config.augment.mixup=0.2')


def make_folder(root: pathlib.Path, per_class: int = 10,
                classes: tuple[str, ...] = ('cat', 'dog'),
                seed: int = 0) -> pathlib.Path:
  """Writes photos of noise, each class around a colour of its own."""
  rng = np.random.default_rng(seed)
  for label, name in enumerate(classes):
    (root / name).mkdir(parents=True)
    colour = np.full(3, 90) + 40 * np.eye(3)[label % 3]
    for i in range(per_class):
      pixels = rng.normal(colour, 50, (40, 48, 3)).clip(0, 255)
      Image.fromarray(pixels.astype(np.uint8)).save(
          root / name / f'{name}.{i}.jpg', quality=90)
  return root


def start(*arguments: str, cache: pathlib.Path, cwd: pathlib.Path = ROOT,
          onednn: bool = False) -> subprocess.Popen:
  """Starts launch.py, with a cache folder of its own and no network.

  Args:
    *arguments: of launch.py.
    cache: for its CATSDOGS_CACHE.
    cwd: where it runs.
    onednn: whether it calls oneDNN, as it does for people. Then it compiles
      everything anew: JAX cannot keep such executables. Without, the runs of
      the tests share what they compile (conftest.py).
  """
  environment = {**os.environ, 'CATSDOGS_CACHE': str(cache),
                 'JAX_PLATFORMS': 'cpu', 'CATSDOGS_OFFLINE': '1',
                 'CATSDOGS_ONEDNN': '1' if onednn else '0'}
  return subprocess.Popen(
      [sys.executable, str(ROOT / 'launch.py'), *arguments], cwd=cwd,
      env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True)


def launch(*arguments: str, cache: pathlib.Path, cwd: pathlib.Path = ROOT,
           onednn: bool = False) -> subprocess.CompletedProcess:
  """Runs launch.py to its end; the arguments are those of `start`."""
  process = start(*arguments, cache=cache, cwd=cwd, onednn=onednn)
  out, err = process.communicate(timeout=300)
  return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def wait_for_checkpoint(process: subprocess.Popen, workdir: pathlib.Path,
                        step: int) -> None:
  """Returns once a checkpoint of at least this step lies on the disk."""
  folder, deadline = workdir / 'checkpoints', time.monotonic() + 240
  while time.monotonic() < deadline:
    if folder.is_dir() and any(p.name.isdecimal() and int(p.name) >= step
                               for p in folder.iterdir()):
      return
    assert process.poll() is None, process.communicate()
    time.sleep(0.02)
  raise AssertionError(f'no checkpoint of step {step}')


def rows(file: pathlib.Path) -> list[dict[str, str]]:
  """The rows of a CSV file, by the names of its columns."""
  with file.open(newline='') as f:
    return list(csv.DictReader(f))


def refused(done, *words: str) -> None:
  """Asserts one clear line on stderr, no traceback, and exit status 2."""
  message = done.stderr.strip().splitlines()
  assert done.returncode == 2, done
  assert 'Traceback' not in done.stderr
  assert len(message) == 1, done.stderr
  for word in words:
    assert word in message[0]
