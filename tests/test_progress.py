"""The timetable of a run, its totals, and its clock."""

import dataclasses
import json
import math

from hypothesis import example, given, settings, strategies as st
import ml_collections
import numpy as np
import pytest

from catsdogs import progress
from catsdogs.errors import UserError
from catsdogs.progress import Clock, Timetable, Totals


def timetable(count, batch_size=32, epochs=2.0, eval_every_epochs=1.0,
              evaluate_before=True) -> Timetable:
  return Timetable.of(ml_collections.ConfigDict({
      'batch_size': batch_size, 'epochs': epochs,
      'eval_every_epochs': eval_every_epochs,
      'evaluate_before': evaluate_before}), count)


def eval_steps(table: Timetable) -> set[int]:
  return {step for step in range(table.total_steps + 1)
          if table.evaluates_at(step)}


EPOCHS = st.one_of(
    st.integers(1, 30).map(float),
    st.builds(lambda a, b: a / b, st.integers(1, 60), st.integers(1, 60)),
    st.floats(1e-3, 30))


@settings(deadline=None)
@given(st.integers(1, 10**7), st.integers(1, 4096), EPOCHS)
@example(5816109, 9, 51.0)  # In floats, the end of an epoch is a step off.
def test_the_epochs_cover_all_steps_without_a_gap(count, batch_size, epochs):
  table = timetable(count, batch_size, epochs)
  step, number = 0, 0
  while step < table.total_steps:
    epoch = table.epoch_at(step)
    number += 1
    assert (epoch.number, epoch.first_step) == (number, step)
    assert epoch.last_step > step
    for inside in {step, (step + epoch.last_step) // 2, epoch.last_step - 1}:
      assert table.epoch_at(inside) == epoch
    step = epoch.last_step
  assert step == table.total_steps
  # An end is rounded up, and may be that of the run already.
  assert epochs - 1 - 1e-6 <= number <= math.ceil(epochs)


@settings(deadline=None)
@given(st.integers(1, 10**7), st.integers(1, 4096), EPOCHS)
def test_a_run_sees_as_many_photos_as_its_epochs_have(count, batch_size,
                                                      epochs):
  total = timetable(count, batch_size, epochs).total_steps
  wanted = epochs * max(count, batch_size)
  tolerance = 1e-6 * max(count, batch_size)  # Of a fraction of an epoch.
  assert total >= 1
  assert total * batch_size >= wanted - tolerance
  assert (total - 1) * batch_size < wanted + tolerance


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 512), EPOCHS, EPOCHS,
       st.booleans())
def test_the_last_step_is_evaluated_and_the_first_where_asked_for(
    count, batch_size, epochs, every, before):
  table = timetable(count, batch_size, epochs, every, before)
  found = eval_steps(table)
  assert table.total_steps in found
  assert (0 in found) == before
  steps = sorted(found - {0})
  # As many evaluations as fit, but no more than one a step.
  apart = max(1.0, every * max(1.0, count / batch_size))
  assert abs(len(steps) - math.ceil(table.total_steps / apart)) <= 1
  gaps = np.diff([0, *steps])
  assert gaps.max() <= math.ceil(apart + 1e-6)


@pytest.mark.parametrize('count,batch_size,epochs,every,steps', [
    (100, 10, 2.0, 1.0, {10, 20}),
    (100, 10, 2.0, 0.5, {5, 10, 15, 20}),
    (100, 10, 1.5, 1.0, {10, 15}),
    (100, 10, 0.25, 1.0, {3}),
    (100, 10, 0.1, 1.0, {1}),
    (100, 10, 2.0, 5.0, {20}),
    (100, 10, 2.0, 0.7, {7, 14, 20}),
    (60, 10, 5 / 6, 1 / 6, {1, 2, 3, 4, 5}),
    (105, 10, 2.0, 1.0, {11, 21}),
    (3, 32, 2.0, 1.0, {1, 2}),
    (3, 32, 3.0, 0.5, {1, 2, 3}),
    (1, 1, 1e-9, 1e-12, {1}),
    (7178, 16, 2.0, 1.0, {449, 898})])
def test_evaluations_lie_where_the_config_asks_for_them(
    count, batch_size, epochs, every, steps):
  table = timetable(count, batch_size, epochs, every)
  assert eval_steps(table) == steps | {0}
  assert table.most_saves(2**31 - 1) >= len(steps)
  assert table.most_saves(1) > table.total_steps
  assert table.total_steps == max(steps)


