"""A person's regular expression, searched for in the paths of parameters."""

import contextlib
import signal
import threading
from typing import Iterator

from catsdogs.errors import UserError

# Python's expressions can take years: (a|a)+b in the path of a parameter.
_SECONDS = 5.0


@contextlib.contextmanager
def within_bounds(field: str) -> Iterator[None]:
  """Raises `UserError` where what is searched for inside takes too long.

  Only a signal ends a search: it holds Python's lock.

  Args:
    field: of the config, that has the expression.
  """
  def end(*_):
    raise UserError(f'{field}: the regular expression takes more than '
                    f'{_SECONDS:g} s to search for in the paths of the '
                    'parameters; write it with fewer repeats')

  if threading.current_thread() is not threading.main_thread():
    yield  # Which alone gets signals.
    return
  handler = signal.signal(signal.SIGALRM, end)
  timer = signal.setitimer(signal.ITIMER_REAL, _SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, *timer)
    signal.signal(signal.SIGALRM, handler)
