"""Trains one config after another, as launch.py does; for test_config_fuzz.py.

Reads a line of JSON for each, a workdir and values by field, and answers with
the exit status that launch.py would have, and the message or the traceback.
"""

import dataclasses
import json
import pathlib
import sys
import time
import traceback

import jax

from catsdogs import command_line
from catsdogs.architectures import ARCHITECTURES
from catsdogs.progress import Clock
from catsdogs.train import train_and_evaluate
from catsdogs.workdir import begin_or_continue
from test_config_fuzz import config_of

# After so many photos, steps and batches of evaluation a run has proved itself,
# whatever its epochs.
_ENOUGH = 60


# A block a stage, since it is compiled anew for each config.
ARCHITECTURES['resnet18'] = dataclasses.replace(
    ARCHITECTURES['resnet18'], stage_sizes=(1, 1, 1, 1))


class Enough(Exception):
  """The run is good for some steps, hence for more."""


def train(workdir: pathlib.Path, values) -> tuple[int, str]:
  """The exit status, and what is to be told."""
  checks = 0

  def check():
    nonlocal checks
    checks += 1
    if checks > _ENOUGH:
      raise Enough

  try:
    config, _ = begin_or_continue(workdir, config_of(values), False, 'cpu',
                                  workdir.parent / 'cache')
    train_and_evaluate(config, workdir, workdir.parent / 'cache',
                       Clock(time.monotonic()), check)
  except Enough:
    return 0, 'stopped'
  except Exception as e:
    problem = command_line.refusal(e)
    return (2, problem) if problem else (1, traceback.format_exc())
  return 0, 'finished'


def main() -> None:
  for line in sys.stdin:
    workdir, values = json.loads(line)
    print('@', json.dumps(train(pathlib.Path(workdir), values)), flush=True)
    jax.clear_caches()


if __name__ == '__main__':
  main()
