"""`metrics.csv` and TensorBoard events: a row a logged step and evaluation."""

from collections.abc import Collection
import csv
import os
import pathlib

from tensorboardX import SummaryWriter

METRICS = ('train_loss', 'train_accuracy', 'learning_rate', 'images_per_sec',
           'grad_norm', 'eval_loss', 'eval_accuracy')
FIELDS = ('step', 'epoch') + METRICS


class MetricLog:
  """What was measured so far, on the disk and in memory.

  A resumed run goes on where its checkpoint was saved: rows of later steps,
  which are about to be measured again, are dropped.
  """

  def __init__(self, workdir: pathlib.Path, step: int, write: bool = True):
    """Opens the log of a run.

    Args:
      workdir: of the run.
      step: from which the run goes on; -1 for a new one, which has measured
        nothing yet.
      write: whether this process is the one that writes.
    """
    self._file = workdir / 'metrics.csv'
    self._rows = [row for row in read_rows(self._file)
                  if int(row['step']) <= step]
    self._write = write
    if write:
      self._rewrite()
      self._events = SummaryWriter(str(workdir), purge_step=step + 1)

  def append(self, step: int, epoch: float, **metrics: float) -> None:
    """Adds a row; `metrics` are some of `METRICS`."""
    row = {'step': str(step), 'epoch': f'{epoch:.6g}',
           **{name: repr(float(value)) for name, value in metrics.items()}}
    self._rows.append(row)
    if not self._write:
      return
    with self._file.open('a', newline='') as f:
      csv.DictWriter(f, FIELDS).writerow(row)
      f.flush()
      os.fsync(f.fileno())
    for name, value in metrics.items():
      self._events.add_scalar(name, value, step)
    self._events.flush()

  def evaluations(self) -> dict[int, tuple[float, float]]:
    """Loss and accuracy on the validation split by step."""
    return evaluations(self._rows)

  def best_step(self, steps: Collection[int] | None = None) -> int | None:
    """See the function of this name."""
    return best_step(self._rows, steps)

  def close(self) -> None:
    """Ends the event file."""
    if self._write:
      self._events.close()

  def _rewrite(self) -> None:
    partial = self._file.with_suffix('.csv.partial')
    with partial.open('w', newline='') as f:
      writer = csv.DictWriter(f, FIELDS)
      writer.writeheader()
      writer.writerows(self._rows)
      f.flush()
      os.fsync(f.fileno())
    partial.replace(self._file)


def read_rows(file: pathlib.Path) -> list[dict[str, str]]:
  """The whole rows of a `metrics.csv`; of a killed run the last may be cut."""
  if not file.exists():
    return []
  whole = file.read_text().rpartition('\n')[0]
  return [row for row in csv.DictReader(whole.splitlines())
          if row['step'].isdecimal() and None not in row.values()]


def evaluations(rows: list[dict[str, str]]) -> dict[int, tuple[float, float]]:
  """Loss and accuracy on the validation split by step."""
  return {int(row['step']): (float(row['eval_loss']),
                             float(row['eval_accuracy']))
          for row in rows if row.get('eval_accuracy')}


def best_step(rows: list[dict[str, str]],
              steps: Collection[int] | None = None) -> int | None:
  """The trained step of the highest accuracy; of equals, the lowest loss.

  Args:
    rows: of `metrics.csv`.
    steps: those to choose from, if not from all.
  """
  trained = {step: figures for step, figures in evaluations(rows).items()
             if step > 0 and (steps is None or step in steps)}
  return max(trained, key=lambda step: (trained[step][1], -trained[step][0],
                                        step), default=None)
