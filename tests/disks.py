"""Disks that are small, for the tests; only root may mount them."""

from collections.abc import Iterator
import contextlib
import pathlib
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, options: str) -> Iterator[pathlib.Path]:
  """A file system of its own; the test is skipped where none can be mounted.

  Args:
    folder: where it is mounted.
    options: of tmpfs, such as `size=16m`.
  """
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(folder)]
  try:
    mounted = subprocess.run(command, capture_output=True).returncode == 0
  except OSError:
    mounted = False
  if not mounted:
    pytest.skip('only root may mount a small disk')
  try:
    yield folder
  finally:
    subprocess.run(['umount', '--lazy', str(folder)], check=True)


def remount(folder: pathlib.Path, options: str) -> None:
  """Changes the options of a disk that is in use."""
  subprocess.run(['mount', '-o', f'remount,{options}', str(folder)],
                 check=True)