def test_evaluating_more_often_than_each_step_evaluates_each_step():
  table = timetable(320, eval_every_epochs=1e-12)
  assert eval_steps(table) == set(range(21))


@pytest.mark.parametrize('epochs', [1e8, 1e30])
def test_more_steps_than_can_be_counted_are_refused(epochs):
  with pytest.raises(UserError, match='config.train.epochs: .* steps'):
    timetable(1000, epochs=epochs)


def test_a_timetable_of_a_billion_steps_is_made_at_once():
  table = timetable(32, epochs=2.0**30, eval_every_epochs=1e-9)
  assert table.total_steps == 2**30 and table.evaluates_at(2**30 - 1)


def test_fewer_photos_than_a_batch_make_one_step_an_epoch():
  table = timetable(3, 32, epochs=4.0)
  assert table.total_steps == 4
  assert [table.epoch_at(step).number for step in range(4)] == [1, 2, 3, 4]


def test_epochs_of_a_step_are_passes_and_end_with_the_run_s():
  table = timetable(100, 32, epochs=2.0)
  assert table.epochs(0) == 0
  assert table.epochs(2) == pytest.approx(64 / 100)
  assert table.epochs(table.total_steps) == 2.0


METRIC = st.floats(0, 1e6, width=32)


@settings(deadline=None)
@given(st.lists(st.tuples(METRIC, METRIC, METRIC, METRIC), max_size=5))
def test_totals_survive_json_exactly(steps):
  totals = Totals()
  for values in steps:
    totals.add(dict(zip(('loss', 'correct', 'count', 'grad_norm'),
                        map(np.float32, values))))
  assert Totals(**json.loads(json.dumps(dataclasses.asdict(totals)))) == totals


def test_means_are_over_photos_and_the_gradient_s_over_steps():
  totals = Totals()
  totals.add({'loss': 6.0, 'correct': 1, 'count': 3, 'grad_norm': 1.0})
  totals.add({'loss': 2.0, 'correct': 1, 'count': 1, 'grad_norm': 2.0})
  assert totals.means() == {
      'train_loss': 2.0, 'train_accuracy': 0.5, 'grad_norm': 1.5}
  assert totals.steps == 2


def test_nothing_added_up_divides_by_nothing():
  assert set(Totals().means().values()) == {0.0}


class FakeTime:
  """Stands in for the `time` module."""

  def __init__(self):
    self.now = 1000.0

  def monotonic(self) -> float:
    return self.now


@pytest.fixture
def fake_time(monkeypatch) -> FakeTime:
  fake = FakeTime()
  monkeypatch.setattr(progress, 'time', fake)
  return fake


def test_the_first_step_is_timed_from_the_start_and_counts_for_no_speed(
    fake_time):
  clock = Clock(started=990.0)
  assert clock.seconds_to_first_step is None
  assert clock.images_per_second() is None
  fake_time.now += 20
  clock.count(32, np.zeros(3))
  assert clock.seconds_to_first_step == 30
  assert clock.lap() == {} and clock.images_per_second() is None


def test_the_speed_leaves_the_pauses_out(fake_time):
  clock = Clock(fake_time.now)
  clock.count(32, None)
  for _ in range(2):
    fake_time.now += 1
    clock.count(32, None)
  assert clock.lap() == {'images_per_sec': 32}
  fake_time.now += 100  # An evaluation.
  clock.start_lap()
  fake_time.now += 2
  clock.count(32, None)
  assert clock.lap() == {'images_per_sec': 16}
  assert clock.images_per_second() == 96 / 4
  assert clock.seconds_total() == 104


def test_a_clock_that_has_not_moved_tells_no_speed(fake_time):
  clock = Clock(fake_time.now)
  clock.count(32, None)
  clock.count(32, None)
  assert clock.lap() == {} and clock.images_per_second() is None


def test_a_later_process_goes_on_from_what_the_earlier_one_saved(fake_time):
  first = Clock(fake_time.now)
  first.count(32, None)
  fake_time.now += 2
  first.count(32, None)
  first.lap()
  saved = json.loads(json.dumps(first.to_dict()))
  fake_time.now += 10_000  # Nobody runs meanwhile.
  second = Clock(fake_time.now)
  second.go_on(**saved)
  fake_time.now += 3
  assert second.seconds_total() == 5
  assert second.images_per_second() == 16
  second.count(32, None)
  assert second.seconds_to_first_step == 3
