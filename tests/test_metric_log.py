"""`metrics.csv` and TensorBoard events, over interruptions."""

import csv

from hypothesis import given, settings, strategies as st
import pytest

from catsdogs import metric_log
from catsdogs.metric_log import FIELDS, MetricLog, best_step, read_rows


def write_log(workdir, *rows, step=0):
  log = MetricLog(workdir, step)
  for at, metrics in rows:
    log.append(at, at / 10, **metrics)
  log.close()
  return workdir / 'metrics.csv'


def evaluation(step, accuracy, loss=1.0):
  return {'step': str(step), 'eval_accuracy': repr(accuracy),
          'eval_loss': repr(loss)}


def test_each_row_holds_its_figures_and_leaves_the_others_empty(tmp_path):
  file = write_log(tmp_path, (10, {'train_loss': 0.5, 'learning_rate': 1e-3}),
                   (20, {'eval_loss': 0.25, 'eval_accuracy': 0.75}))
  with file.open(newline='') as f:
    rows = list(csv.DictReader(f))
  assert tuple(rows[0]) == FIELDS
  filled = [{k: float(v) for k, v in row.items() if v} for row in rows]
  assert filled == [
      {'step': 10, 'epoch': 1, 'train_loss': 0.5, 'learning_rate': 1e-3},
      {'step': 20, 'epoch': 2, 'eval_loss': 0.25, 'eval_accuracy': 0.75}]


def test_rows_are_on_the_disk_before_the_log_is_closed(tmp_path):
  log = MetricLog(tmp_path, 0)
  log.append(1, 0.1, train_loss=0.5)
  assert [row['step'] for row in read_rows(tmp_path / 'metrics.csv')] == ['1']
  log.close()


def test_every_figure_goes_to_tensorboard_too(tmp_path):
  write_log(tmp_path, (1, {'train_loss': 0.5}))
  events, = tmp_path.glob('events.out.tfevents.*')
  assert b'train_loss' in events.read_bytes()


def test_a_misspelt_metric_is_a_fault(tmp_path):
  with pytest.raises(ValueError, match='train_los'):
    write_log(tmp_path, (1, {'train_los': 0.5}))


@settings(deadline=None)
@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_figures_are_read_as_they_were_measured(tmp_path_factory, loss,
                                                accuracy):
  folder = tmp_path_factory.mktemp('log')
  # Without the event file, which opens a thread each time.
  row = {'step': '7', 'epoch': '1', 'eval_loss': repr(loss),
         'eval_accuracy': repr(accuracy)}
  with (folder / 'metrics.csv').open('w', newline='') as f:
    writer = csv.DictWriter(f, FIELDS)
    writer.writeheader()
    writer.writerow(row)
  rows = read_rows(folder / 'metrics.csv')
  assert metric_log.evaluations(rows) == {7: (loss, accuracy)}


def test_figures_survive_the_file_to_the_last_bit(tmp_path):
  value = 0.1 + 0.2
  write_log(tmp_path, (3, {'eval_loss': value, 'eval_accuracy': 1 / 3}))
  log = MetricLog(tmp_path, 3)
  assert log.evaluations() == {3: (value, 1 / 3)}
  log.close()


def test_a_resumed_run_drops_the_rows_of_later_steps(tmp_path):
  file = write_log(tmp_path, *((step, {'train_loss': 0.5})
                               for step in (10, 20, 30)))
  write_log(tmp_path, (25, {'train_loss': 0.25}), step=20)
  assert [row['step'] for row in read_rows(file)] == ['10', '20', '25']


def test_a_process_that_does_not_write_reads_but_touches_nothing(tmp_path):
  file = write_log(tmp_path, (10, {'eval_loss': 1, 'eval_accuracy': 0.5}),
                   (20, {'train_loss': 0.5}))
  before = file.read_bytes(), set(tmp_path.iterdir())
  log = MetricLog(tmp_path, 10, write=False)
  log.append(12, 1.2, eval_loss=0.5, eval_accuracy=0.75)
  log.close()
  assert log.best_step() == 12
  assert (file.read_bytes(), set(tmp_path.iterdir())) == before


def test_of_a_file_cut_anywhere_the_whole_rows_are_kept(tmp_path):
  file = write_log(tmp_path, *(
      (step, {'eval_loss': 0.123456789, 'eval_accuracy': step / 1000})
      for step in (10, 20, 30)))
  whole = file.read_bytes()
  rows = read_rows(file)
  for length in range(len(whole)):
    file.write_bytes(whole[:length])
    kept = read_rows(file)
    assert kept == rows[:len(kept)]
    # A cut between the two bytes of a line's end loses nothing.
    assert len(kept) == max(0, whole[:length].replace(
        b'\r\n', b'\n').replace(b'\r', b'\n').count(b'\n') - 1)


def test_a_run_goes_on_behind_a_cut_line(tmp_path):
  file = write_log(tmp_path, (10, {'train_loss': 0.5}),
                   (20, {'train_loss': 0.25}))
  file.write_bytes(file.read_bytes()[:-8])
  write_log(tmp_path, (20, {'train_loss': 0.125}), step=10)
  assert [row['train_loss'] for row in read_rows(file)] == ['0.5', '0.125']


def test_no_file_has_no_rows(tmp_path):
  assert read_rows(tmp_path / 'metrics.csv') == []


@pytest.mark.parametrize('rows,best', [
    ([], None),
    ([{'step': '5', 'train_loss': '0.1'}], None),
    ([evaluation(0, 0.9)], None),
    ([evaluation(0, 0.9), evaluation(5, 0.6)], 5),
    ([evaluation(5, 0.7), evaluation(10, 0.8), evaluation(15, 0.6)], 10),
    ([evaluation(5, 0.8, 0.3), evaluation(10, 0.8, 0.4)], 5),
    ([evaluation(5, 0.8, 0.4), evaluation(10, 0.8, 0.3)], 10),
    ([evaluation(5, 0.8, 0.3), evaluation(10, 0.8, 0.3)], 10),
    ([evaluation(9, 0.8, 0.3), evaluation(10, 0.8, 0.3)], 10),
    ([evaluation(5, 0.0, 9.0)], 5)])
def test_the_best_trained_step_is_by_accuracy_then_loss_then_the_later(rows,
                                                                       best):
  assert best_step(rows) == best
