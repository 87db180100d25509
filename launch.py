"""Trains, evaluates and predicts: python launch.py --config=configs/finetune.py

See README.md, or `--helpfull`, for what it takes.
"""

import time

_STARTED = time.monotonic()  # Before the imports, which take seconds.

from catsdogs import huge_pages

if __name__ == '__main__':
  huge_pages.restart_with()  # Before there is anything to lose.

import os
import pathlib

# TensorFlow, which only feeds data, is to keep quiet; read when it loads.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

from absl import app, flags
from ml_collections import config_flags

from catsdogs import command_line, orbax_noise

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The config; --config.FIELD=VALUE overrides a field.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where the run is kept; runs/NAME_OF_CONFIG by default.')
_MODE = flags.DEFINE_enum(
    'mode', 'train', ['train', 'evaluate', 'predict', 'export'],
    'What to do.')
_FORMAT = flags.DEFINE_enum(
    'format', 'torchvision', ['torchvision'], 'What to export.')
_RESTART = flags.DEFINE_bool(
    'restart', False, 'Remove what a run left in the workdir; begin anew.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'best', 'best, last, STEP, or pretrained: the weights that '
    'the run started from.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', None, 'Whether this is one of several processes; unset: if '
    'a cluster or JAX_COORDINATOR_ADDRESS says so.')
_IMAGES = flags.DEFINE_string(
    'images', None, 'What to predict: files, folders and globs, separated by '
    'commas. Or a folder of class folders to evaluate on.')


def main(_) -> None:
  orbax_noise.silence()
  command_line.run(_run)


def _run() -> None:
  workdir = command_line.workdir()
  cache = command_line.cache()
  # Imported where they are used, since some of them take seconds.
  if _MODE.value in ('train', 'evaluate'):
    from catsdogs import distributed
    distributed.initialize(_DISTRIBUTED.value)
  if _MODE.value == 'train':
    from catsdogs.workdir import given_config
    given_config(workdir, _CONFIG.value)  # Refused before a folder is made.
    from catsdogs.train import train
    train(_CONFIG.value, workdir, cache, _RESTART.value, _STARTED)
  elif _MODE.value == 'evaluate':
    from catsdogs.evaluate import evaluate_checkpoint
    evaluate_checkpoint(_config_of_run(workdir, cache), workdir, cache,
                        _CHECKPOINT.value, _IMAGES.value)
  elif _MODE.value == 'export':
    from catsdogs.export import export_checkpoint
    export_checkpoint(_config_of_run(workdir, cache), workdir, cache,
                      _CHECKPOINT.value)
  else:
    from catsdogs.predict import predict_with_checkpoint
    predict_with_checkpoint(_config_of_run(workdir, cache), workdir, cache,
                            _CHECKPOINT.value, _IMAGES.value)


def _config_of_run(workdir: pathlib.Path, cache: pathlib.Path):
  from catsdogs.workdir import begin, holds_run, started_config
  if _CHECKPOINT.value == 'pretrained' and _CONFIG.value is not None and (
      not holds_run(workdir)):  # Weights ask for no run.
    return begin(workdir, _CONFIG.value, cache)
  return started_config(workdir, command_line.overrides())


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_flags)
