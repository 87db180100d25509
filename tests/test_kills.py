"""A run that is killed again and again ends as one that nobody disturbed."""

import shutil
import signal

import pytest

from benchmarks import kills


@pytest.mark.parametrize('signum, count', [
    (signal.SIGKILL, 2),
    pytest.param(signal.SIGKILL, 30, marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, 30, marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, 30, marks=pytest.mark.slow)])
def test_nothing_is_lost(tmp_path, signum, count):
  told = kills.kill_again_and_again(signum, count, epochs=40 + 6 * count,
                                    seed=5, folder=tmp_path)
  print(told)  # Seen with `pytest -rP`.
  assert not told['lost']
  assert sum(told['phases'].values()) == told['tried'] == count
  assert told['resumed']
  if signum != signal.SIGKILL:
    assert told['seconds_to_exit'] < 60  # Not of a speed, but of a hang.

  # What was compared would have been found to differ.
  alone, killed = tmp_path / 'alone', tmp_path / 'killed'
  first, *_, last = sorted(int(path.name) for path in (
      killed / 'checkpoints').iterdir() if path.name.isdecimal())
  checkpoints = killed / 'checkpoints'
  shutil.rmtree(checkpoints / str(last))
  shutil.copytree(checkpoints / str(first), checkpoints / str(last))
  metrics = (killed / 'metrics.csv').read_text().splitlines(keepends=True)
  (killed / 'metrics.csv').write_text(''.join(metrics + metrics[-1:]))
  assert kills.differences(alone, killed) == [
      f'the state of step {last}', 'metrics.csv']
