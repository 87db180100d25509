"""SIGTERM and SIGINT end a run where it can be left."""

import signal

import pytest

from catsdogs.interruption import Interrupted, Interruption


@pytest.mark.parametrize('signum,status', [
    (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_remembered_until_it_is_asked_for(signum, status):
  with Interruption() as interruption:
    interruption.check()
    signal.raise_signal(signum)
    with pytest.raises(Interrupted, match=signum.name) as interrupted:
      interruption.check()
  assert interrupted.value.exit_status == status


def test_a_second_sigint_is_obeyed_at_once():
  with Interruption():
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)


def test_the_signals_are_handled_as_before_afterwards():
  before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  with pytest.raises(ValueError), Interruption():
    raise ValueError
  assert before == [signal.getsignal(s)
                    for s in (signal.SIGTERM, signal.SIGINT)]
