"""Memory in huge pages, where the system leaves the choice to the program."""

import os
import pathlib
import sys

_SETTING = 'glibc.malloc.hugetlb'
_CHOICE = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def environment() -> dict[str, str]:
  """What to add to a process's environment; nothing where it would not help.

  A training step on a CPU takes its memory anew each time, and gets it page by
  page: of 4 KiB, that is a sixth of the step. glibc reads the setting when a
  process begins, and asks for pages of 2 MiB (glibc 2.35 and later; others
  ignore it).
  """
  settings = os.environ.get('GLIBC_TUNABLES', '')
  if _SETTING in settings or not sys.platform.startswith('linux'):
    return {}
  try:
    left_to_the_program = '[madvise]' in _CHOICE.read_text()
  except OSError:
    return {}
  if not left_to_the_program:
    return {}
  return {'GLIBC_TUNABLES': ':'.join(filter(None, [settings, _SETTING + '=1']))}


def restart_with() -> None:
  """Starts this program again, in the same process, if that would help."""
  added = environment()
  if added:
    os.environ.update(added)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
