"""A process that decodes files, a path in each line of its input.

    python tests/decoding_worker.py THREADS

answers each, in their order, with a line of JSON: `reason`, empty where it was
decoded; `seconds`; and `peak`, what the process took in memory so far, in
bytes, beyond its modules.
"""

from concurrent import futures
import json
import pathlib
import resource
import sys
import time

from catsdogs.datasets.folder import read_file
from catsdogs.photos import Decoding, decode_or_reason

_DECODING = Decoding(64, 64)
_LIMIT_BYTES = 16 * 2**30  # So that a fault does not take the whole machine.


def _peak_bytes() -> int:
  """As Linux tells it; what getrusage does begins with the parent's peak."""
  with open('/proc/self/status', encoding='ascii') as file:
    line, = (line for line in file if line.startswith('VmHWM:'))
  return int(line.split()[1]) * 1024


def answer(line: str) -> dict:
  """Decodes the file and says what came of it."""
  start = time.monotonic()
  image, reason = decode_or_reason(
      lambda: read_file(pathlib.Path(line.rstrip('\n'))), _DECODING)
  assert image.shape == (64, 64, 3) and image.dtype == 'uint8'
  return {'reason': reason, 'seconds': time.monotonic() - start,
          'peak': _peak_bytes() - before}


if __name__ == '__main__':
  resource.setrlimit(resource.RLIMIT_AS, (_LIMIT_BYTES, _LIMIT_BYTES))
  before = _peak_bytes()
  with futures.ThreadPoolExecutor(int(sys.argv[1])) as pool:
    for result in pool.map(answer, sys.stdin):
      print(json.dumps(result), flush=True)
