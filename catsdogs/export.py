"""A trained model for other people's software."""

import json
import os
import pathlib

import jax
import ml_collections
import numpy as np
import safetensors.numpy

from catsdogs.console import say
from catsdogs.errors import UserError
from catsdogs.models import variable_shapes
from catsdogs.pretrained import bundled, names
from catsdogs.pretrained.fit import fit
from catsdogs.pretrained.read import read_tensors
from catsdogs.restore import Restored, restore_checkpoint

FOLDER = 'export'


def export_checkpoint(config: ml_collections.ConfigDict, workdir: pathlib.Path,
                      cache: pathlib.Path, which: str) -> None:
  """Writes a checkpoint of a run as `export/torchvision.safetensors`.

  Args:
    config: of the run.
    workdir: of the run.
    cache: the folder for what is made once and used again.
    which: as of `restore_checkpoint`.

  Raises:
    UserError: there is no such checkpoint, or torchvision and timm have no
      network like it.
  """
  restored = restore_checkpoint(workdir, config, which, cache)
  file = workdir / FOLDER / 'torchvision.safetensors'
  file.parent.mkdir(parents=True, exist_ok=True)
  to_torchvision(restored, file)
  say(f'{restored.name.capitalize()} of {workdir} is in {file}.')


def to_torchvision(restored: Restored, file: pathlib.Path) -> None:
  """Writes the weights in torchvision's names (or timm's), as safetensors.

      model = torchvision.models.resnet18(num_classes=2)
      model.load_state_dict(safetensors.torch.load_file(FILE), strict=False)

  All that torch then misses are counts of training steps. Class names and
  preprocessing lie in the metadata, as in our own files. A file of that name
  is replaced, once the new one is whole and has been read back.

  Raises:
    UserError: torchvision and timm have no network like it.
  """
  architecture = restored.model.architecture
  if any(getattr(architecture, field) != value for field, value in
         names.of_torch(architecture).implied.items()):
    raise UserError('torchvision and timm have no network like this model, so '
                    'its weights cannot go there; fine-tune one of theirs')
  state = names.state_dict(restored.variables, architecture)
  about = {'class_names': restored.class_names,
           'preprocessing': restored.preprocessing.to_dict()}
  partial = file.with_name(f'{file.name}.partial')
  safetensors.numpy.save_file(
      {name: np.ascontiguousarray(x) for name, x in state.items()}, partial,
      {bundled.KEY: json.dumps(about)})
  tensors, _ = read_tensors(partial)
  back, _ = fit(partial, tensors, variable_shapes(restored.model), architecture)
  jax.tree.map(np.testing.assert_array_equal, restored.variables, back)
  os.replace(partial, file)
