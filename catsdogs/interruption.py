"""SIGTERM and SIGINT, asked for where a run can be left without loss."""

import signal


class Interrupted(Exception):
  """A signal was asked for, and the run is in a state to be left."""

  def __init__(self, signum: int):
    super().__init__(signal.Signals(signum).name)
    self.exit_status = 128 + signum


class Interruption:
  """While entered, remembers the signal instead of dying from it.

  The loop calls `check` between steps and between batches of an evaluation.
  A second SIGINT is obeyed at once.
  """

  def __init__(self):
    self._signum: int | None = None
    self._told = False
    self._before: dict[int, object] = {}

  def __enter__(self) -> 'Interruption':
    for signum in (signal.SIGTERM, signal.SIGINT):
      self._before[signum] = signal.signal(signum, self._remember)
    return self

  def __exit__(self, kind, *_) -> None:
    for signum, handler in self._before.items():
      signal.signal(signum, handler)
    # A signal to all processes may have broken one of ours. But what fails
    # after the signal was told, such as the last save, is to be told too.
    if kind is not None and not self._told:
      self.check()

  def _remember(self, signum: int, frame) -> None:
    del frame
    if self._signum == signal.SIGINT == signum:
      raise KeyboardInterrupt
    self._signum = signum

  def check(self) -> None:
    """Raises `Interrupted` if a signal came."""
    if self._signum is not None:
      self._told = True
      raise Interrupted(self._signum)
