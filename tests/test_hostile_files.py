"""Whatever is in a file of weights, reading it ends soon, small and quietly."""

import collections
import json
import pathlib
import pickle
import random
import select
import subprocess
import sys
import time
import zipfile

import h5py
import msgpack
import numpy as np
import pytest

from mutation import mutated
from weight_files import (call, few_tensors, Opcodes, tensor,
                          write_deflated_npz, write_hdf5, write_hdf5_bomb,
                          write_legacy, write_npz_bomb, write_zip, WRITERS)

ROOT = pathlib.Path(__file__).parent.parent
MORE_BYTES = 2**30
# Of a file, on a machine that does other things meanwhile.
SECONDS = 10.0


class Reader:
  """A process that reads files under a limit of memory."""

  def __init__(self, more_bytes: int = MORE_BYTES):
    self.more_bytes = more_bytes
    self.process = self._start()

  def _start(self) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, 'tests/reading_worker.py', str(self.more_bytes)],
        cwd=ROOT, env={'PYTHONPATH': str(ROOT), 'PATH': ''},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

  def read(self, path: pathlib.Path) -> dict:
    """Its answer; `died` where there is none."""
    self.process.stdin.write(f'{path}\n')
    self.process.stdin.flush()
    if select.select([self.process.stdout], [], [], SECONDS)[0]:
      if line := self.process.stdout.readline():
        return json.loads(line)
    self.close()
    status = self.process.returncode
    self.process = self._start()
    return {'died': status}

  def close(self) -> None:
    self.process.kill()
    self.process.communicate()


@pytest.fixture(name='reader')
def fixture_reader():
  reader = Reader()
  yield reader
  reader.close()


def mostly_of_structure(data: bytearray, dice: random.Random) -> int:
  """A place; the numbers of tensors are most of a file, and little fun."""
  place = dice.randrange(len(data))
  if dice.random() < 0.7:
    near = [i for i in range(max(0, place - 64), min(place + 64, len(data)))
            if data[i] in (0, 1, 2, 3, 4, 8) or 32 <= data[i] < 127]
    place = dice.choice(near or [place])
  return place


def hostile(folder: pathlib.Path, ran: pathlib.Path) -> list[bytes]:
  """Files that are made to harm; `ran` would be made by a command of theirs."""
  path = folder / 'hostile'
  command = f'touch {ran}'
  contents = []

  for function in ('os.system', 'posix.system', 'builtins.eval'):
    evil = {'a': call(function, command)}
    contents.append(write_zip(path, evil).read_bytes())
    contents.append(write_legacy(path, evil).read_bytes())

  class Evil:

    def __reduce__(self):
      import os  # pylint: disable=g-import-not-at-top
      return os.system, (command,)

  contents.extend(pickle.dumps(Evil(), protocol) for protocol in range(6))
  for compressed in (False, True):
    with open(path, 'wb') as file:
      (np.savez_compressed if compressed else np.savez)(
          file, a=np.array([Evil()], dtype=object))
    contents.append(path.read_bytes())

  for content in (Opcodes(b'}r\xff\xff\xff\x3f'), Opcodes(b'X\xff\xff\xff\xff'),
                  {'a': tensor(shape=(2**40,), strides=(0,))},
                  Opcodes(b'](' + b'}' * 2_000_000 + b'e')):
    contents.append(write_zip(path, content, {'0': bytes(16)}).read_bytes())
  contents.append(write_zip(path, {'a': tensor(numel=2**28, shape=(2**28,))},
                            {'0': bytes(2**20)},
                            compression=zipfile.ZIP_DEFLATED).read_bytes())

  # Two gibibytes of zeros each.
  start = (b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, "
           b"'shape': (1000000,), }\n")
  contents.extend(write_npz_bomb(path, start, 2048, told).read_bytes()
                  for told in (4_000_080, 2**31))
  contents.extend(write_hdf5_bomb(path, count, 2048).read_bytes()
                  for count in (1000, 2**29, 2**40))
  write_hdf5(path, {'a': np.ones(4, 'f4')})
  with h5py.File(path, 'a') as file:
    file['b'] = h5py.ExternalLink('/dev/tty', '/')
    file['c'] = h5py.SoftLink('/c')
  contents.append(path.read_bytes())

  contents.append(b'\x81\xa1a' + b'\xdd\x00\x0f\xff\xff' * 200_000)
  contents.append(b'\x81\xa1a' * 300_000)
  contents.append(b'\x81\xa1a' + msgpack.packb(msgpack.ExtType(
      1, msgpack.packb(((2**40,), 'float32', b'')))))
  for size in (2**20, 2**40):
    contents.append(size.to_bytes(8, 'little') + b'{' * 2**20)
  header = json.dumps({'a': {'dtype': 'F32', 'shape': [2**40],
                             'data_offsets': [0, 2**42]}}).encode()
  contents.append(len(header).to_bytes(8, 'little') + header)
  return contents


def check(reader: Reader, folder: pathlib.Path, count: int
          ) -> collections.Counter:
  """Reads so many files; returns how many loaded, were refused and so on."""
  ran = folder / 'ran'
  # Little of numbers and much of structure, and some of each.
  sound = [write(folder / 'sound', few_tensors()).read_bytes()
           for write in WRITERS.values()]
  bad = hostile(folder, ran)
  counts, peak, slowest = collections.Counter(), 0, 0.0
  for number in range(count):
    dice = random.Random(number)
    if number % 10 == 0:
      content = bad[number // 10 % len(bad)]
      if number // 10 >= len(bad):
        content = mutated(content, dice, mostly_of_structure)
    else:
      content = mutated(sound[number % len(sound)], dice,
                        mostly_of_structure)
    path = folder / f'{number}.bin'
    path.write_bytes(content)
    start = time.monotonic()
    answer = reader.read(path)
    slowest = max(slowest, time.monotonic() - start)
    assert 'died' not in answer and 'failed' not in answer, (path, answer)
    peak = max(peak, answer['peak'])
    counts.update(answer.keys() & {'loaded', 'refused'})
    if 'refused' in answer:
      message = answer['refused']
      assert '\n' not in message and len(message) < 1500, path
      assert str(path) in message
    else:
      assert answer['nbytes'] <= 100 * len(content), path
    path.unlink()
  assert not ran.exists()
  print(f'{dict(counts)}, {peak / 2**20:.0f} MiB at most, the slowest took '
        f'{slowest:.2f} s')
  return counts


def test_some_hostile_files_do_no_harm(reader, tmp_path):
  counts = check(reader, tmp_path, 80)
  assert counts['loaded'] and counts['refused']


@pytest.mark.slow
def test_a_thousand_hostile_files_do_no_harm(reader, tmp_path):
  counts = check(reader, tmp_path, 1000)
  assert counts['loaded'] > 50 and counts['refused'] > 500


def test_the_memory_of_the_reader_is_bounded(tmp_path):
  """Or the tests above would show little."""
  x = np.zeros(2**23, np.float32)
  x[::64] = np.random.default_rng(0).normal(size=2**17)
  path = write_deflated_npz(tmp_path / 'x', {'a': x})
  for more_bytes, outcome in ((2**22, 'failed'), (MORE_BYTES, 'loaded')):
    reader = Reader(more_bytes)
    answer = reader.read(path)
    reader.close()
    assert outcome in answer
    if outcome == 'failed':
      assert 'MemoryError' in answer['failed']
    else:
      assert answer['peak'] > 2**25
