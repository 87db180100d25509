"""A process that reads files of weights, a path in each line of its input.

    python tests/reading_worker.py MORE_BYTES

answers each with a line of JSON: `loaded`, how many tensors there were, and
`nbytes`, what they take; or `refused`, the message; or `failed`, what else was
raised. It may take no more memory than MORE_BYTES beyond its modules; `peak`
says in every answer what it took so far, beyond them.
"""

import json
import resource
import sys
import traceback

import h5py  # Now, as it counts as a module. pylint: disable=unused-import
import numpy as np

from catsdogs.errors import UserError
from catsdogs.pretrained.read import read_tensors


def _status_bytes(field: str) -> int:
  """What Linux tells of this process, such as its peak of memory, VmHWM."""
  with open('/proc/self/status', encoding='ascii') as file:
    line, = (line for line in file if line.startswith(f'{field}:'))
  return int(line.split()[1]) * 1024


def answer(path: str) -> dict:
  try:
    tensors, _ = read_tensors(path)
    # What is only mapped is looked at as well.
    for tensor in tensors.values():
      np.asarray(tensor, np.float32).sum()
    return {'loaded': len(tensors),
            'nbytes': sum(tensor.nbytes for tensor in tensors.values())}
  except UserError as error:
    return {'refused': str(error)}
  except BaseException:  # pylint: disable=broad-exception-caught
    return {'failed': traceback.format_exc()}


if __name__ == '__main__':
  limit = _status_bytes('VmSize') + int(sys.argv[1])
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  np.seterr(all='ignore')
  before = _status_bytes('VmHWM')
  for line in sys.stdin:
    print(json.dumps(answer(line.rstrip('\n'))
                     | {'peak': _status_bytes('VmHWM') - before}), flush=True)
