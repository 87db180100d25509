"""The weights that come with the project, and how a run becomes such a file.

    python -m catsdogs.pretrained.bundled RUN

writes what a run of `configs/pretrain.py` learnt to `FILE`, and prints the
SHA-256 that belongs below. The card beside it says what they are.
"""

import json
import pathlib
import sys

from flax import traverse_util
import numpy as np
import safetensors.numpy

from catsdogs.checkpoint import choose_step, restore_variables
from catsdogs.pretrained.read import sha256

FILE = (pathlib.Path(__file__).parent.parent / 'assets'
        / 'resnet18_half.safetensors')
SHA256 = '4396b88fbf57e10ef2c1474970fb6bc027771507ed0eba9b6ba58d437253c035'
# Where the metadata of a safetensors file holds, as JSON, what our own files
# say of themselves: `class_names` and `preprocessing`.
KEY = 'catsdogs'


def write(workdir: pathlib.Path, file: pathlib.Path) -> None:
  """Writes the best checkpoint of a run as safetensors, by our own paths.

  Kernels as float16, which halves the file; the rest, which is small, as
  float32.
  """
  variables, meta = restore_variables(workdir, choose_step(workdir, 'best'))
  tensors = {
      path: np.asarray(value, np.float16 if value.ndim > 1 else np.float32)
      for path, value in traverse_util.flatten_dict(variables, sep='/').items()}
  about = {key: meta[key] for key in ('class_names', 'preprocessing')}
  safetensors.numpy.save_file(tensors, file, {KEY: json.dumps(about)})


if __name__ == '__main__':
  write(pathlib.Path(sys.argv[1]), FILE)
  print(f'{FILE}: SHA-256 {sha256(FILE)}')
