"""What a run says on the terminal; only process 0 speaks."""

import shutil
import sys
import textwrap
import time

import jax
import tqdm


def say(message: str) -> None:
  """Prints a line, in whatever characters stdout can take."""
  if jax.process_index() == 0:
    encoding = sys.stdout.encoding or 'utf-8'
    encoded = message.encode(encoding, 'backslashreplace')
    print(encoded.decode(encoding), flush=True)


def printable(name: str) -> str:
  """A file's name on one line, whatever bytes it has."""
  name = name.encode('utf-8', 'backslashreplace').decode()
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def box(message: str) -> None:
  """Prints, in a frame of 80 columns, what must not be missed."""
  edge = '+' + '-' * 78 + '+'
  lines = [f'| {line:76} |' for line in textwrap.wrap(message, 76)]
  say('\n'.join([edge, *lines, edge]))


class EpochProgress:
  """Progress through one epoch: a bar on a terminal, else plain lines."""

  def __init__(self, epoch: int, epochs: float, first_step: int,
               step: int, last_step: int):
    """Starts an epoch.

    Args:
      epoch: counted from 1.
      epochs: of the whole run.
      first_step: steps taken before the epoch.
      step: steps taken so far; more than `first_step` after an interruption.
      last_step: steps taken when the epoch ends.
    """
    self._title = f'Epoch {epoch}/{epochs:g}'
    self._step, self._first, self._last = step, first_step, last_step
    self._started = (time.monotonic(), step)
    self._bar = None
    if jax.process_index() == 0 and sys.stdout.isatty():
      size = shutil.get_terminal_size()  # 80 x 24 where a terminal hides it.
      self._bar = tqdm.tqdm(
          desc=self._title, total=last_step - first_step,
          initial=step - first_step, unit='step', file=sys.stdout,
          ncols=size.columns, nrows=size.lines,
          bar_format='{desc} {bar} {n_fmt}/{total_fmt}{postfix} '
                     '[{elapsed}<{remaining}]')

  def advance(self) -> None:
    """Counts a step."""
    self._step += 1
    if self._bar is not None:
      self._bar.update()

  def report(self, loss: float, accuracy: float,
             images_per_second: float | None) -> None:
    """Shows the latest figures; the speed where it is known."""
    figures = f'loss {loss:.4f}, accuracy {accuracy:.4f}'
    if images_per_second is not None:
      figures += f', {images_per_second:.0f} images/s'
    if self._bar is not None:
      self._bar.set_postfix_str(figures)
      return
    since, first = self._started
    seconds = time.monotonic() - since
    left = seconds / max(1, self._step - first) * (self._last - self._step)
    say(f'{self._title}, step {self._step - self._first}/'
        f'{self._last - self._first}: {figures}, {left:.0f} s left')

  def close(self) -> None:
    """Ends the line of the bar."""
    if self._bar is not None:
      self._bar.close()
