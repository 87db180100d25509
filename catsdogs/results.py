"""`results.json` and what else a run leaves behind in its workdir."""

import dataclasses
import importlib.metadata
import json
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from catsdogs.console import printable, say
from catsdogs.csv_file import write_csv_file
from catsdogs.datasets import Split
from catsdogs.evaluate import Evaluation, confidence_interval, describe
from catsdogs.input_pipeline import Data
from catsdogs.metric_log import MetricLog
from catsdogs.progress import Clock, Timetable, Totals

FILE = 'results.json'
DIVERGED_FILE = 'diverged_batch.csv'
# Classes that the console names; `results.json` has them all.
_LISTED = 10
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint',
             'tensorflow-datasets', 'ml_collections', 'numpy', 'pillow')


def introduce(data: Data, workdir: pathlib.Path) -> None:
  """Says what was found and what was left out."""
  say(f'Data: {data.source.name}.')
  for notice in data.source.notices:
    say(f'Note: {notice}.')
  for photos, name in ((data.train, 'training'), (data.val, 'validation')):
    counts = np.bincount(photos.split.labels, minlength=len(data.class_names))
    classes = [f'{printable(c)} {n}' for c, n in zip(data.class_names, counts)]
    if len(classes) > _LISTED:
      classes[_LISTED:] = [f'{len(classes) - _LISTED} more']
    say(f'Found {len(photos)} {name} images belonging to '
        f'{len(data.class_names)} classes ({", ".join(classes)}).')
  tell_left_out(data, workdir)


def tell_left_out(data: Data, workdir: pathlib.Path) -> None:
  """Says how many files cannot be used; `skipped_files.csv` names them."""
  file = workdir / 'skipped_files.csv'
  if data.skipped:
    say(f'Left out {len(data.skipped)} files that cannot be decoded; '
        f'{file} names them.')
  if jax.process_index() == 0:
    write_csv_file(file, ['file', 'reason'],
                   data.skipped + list(data.source.passed_over))


def write_batch(file: pathlib.Path, split: Split,
                class_names: tuple[str, ...]) -> None:
  """Writes a row `file,label` for each photo of a batch, in its order."""
  if jax.process_index():
    return
  write_csv_file(file, ['file', 'label'], [
      (name, class_names[i]) for name, i in zip(split.ids, split.labels)])


@dataclasses.dataclass(frozen=True)
class ParameterCount:
  """How many numbers the model has, and how many of them learn."""

  total: int
  trainable: int

  @classmethod
  def of(cls, trainable: Any, frozen: Any) -> 'ParameterCount':
    learn, rest = (sum(x.size for x in jax.tree.leaves(tree))
                   for tree in (trainable, frozen))
    return cls(learn + rest, learn)

  def __str__(self) -> str:
    frozen = self.total - self.trainable
    return f'{self.total:,} parameters, ' + (
        f'{frozen:,} of them frozen.' if frozen else 'none frozen.')


def write(workdir: pathlib.Path, status: str,
          config: ml_collections.ConfigDict, data: Data,
          parameters: ParameterCount, log: MetricLog, before_name: str,
          best_step: int | None, evaluation: Evaluation | None,
          epoch_totals: Totals, timetable: Timetable, clock: Clock
          ) -> dict[str, Any]:
  """Writes `results.json`, and `predictions/val.csv` where there is one.

  Args:
    workdir: of the run.
    status: `running` or `finished`.
    config: resolved.
    data: what was trained and evaluated on.
    parameters: of the model.
    log: of the run.
    before_name: which model was evaluated before the first step.
    best_step: of the best checkpoint, once there is one.
    evaluation: of the best checkpoint, where it is known.
    epoch_totals: of the latest epoch's training.
    timetable: of the run.
    clock: of the run.

  Returns:
    What was written.
  """
  before = log.evaluations().get(0)
  training = epoch_totals.means() if epoch_totals.steps else {}
  device = jax.devices()[0]
  values = {
      'status': status,
      **(evaluation.summary() if evaluation else {}),
      'best_step': best_step,
      'train_accuracy': training.get('train_accuracy'),
      'train_loss': training.get('train_loss'),
      'before': before and {
          'model': before_name.removesuffix('.'), 'val_accuracy': before[1],
          'val_accuracy_interval': confidence_interval(
              round(before[1] * len(data.val)), len(data.val)),
          'val_loss': before[0], 'val_count': len(data.val)},
      'epochs': config.train.epochs,
      'steps': timetable.total_steps,
      'seconds_total': clock.seconds_total(),
      'seconds_to_first_step': clock.seconds_to_first_step,
      'images_per_second': clock.images_per_second(),
      'data': {'source': data.source.name, 'classes': list(data.class_names),
               'train_count': len(data.train), 'val_count': len(data.val),
               'skipped': len(data.skipped)},
      'model': {'name': config.model.name, 'weights': config.model.weights,
                'parameters': parameters.total,
                'trainable': parameters.trainable},
      'device': {'platform': device.platform, 'kind': device.device_kind,
                 'count': jax.device_count(),
                 'processes': jax.process_count()},
      'versions': {name: importlib.metadata.version(name)
                   for name in _PACKAGES},
  }
  if jax.process_index() == 0:
    if evaluation:
      evaluation.write_csv(workdir / 'predictions' / 'val.csv')
    partial = workdir / f'{FILE}.partial'
    partial.write_text(json.dumps(values, indent=2) + '\n')
    partial.replace(workdir / FILE)
  return values


def read_finished(workdir: pathlib.Path) -> dict[str, Any] | None:
  """What `write` wrote at the end of a run; None before that."""
  try:
    values = json.loads((workdir / FILE).read_text())
  except (OSError, ValueError):
    return None
  finished = isinstance(values, dict) and values.get('status') == 'finished'
  return values if finished else None


def tell(results: dict[str, Any], workdir: pathlib.Path) -> None:
  """Says the closing line of a finished run."""
  accuracy = describe(results['val_accuracy'], results['val_count'])
  say(f'Finished in {results["seconds_total"]:.0f} s, on '
      f'{results["data"]["source"]}: val_loss {results["val_loss"]:.4f}, '
      f'val_accuracy {accuracy}. Everything is in {workdir}.')
