"""Keeps from the person what Orbax prints beside the exceptions it raises."""

import logging
import pathlib
import sys

from absl import logging as absl_logging


def silence() -> None:
  """Leaves the exceptions themselves, of which we tell, to come as they do.

  When a save fails, Orbax logs the traceback in each of its threads, and those
  of its tasks that end later find their event loop closed, which asyncio and
  Python print as well.
  """
  absl_logging.set_verbosity(absl_logging.ERROR)  # Else every file it touches.
  absl_logging.get_absl_logger().addFilter(
      lambda record: 'orbax' not in pathlib.Path(record.pathname).parts)
  logging.getLogger('asyncio').addFilter(
      lambda record: 'exception was never retrieved' not in record.getMessage())
  show = sys.unraisablehook

  def show_others(unraisable) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      show(unraisable)

  sys.unraisablehook = show_others
