"""The parameters that a run starts from: random, or someone's weights."""

import pathlib
from typing import Any

import ml_collections

from catsdogs.errors import UserError
from catsdogs.models import ResNet, init_variables
from catsdogs.pretrained.load import load_weights


def initial_variables(config: ml_collections.ConfigDict, model: ResNet
                      ) -> tuple[dict[str, Any], str]:
  """Makes or reads the model's variables.

  Args:
    config: resolved.
    model: of the config's `model` part.

  Returns:
    `params` and `batch_stats`, and a sentence that says where they are from.

  Raises:
    UserError: the weights cannot be read, or are of another architecture.
  """
  variables = init_variables(model, config.seed)
  weights = config.model.weights
  if weights == 'none':
    return variables, 'Random weights.'
  path = pathlib.Path(weights).expanduser()
  if path.is_dir():
    return _from_workdir(path, variables)
  if not path.is_file():
    raise UserError(f'config.model.weights: there is no file or run {path}; '
                    "give a .pth or .safetensors file, a workdir, or 'none'")
  return load_weights(path, variables)
