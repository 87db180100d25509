"""The parameters that a run starts from: random, or someone's weights."""

import pathlib
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections

from catsdogs.checkpoint import choose_step, restore_variables
from catsdogs.errors import UserError
from catsdogs.models import ResNet, init_variables, variable_shapes
from catsdogs.pretrained.load import fit, load_weights


def initial_variables(config: ml_collections.ConfigDict, model: ResNet,
                      class_names: tuple[str, ...]
                      ) -> tuple[dict[str, Any], str]:
  """Makes or reads the model's variables.

  Args:
    config: resolved.
    model: of the config's `model` part.
    class_names: in the order of the logits; the head of a run that knew other
      classes is left where it is.

  Returns:
    `params` and `batch_stats`, and a sentence that says where they are from.

  Raises:
    UserError: the weights cannot be read, or are of another architecture.
  """
  weights = config.model.weights
  if weights == 'none':
    return init_variables(model, config.seed), 'Random weights.'
  path = pathlib.Path(weights).expanduser()
  # Nothing is drawn at random: a new head starts from zero.
  shapes = variable_shapes(model)
  if path.is_dir():
    step = choose_step(path, 'best')
    variables, meta = restore_variables(path, step)
    tensors = traverse_util.flatten_dict(variables, sep='/')
    if tuple(meta['class_names']) != class_names:
      tensors = {name: tensor for name, tensor in tensors.items()
                 if not name.startswith('params/head/')}
    origin = f'{path}, checkpoint {step}'
    variables, report = fit(origin, tensors, shapes)
  elif path.is_file():
    origin = str(path)
    variables, report = load_weights(path, shapes)
  else:
    raise UserError(f'config.model.weights: there is no file or run {path}; '
                    "give a .pth or .safetensors file, a workdir, or 'none'")
  variables = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype)
      if isinstance(x, jax.ShapeDtypeStruct) else x, variables)
  head = 'its head too' if report.head_loaded else 'a new head'
  return variables, f'Weights from {origin}, {head}.'
