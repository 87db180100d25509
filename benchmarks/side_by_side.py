"""Measures contenders side by side: in turns, each in a process of its own."""

import argparse
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import sys
import time
from typing import Any, Callable

# Returns the work to be timed, and what to tell of it, such as versions.
Build = Callable[[argparse.Namespace],
                 tuple[Callable[[], None], dict[str, Any]]]

_ROUNDS = 7
_SECONDS_A_TURN = 4.0
# A process that waited has to get its memory and caches back first: on a
# virtual machine that showed in its first two or three steps. So it takes
# steps for this share of a turn before they are timed.
_WARM_UP = 0.4


def parser(description: str, contenders: list[str]) -> argparse.ArgumentParser:
  """The flags that the benchmarks share."""
  flags = argparse.ArgumentParser(
      description=description,
      formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  flags.add_argument('--model', default='resnet50', help='resnet18 ... '
                     'resnet152, wide_resnet50_2, resnext50_32x4d, ...')
  flags.add_argument('--width', type=float, default=1.0,
                     help='multiplies the channels')
  flags.add_argument('--batch_size', type=int, default=16)
  flags.add_argument('--image_size', type=int, default=224)
  flags.add_argument('--contenders', default=','.join(contenders),
                     help='separated by commas; ours is always among them')
  flags.add_argument('--rounds', type=int, default=_ROUNDS)
  flags.add_argument('--seconds', type=float, default=_SECONDS_A_TURN,
                     help='of a turn')
  flags.add_argument('--json', type=pathlib.Path, help='a file for the rows')
  return flags


def run(benchmark: str, flags: argparse.Namespace, builders: dict[str, Build],
        environments: dict[str, dict[str, str]]) -> None:
  """Measures, prints the table, and writes the rows.

  In each round every contender has a turn, so that what else the machine does
  hits all of them; told is the median over the rounds, of the speed and of the
  ratio to ours in the same round.

  Args:
    benchmark: its name.
    flags: of `parser`.
    builders: how to build the contenders, by name.
    environments: variables for the process of a contender, by name.
  """
  asked = list(dict.fromkeys(['ours', *flags.contenders.split(',')]))
  for name in asked:
    if name not in builders:
      sys.exit(f'--contenders: {name!r} is none of {", ".join(builders)}')
  contenders, absent = {}, {}
  for name in asked:  # One after the other: compiling takes all cores.
    contender = _Contender(builders[name], flags, environments.get(name, {}))
    if contender.problem:
      absent[name] = contender.problem
    else:
      contenders[name] = contender
  if 'ours' not in contenders:
    sys.exit(f'ours: {absent["ours"]}')

  speeds = {name: [] for name in contenders}
  for _ in range(flags.rounds):
    for name, contender in contenders.items():
      speeds[name].append(contender.turn(flags.batch_size))
  rows = []
  for name, contender in contenders.items():
    ratios = [speed / ours for speed, ours in zip(speeds[name], speeds['ours'])]
    rows.append({
        'benchmark': benchmark, 'model': flags.model, 'contender': name,
        'images_per_second': statistics.median(speeds[name]),
        'ratio_to_ours': statistics.median(ratios),
        'slowest_and_fastest': [min(speeds[name]), max(speeds[name])],
        'width': flags.width, 'batch_size': flags.batch_size,
        'image_size': flags.image_size, 'rounds': flags.rounds,
        'machine': machine(), **contender.about})
    contender.close()
  _print_table(rows, absent)
  if flags.json:
    flags.json.write_text(json.dumps(rows, indent=2) + '\n')


def machine() -> dict[str, Any]:
  """The machine, without its name."""
  kind = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():
    kind = next((line.partition(':')[2].strip()
                 for line in cpuinfo.read_text().splitlines()
                 if line.startswith('model name')), kind)
  return {'cpu': kind, 'cores': len(os.sched_getaffinity(0)),
          'python': platform.python_version()}


class _Contender:
  """One of the processes that take turns."""

  def __init__(self, build: Build, flags: argparse.Namespace,
               environment: dict[str, str]):
    before = dict(os.environ)
    os.environ.update(environment)  # A spawned process begins with these.
    try:
      spawn = multiprocessing.get_context('spawn')
      self._pipe, theirs = spawn.Pipe()
      self._process = spawn.Process(target=_work, args=(theirs, build, flags),
                                    daemon=True)
      self._process.start()
      theirs.close()
    finally:
      os.environ.clear()
      os.environ.update(before)
    try:
      self.problem, self.about, seconds = self._pipe.recv()
    except EOFError:
      self.problem, self.about, seconds = 'its process ended', {}, 1.0
    self._steps = max(1, round(flags.seconds / seconds))

  def turn(self, batch_size: int) -> float:
    """Images a second of one turn."""
    self._pipe.send(self._steps)
    return self._steps * batch_size / self._pipe.recv()

  def close(self) -> None:
    self._pipe.send(None)
    self._process.join()


def _work(pipe: Any, build: Build, flags: argparse.Namespace) -> None:
  """What the process of a contender does."""
  try:
    step, about = build(flags)
    step()  # Whatever is done once is not the step's.
    seconds = _time(step, 1)
  except Exception as e:  # Such as a library that is not installed.
    first = (str(e).strip().splitlines() or [''])[0]
    pipe.send((f'{type(e).__name__}: {first}', {}, 1.0))
    return
  pipe.send((None, about, seconds))
  while (steps := pipe.recv()) is not None:
    started = time.perf_counter()
    while time.perf_counter() - started < _WARM_UP * flags.seconds:
      step()
    pipe.send(_time(step, steps))


def _time(step: Callable[[], None], times: int) -> float:
  started = time.perf_counter()
  for _ in range(times):
    step()
  return time.perf_counter() - started


def _print_table(rows: list[dict[str, Any]], absent: dict[str, str]) -> None:
  first = rows[0]
  print(f'{first["benchmark"]}: {first["model"]} of width {first["width"]:g}, '
        f'batches of {first["batch_size"]} at {first["image_size"]} px, '
        f'median of {first["rounds"]} rounds')
  print(f'{first["machine"]["cores"]} cores of {first["machine"]["cpu"]}, '
        f'Python {first["machine"]["python"]}')
  print(f'{"contender":14}{"images/s":>10}{"ours = 1":>10}  about')
  for row in rows:
    print(f'{row["contender"]:14}{row["images_per_second"]:10.2f}'
          f'{row["ratio_to_ours"]:10.3f}  {row["about"]}')
  for name, problem in absent.items():
    print(f'{name:14}{"-":>10}{"-":>10}  {problem}')
