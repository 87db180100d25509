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

from absl import app, flags, logging
from ml_collections import config_flags

from catsdogs import command_line, interruption

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
_IMAGES = flags.DEFINE_string(
    'images', None, 'What to predict: files, folders and globs, separated by '
    'commas. Or a folder of class folders to evaluate on.')


def main(_) -> None:
  logging.set_verbosity(logging.ERROR)  # Orbax tells every file it touches.
  command_line.run(_run)


def _run() -> None:
  workdir = command_line.workdir()
  cache = command_line.cache()
  # Imported where they are used, since some of them take seconds.
  if _MODE.value == 'train':
    _train(workdir, cache)
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


def _train(workdir: pathlib.Path, cache: pathlib.Path) -> None:
  from catsdogs import results
  from catsdogs.progress import Clock
  from catsdogs.train import train_and_evaluate
  config = _begin(workdir, cache)
  finished = results.read_finished(workdir)
  if finished is None:
    with interruption.Interruption() as signals:
      finished = train_and_evaluate(config, workdir, cache, Clock(_STARTED),
                                    signals.check)
  results.tell(finished, workdir)


def _begin(workdir: pathlib.Path, cache: pathlib.Path):
  import jax
  from catsdogs import console
  from catsdogs.workdir import begin_or_continue
  config, notice = begin_or_continue(workdir, _CONFIG.value, _RESTART.value,
                                     jax.default_backend(), cache,
                                     jax.process_count())
  if notice:
    console.box(notice)
  return config


def _config_of_run(workdir: pathlib.Path, cache: pathlib.Path):
  from catsdogs.workdir import holds_run, started_config
  if _CHECKPOINT.value == 'pretrained' and _CONFIG.value is not None and (
      not holds_run(workdir)):  # Weights ask for no run.
    return _begin(workdir, cache)
  return started_config(workdir, command_line.overrides())


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_flags)
