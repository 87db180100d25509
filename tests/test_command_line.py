"""What a person is told of an error, and what is a fault of ours."""

import errno
import os
import signal

import pytest

from catsdogs import command_line, path_pattern
from catsdogs.errors import UserError


def os_error(number: int, path: str | None = None) -> OSError:
  return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize('error, words', [
    (UserError('so it is'), 'so it is'),
    (os_error(errno.ENOSPC), 'the disk: No space left on device; make room'),
    (os_error(errno.EACCES, 'x/cat.jpg'),
     'x/cat.jpg: Permission denied; mend its permissions'),
    (os_error(errno.ENAMETOOLONG, 'aaa'), 'aaa: File name too long'),
    (MemoryError(), 'no memory left; lower config.train.batch_size'),
    (RuntimeError('RESOURCE_EXHAUSTED: 5 GiB'),
     'no memory left (RESOURCE_EXHAUSTED: 5 GiB); lower')])
def test_what_the_machine_refuses_is_told_with_its_mend(error, words):
  assert command_line.refusal(error).startswith(words)


@pytest.mark.parametrize('error', [
    ValueError('x'), os_error(errno.EPERM), os_error(errno.ENOENT, 'x')])
def test_what_is_a_fault_of_ours_keeps_its_traceback(error):
  assert command_line.refusal(error) is None


def test_an_alarm_of_others_is_put_back():
  rang = []
  before = signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
  try:
    signal.setitimer(signal.ITIMER_REAL, 100)
    with path_pattern.within_bounds('config.model.freeze'):
      pass
    assert 0 < signal.setitimer(signal.ITIMER_REAL, 0)[0] <= 100
    signal.raise_signal(signal.SIGALRM)
  finally:
    signal.signal(signal.SIGALRM, before)
  assert rang
