"""Kills a run again and again: python -m benchmarks.kills --signal=SIGKILL

A run of launch.py on small photos gets the signal at a random instant, is
started again, and so on. When it has been let finish, all that it leaves is
compared with what a run leaves that nobody disturbed: parameters, statistics,
optimizer, metrics.csv, results.json, predictions/val.csv, bit for bit.
"""

import argparse
import collections
import csv
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
# A step takes milliseconds, so that most instants are near a save or an
# evaluation. Everything that has a state of its own is on.
_RUN = ('--config=configs/finetune.py', '--config.model.name=resnet10t',
        '--config.model.width=0.125', '--config.model.weights=none',
        '--config.data.image_size=32', '--config.train.batch_size=8',
        '--config.train.log_every_steps=1',
        '--config.train.checkpoint_every_steps=8',
        '--config.train.eval_every_epochs=2.5',
        '--config.optim.ema_decay=0.9', '--config.augment.mixup=0.2')
_PHOTOS_PER_CLASS = 20
# What differs from run to run in spite of all care.
_TIMES = ('seconds_total', 'seconds_to_first_step', 'images_per_second')
# Share of the signals that come before the first step; others come up to so
# many steps later, and so many seconds.
_EARLY, _STEPS, _SECONDS = 0.3, 30, 0.1


