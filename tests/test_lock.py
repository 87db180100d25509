"""A workdir is one process's at a time, and nobody's when that is gone."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import jax
import pytest

from catsdogs import lock
from catsdogs.errors import UserError
from runs import ROOT


def test_a_second_is_refused_and_told_by_whom(tmp_path):
  with lock.hold(tmp_path), pytest.raises(UserError) as refused:
    with lock.hold(tmp_path):
      pytest.fail('two have it')
  message = str(refused.value)
  assert message.startswith(f'--workdir: {tmp_path} is in use by process '
                            f'{os.getpid()} on {socket.gethostname()} since 2')
  assert message.endswith('wait for it, stop it, or choose another --workdir')


def test_afterwards_it_is_anybodys(tmp_path):
  for _ in range(2):
    with lock.hold(tmp_path / 'new'):
      pass
  with pytest.raises(KeyError), lock.hold(tmp_path / 'new'):
    raise KeyError
  with lock.hold(tmp_path / 'new'):
    pass


@pytest.mark.parametrize('content', [
    '', 'no JSON', '{"pid": 1}', '[]', '\udcff', json.dumps(
        {'pid': 1, 'host': 'elsewhere', 'began': 'long ago'})])
def test_a_file_that_nobody_locks_says_nothing(tmp_path, content):
  (tmp_path / lock.FILE).write_text(content, errors='surrogateescape')
  with lock.hold(tmp_path):
    name = json.loads((tmp_path / lock.FILE).read_text())
  assert name['pid'] == os.getpid()


@pytest.mark.parametrize('content, who', [
    ('', 'another process'),
    # What a dead process left; the one that has the lock is about to write.
    (json.dumps({'pid': 2**22 + 1, 'host': socket.gethostname(),
                 'began': 'long ago'}), f'process {2**22 + 1}'),
    (json.dumps({'pid': 7, 'host': 'elsewhere', 'began': 'noon'}),
     'process 7 on elsewhere since noon')])
def test_whoever_has_the_lock_is_told_as_far_as_known(tmp_path, monkeypatch,
                                                      content, who):
  monkeypatch.setattr(lock, '_LOOK_SECONDS', 0)
  (tmp_path / lock.FILE).write_text(content)
  with (tmp_path / lock.FILE).open() as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=f'is in use by {who}'):
      lock.hold(tmp_path).__enter__()


def test_one_process_of_a_run_holds_it_for_all(tmp_path, monkeypatch):
  with lock.hold(tmp_path):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    with lock.hold(tmp_path):
      pass


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_told_once(tmp_path, monkeypatch, capsys,
                                           number):
  def flock(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, 'flock', flock)
  with lock.hold(tmp_path):
    pass
  assert capsys.readouterr().out.count('without locks') == 1


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='--workdir: .* cannot be written'):
    lock.hold(tmp_path / 'file').__enter__()


# Forks, which are quick. What each says, it says in one write; a closed pipe
# lets all of them start at once.
RACES = '''
import os, pathlib, signal, sys
from catsdogs import lock
from catsdogs.errors import UserError

def start(workdir, go):
  """A process that takes the lock when `go` is closed, and then waits."""
  says, tell = os.pipe()
  pid = os.fork()
  if pid:
    os.close(tell)
    return pid, says
  os.close(go[1])
  os.read(go[0], 1)
  try:
    with lock.hold(workdir):
      os.write(tell, b'won')
      signal.pause()
  except UserError as e:
    os.write(tell, str(e).encode())
  os._exit(0)

rounds, racers, root = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
workdir = pathlib.Path(root) / 'new'
for number in range(rounds):
  go = os.pipe()
  racing = [start(workdir, go) for _ in range(racers)]
  os.close(go[0])
  os.close(go[1])
  said = {pid: os.read(says, 1000).decode() for pid, says in racing}
  for pid, says in racing:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(says)
  winners = [pid for pid, text in said.items() if text == 'won']
  assert len(winners) == 1, said
  assert all(f'in use by process {winners[0]} on ' in text
             for text in said.values() if text != 'won'), said
print(rounds, 'rounds')
'''


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
      [sys.executable, '-c', code, *arguments], capture_output=True, text=True,
      check=False, timeout=300, cwd=ROOT,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu',
           'PYTHONWARNINGS': 'ignore',  # Of forks, which is what we want.
           'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, sys.path)])})


@pytest.mark.parametrize('rounds', [
    30, pytest.param(1000, marks=pytest.mark.slow)])
def test_of_those_that_start_at_once_one_wins_and_a_dead_one_s_lock_is_taken(
    tmp_path, rounds):
  # Each winner is killed, and leaves its file; the next round begins with it.
  done = python(RACES, str(rounds), '4', str(tmp_path))
  assert done.stdout == f'{rounds} rounds\n', done.stderr


CHILD = '''
import os, pathlib, signal, sys
from catsdogs import lock
says, tell = os.pipe()
with lock.hold(pathlib.Path(sys.argv[1])):
  child = os.fork()
  if not child:
    os.write(tell, b'begun')
    signal.pause()
  os.read(says, 5)
  print(child, flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
'''


def test_a_child_does_not_keep_the_lock_of_a_process_that_is_gone(tmp_path):
  process = subprocess.Popen(
      [sys.executable, '-W', 'ignore', '-c', CHILD, str(tmp_path)], cwd=ROOT,
      stdout=subprocess.PIPE, text=True)
  child = int(process.stdout.readline())
  process.wait(60)
  try:
    with lock.hold(tmp_path):
      pass
  finally:
    os.kill(child, 9)
    process.stdout.close()
