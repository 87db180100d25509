"""How exactly, how fast and in how much memory others' weights are loaded.

    python -m benchmarks.pretrained --names=resnet50,resnet50d,resnet50v1

Each original of `tests/peers.txt` is made with random weights and statistics,
saved as its users save it, and read by us in a process of its own, which
imports neither torch nor TensorFlow.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any, Callable

from absl import app
from absl import flags
import jax
import numpy as np

from catsdogs import models
from catsdogs.architectures import ARCHITECTURES
from catsdogs.pretrained.fit import fit
from catsdogs.pretrained.read import read_tensors

# The originals are those that the tests compare with.
sys.path.append(str(pathlib.Path(__file__).parent.parent / 'tests'))
import originals  # pylint: disable=g-import-not-at-top,g-bad-import-order
import peers  # pylint: disable=g-import-not-at-top,g-bad-import-order

_NAMES = flags.DEFINE_list(
    'names', ['resnet18', 'resnet50', 'resnet101', 'wide_resnet50_2',
              'resnext50_32x4d', 'resnet50d', 'resnet50s', 'resnet50_gn',
              'resnet50v1', 'resnet50v2', 'bit_r50x1'],
    'architectures, or "all".')
_JSON = flags.DEFINE_string('json', None, 'file to write the figures to.')
_ROUNDS = 5
_SIZE_PX = 75

# Run with a name and a file; prints seconds and bytes, and checks the imports.
_LOAD = """
import json, pathlib, sys, time
from catsdogs import models
from catsdogs.pretrained.fit import fit
from catsdogs.pretrained.read import read_tensors
import ml_collections
config = ml_collections.ConfigDict(dict(
    name=sys.argv[1], width=1.0, batch_norm='batch', dtype='float32'))
model = models.create_model(config, int(sys.argv[3]))
shapes = models.variable_shapes(model)
def kibibytes(field):
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.partition(f'{field}:')[2].split()[0])
pathlib.Path('/proc/self/clear_refs').write_text('5')  # Forgets the peak.
before, started = kibibytes('VmRSS'), time.monotonic()
tensors, _ = read_tensors(sys.argv[2])
fit(sys.argv[2], tensors, shapes, model.architecture)
seconds = time.monotonic() - started
foreign = {'torch', 'tensorflow', 'keras', 'timm'} & sys.modules.keys()
assert not foreign, foreign
print(json.dumps({'seconds': seconds,
                  'bytes': 1024 * (kibibytes('VmHWM') - before)}))
"""


def main(argv):
  del argv
  names = list(ARCHITECTURES) if _NAMES.value == ['all'] else _NAMES.value
  rows = [measure(name, source, create) for name in names
          for source, create in originals.sources(name).items()]
  print('| architecture | source | largest difference of the logits | '
        'seconds to load | memory, x the file |')
  print('|---|---|---|---|---|')
  for row in rows:
    print(f'| {row["name"]} | {row["source"]} | {row["difference"]:.1e} | '
          f'{row["seconds"]:.2f} | {row["memory"]:.2f} |')
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(rows, indent=2))


def measure(name: str, source: str,
            create: Callable[[], originals.Original]) -> dict[str, Any]:
  """One row of the table.

  Returns:
    `difference`: largest of the logits, as a share of the largest logit;
    `seconds`: median of several loads from a warm cache; `memory`: by how much
    a load raises the process's peak, pages of the mapped file included, by
    the file's size.
  """
  original = create()
  model = models.create_model(peers.model_config(name), originals.CLASSES)
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'weights'
    original.save(file)
    loads = [load(name, file) for _ in range(_ROUNDS)]
    tensors, _ = read_tensors(file)
    variables, _ = fit(file, tensors, models.variable_shapes(model),
                       model.architecture)
    size = file.stat().st_size
  pictures = peers.random_pictures(_SIZE_PX, 0)
  with jax.default_matmul_precision('highest'):
    ours = model.apply(variables, pictures)
  theirs = original.features(pictures)['logits']
  return {'name': name, 'source': source,
          'difference': float(np.abs(ours - theirs).max()
                              / np.abs(theirs).max()),
          'seconds': statistics.median(load['seconds'] for load in loads),
          'memory': max(load['bytes'] for load in loads) / size}


def load(name: str, file: pathlib.Path) -> dict[str, float]:
  """Seconds and bytes of one load, in a process of its own."""
  output = subprocess.run(
      [sys.executable, '-c', _LOAD, name, file, str(originals.CLASSES)],
      check=True, capture_output=True, text=True).stdout
  return json.loads(output.splitlines()[-1])


if __name__ == '__main__':
  app.run(main)