class Run:
  """A process of launch.py, and what it has said so far.

  Attributes:
    lines: of its standard output; more come while it runs.
    process: the process.
  """

  def __init__(self, folder: pathlib.Path, workdir: pathlib.Path, epochs: int):
    environment = {**os.environ, 'CATSDOGS_CACHE': str(folder / 'cache'),
                   'JAX_PLATFORMS': 'cpu', 'CATSDOGS_OFFLINE': '1',
                   'CATSDOGS_ONEDNN': '0', 'PYTHONUNBUFFERED': '1'}
    environment.setdefault('JAX_COMPILATION_CACHE_DIR',
                           str(folder / 'compiled'))
    environment.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    self.lines: list[str] = []
    self.process = subprocess.Popen(
        [sys.executable, str(ROOT / 'launch.py'), *_RUN,
         f'--config.data.source=folder:{folder / "photos"}',
         f'--config.train.epochs={epochs}', f'--workdir={workdir}'],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    self._reader = threading.Thread(target=self._read)
    self._reader.start()

  def _read(self) -> None:
    for line in self.process.stdout:
      self.lines.append(line.rstrip())

  def wait(self) -> tuple[int, str]:
    """Exit status, and what it wrote to standard error."""
    errors = self.process.stderr.read()
    status = self.process.wait()
    self._reader.join()
    return status, errors

  def steps_told(self) -> int:
    """How many steps it has told of."""
    return sum(line.startswith('Epoch') for line in list(self.lines))

  def wait_for_steps(self, count: int) -> None:
    """Returns once it has told of so many steps, or has ended."""
    while self.process.poll() is None and self.steps_told() < count:
      time.sleep(0.002)

  def phase(self, workdir: pathlib.Path) -> str:
    """What it is at, as far as one can see from outside."""
    last = self.lines[-1] if self.lines else ''
    if not last or last.startswith(('Data', 'Found')):
      return 'starting'
    if not self.steps_told():
      return 'compiling'
    if any('tmp' in path.name for path in (workdir / 'checkpoints').glob('*')):
      return 'saving'
    return 'training or evaluating'


def kill_again_and_again(signum: signal.Signals, kills: int, epochs: int,
                         seed: int, folder: pathlib.Path) -> dict[str, Any]:
  """Interrupts a run so many times, and tells what came of it.

  Args:
    signum: SIGKILL, SIGTERM or SIGINT.
    kills: how many times.
    epochs: of the run: enough of them, for it must not end before.
    seed: of the instants.
    folder: empty.

  Returns:
    `tried`; `phases`, how often it was at what; `resumed`, after how many of
    them it had something to go on from; `seconds_to_exit`, the longest;
    `lost`, a list of what was lost, which is to be empty.
  """
  write_photos(folder / 'photos')
  alone, killed = folder / 'alone', folder / 'killed'
  status, errors = Run(folder, alone, epochs).wait()
  assert status == 0, errors

  rng = random.Random(seed)
  phases, lost = collections.Counter(), []
  slowest, resumed, least = 0.0, 0, 0
  seconds_to_first_step = 0.0
  for _ in range(kills):
    run, began = Run(folder, killed, epochs), time.monotonic()
    if seconds_to_first_step and rng.random() < _EARLY:
      time.sleep(rng.uniform(0, seconds_to_first_step))
    else:
      run.wait_for_steps(1)
      seconds_to_first_step = time.monotonic() - began
      run.wait_for_steps(rng.randint(1, _STEPS))
      time.sleep(rng.uniform(0, _SECONDS))
    phases[run.phase(killed)] += 1
    run.process.send_signal(signum)
    sent = time.monotonic()
    status, errors = run.wait()
    slowest = max(slowest, time.monotonic() - sent)
    if status == 0:
      raise SystemExit(f'the run of {epochs} epochs ended before the last '
                       'signal; give more --epochs')
    lost += ended_badly(signum, status, errors)
    if went_on_from := resumed_step(run.lines):
      resumed += 1
      if went_on_from < least:
        lost.append(f'went on from step {went_on_from}, not from {least}')
    elif least:
      if run.steps_told():
        lost.append(f'began anew, though step {least} was saved')
    # One that ends in order saves what it has learnt before it leaves.
    if signum != signal.SIGKILL and run.steps_told():
      least = (went_on_from or 0) + run.steps_told()

  run = Run(folder, killed, epochs)
  status, errors = run.wait()
  resumed += resumed_step(run.lines) is not None
  if status:
    lost.append(f'the last start ended with status {status}: {errors}')
  else:
    lost += differences(alone, killed)
  return {'signal': signum.name, 'tried': kills, 'phases': dict(phases),
          'resumed': resumed, 'seconds_to_exit': slowest, 'lost': lost}


def write_photos(folder: pathlib.Path) -> None:
  """Photos of noise, reddish cats and bluish dogs."""
  rng = np.random.default_rng(0)
  for name, colour in (('cat', (140, 90, 90)), ('dog', (90, 90, 140))):
    (folder / name).mkdir(parents=True)
    for i in range(_PHOTOS_PER_CLASS):
      pixels = rng.normal(colour, 50, (40, 48, 3)).clip(0, 255)
      Image.fromarray(pixels.astype(np.uint8)).save(
          folder / name / f'{name}.{i}.jpg', quality=90)


def ended_badly(signum: signal.Signals, status: int, errors: str) -> list[str]:
  """What is wrong with how a process ended; nothing if all is well."""
  expected = -signum if signum == signal.SIGKILL else 128 + signum
  wrong = [] if status == expected else [f'status {status}: {errors}']
  return wrong + (['a traceback'] if 'Traceback' in errors else [])


def resumed_step(lines: list[str]) -> int | None:
  """The step that a run said it goes on from."""
  for line in lines:
    if line.startswith('Resuming after step '):
      return int(line.split()[3])
  return None


def differences(expected: pathlib.Path, found: pathlib.Path) -> list[str]:
  """What two workdirs differ in, beside times."""
  different = []
  steps = [sorted(int(path.name) for path in (w / 'checkpoints').iterdir()
                  if path.name.isdecimal()) for w in (expected, found)]
  if steps[0] != steps[1]:
    different.append(f'checkpoints {steps[1]} in place of {steps[0]}')
  for step in steps[0]:
    if step in steps[1] and not _same_state(expected, found, step):
      different.append(f'the state of step {step}')
  if _metrics(expected) != _metrics(found):
    different.append('metrics.csv')
  if _results(expected) != _results(found):
    different.append('results.json')
  val = pathlib.Path('predictions', 'val.csv')
  if (expected / val).read_bytes() != (found / val).read_bytes():
    different.append('predictions/val.csv')
  return different


def _same_state(expected: pathlib.Path, found: pathlib.Path,
                step: int) -> bool:
  # Imported here, since it takes seconds. All of a state, as it was saved.
  import jax
  import orbax.checkpoint as ocp
  with ocp.PyTreeCheckpointer() as checkpointer:
    one, other = (checkpointer.restore(
        (workdir / 'checkpoints' / str(step) / 'state').absolute())
                  for workdir in (expected, found))
  return (jax.tree.structure(one) == jax.tree.structure(other)
          and all(np.asarray(a).tobytes() == np.asarray(b).tobytes()
                  for a, b in zip(jax.tree.leaves(one),
                                  jax.tree.leaves(other))))


def _metrics(workdir: pathlib.Path) -> list[dict[str, str]]:
  with (workdir / 'metrics.csv').open(newline='') as file:
    return [{**row, 'images_per_sec': ''} for row in csv.DictReader(file)]


def _results(workdir: pathlib.Path) -> dict[str, Any]:
  results = json.loads((workdir / 'results.json').read_text())
  return {key: value for key, value in results.items() if key not in _TIMES}


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--signal', default='SIGKILL',
                      choices=['SIGKILL', 'SIGTERM', 'SIGINT'])
  parser.add_argument('--kills', type=int, default=30)
  parser.add_argument('--epochs', type=int, default=220)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--json', type=pathlib.Path, help='a file for the row')
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    row = kill_again_and_again(signal.Signals[flags.signal], flags.kills,
                               flags.epochs, flags.seed, pathlib.Path(folder))
  if flags.json:
    flags.json.write_text(json.dumps(row, indent=2) + '\n')
  print('| signal | tried | at what | went on | longest wait | lost |')
  print('|---|---|---|---|---|---|')
  phases = ', '.join(f'{phase} {count}'
                     for phase, count in sorted(row['phases'].items()))
  print(f'| {row["signal"]} | {row["tried"]} | {phases} | {row["resumed"]} | '
        f'{row["seconds_to_exit"]:.1f} s | '
        f'{"; ".join(row["lost"]) or "nothing"} |')
  sys.exit(bool(row['lost']))


if __name__ == '__main__':
  main()
