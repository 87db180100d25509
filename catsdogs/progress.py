"""How far a run is: its timetable, and what it has summed up so far."""

import dataclasses
from fractions import Fraction
import math
import time
from typing import Any

import jax
import ml_collections

from catsdogs.errors import UserError

# Steps are counted in an int32, with which the schedule computes.
_MOST_STEPS = 2**30


@dataclasses.dataclass
class Totals:
  """Sums over some steps of training; divided when they are told."""

  loss: float = 0.0
  correct: float = 0.0
  count: float = 0.0
  grad_norm: float = 0.0
  steps: int = 0

  def add(self, metrics: dict[str, float]) -> None:
    """Adds what one step measured."""
    self.loss += float(metrics['loss'])
    self.correct += float(metrics['correct'])
    self.count += float(metrics['count'])
    self.grad_norm += float(metrics['grad_norm'])
    self.steps += 1

  def means(self) -> dict[str, float]:
    """Means over the photos, and of the gradient's norm over the steps."""
    count, steps = max(1.0, self.count), max(1, self.steps)
    return {'train_loss': self.loss / count,
            'train_accuracy': self.correct / count,
            'grad_norm': self.grad_norm / steps}


@dataclasses.dataclass(frozen=True)
class Epoch:
  """One pass over the photos: its number from 1, and where it lies."""

  number: int
  first_step: int
  last_step: int


@dataclasses.dataclass(frozen=True)
class Timetable:
  """At which steps what is done; an epoch has at least one step.

  Fractions, since floats lose a step now and then in long runs.
  """

  steps_per_epoch: Fraction
  total_steps: int
  total_epochs: float
  eval_every_steps: Fraction
  evaluate_before: bool

  @classmethod
  def of(cls, config: ml_collections.ConfigDict, count: int) -> 'Timetable':
    """The timetable of the config's `train` part for so many photos.

    Raises:
      UserError: it has more steps than can be counted.
    """
    per_epoch = max(Fraction(1), Fraction(count, config.batch_size))
    total = max(1, math.ceil(_exact(config.epochs) * per_epoch))
    if total > _MOST_STEPS:
      raise UserError(
          f'config.train.epochs: {config.epochs:g} epochs of {count} photos '
          f'are {float(total):g} steps, more than {_MOST_STEPS}; lower it, or '
          'raise config.train.batch_size')
    every = max(Fraction(1), _exact(config.eval_every_epochs) * per_epoch)
    return cls(per_epoch, total, config.epochs, every, config.evaluate_before)

  def evaluates_at(self, step: int) -> bool:
    """Whether there is an evaluation after so many steps."""
    if step in (0, self.total_steps):
      return step > 0 or self.evaluate_before
    times = step // self.eval_every_steps
    return times > 0 and math.ceil(times * self.eval_every_steps) == step

  def most_saves(self, checkpoint_every_steps: int) -> int:
    """How many checkpoints there are at most; an interruption adds one."""
    return (self.total_steps // checkpoint_every_steps
            + math.ceil(self.total_epochs)
            + math.ceil(self.total_steps / self.eval_every_steps) + 2)

  def epochs(self, step: int) -> float:
    """How many passes over the photos so many steps are."""
    return min(float(step / self.steps_per_epoch), self.total_epochs)

  def epoch_at(self, step: int) -> Epoch:
    """The epoch that the next step belongs to, after so many steps."""
    number = step // self.steps_per_epoch + 1
    return Epoch(number, self._end(number - 1), self._end(number))

  def _end(self, epoch: int) -> int:
    return min(self.total_steps, math.ceil(epoch * self.steps_per_epoch))


def _exact(epochs: float) -> Fraction:
  """The fraction that was meant: a sixth, not what is next to it."""
  return Fraction(epochs).limit_denominator(10**6)


class Clock:
  """Times a run over its interruptions, and its speed without the pauses."""

  def __init__(self, started: float):
    """Starts the clock.

    Args:
      started: when the process did, by `time.monotonic`.
    """
    self._started = started
    self._seconds_before = 0.0
    self._images = 0
    self._image_seconds = 0.0
    self._lap_start = 0.0
    self._lap_images = 0
    self.seconds_to_first_step: float | None = None

  def seconds_total(self) -> float:
    """Since the run began; the time between its processes does not count."""
    return self._seconds_before + time.monotonic() - self._started

  def images_per_second(self) -> float | None:
    """Of the training steps alone; None before there is anything to tell."""
    return (self._images / self._image_seconds if self._image_seconds
            else None)

  def start_lap(self) -> None:
    """Goes on after a pause, such as an evaluation."""
    self._lap_start, self._lap_images = time.monotonic(), 0

  def count(self, images: int, outputs: Any) -> None:
    """Counts the photos of a step; the first one, which compiles, does not.

    Args:
      images: photos of the step.
      outputs: what the first step computes is waited for.
    """
    if self.seconds_to_first_step is None:
      jax.block_until_ready(outputs)
      self.seconds_to_first_step = time.monotonic() - self._started
      self.start_lap()
    else:
      self._lap_images += images

  def lap(self) -> dict[str, float]:
    """Ends a lap and starts the next; its speed, where it had any photos."""
    seconds, images = time.monotonic() - self._lap_start, self._lap_images
    self.start_lap()
    if not images or not seconds:
      return {}
    self._images += images
    self._image_seconds += seconds
    return {'images_per_sec': images / seconds}

  def to_dict(self) -> dict[str, float]:
    """What a later process goes on from."""
    return {'seconds': self.seconds_total(), 'images': self._images,
            'image_seconds': self._image_seconds}

  def go_on(self, seconds: float, images: int, image_seconds: float) -> None:
    """Goes on from what an earlier process saved."""
    self._seconds_before += seconds
    self._images += images
    self._image_seconds += image_seconds
