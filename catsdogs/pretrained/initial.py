"""The parameters that a run starts from: random, or someone's weights."""

import dataclasses
import json
import os
import pathlib
from typing import Any, Callable, Mapping

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from catsdogs.checkpoint import choose_step, restore_variables
from catsdogs.errors import UserError
from catsdogs.models import ResNet, init_variables, variable_shapes
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained import (about, bundled, download, hub, imagenet,
                                 known_weights, published, zero_shot)
from catsdogs.pretrained.fit import fit
from catsdogs.pretrained.read import read_tensors, sha256


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Someone's weights, with what has to come along with them.

  Attributes:
    origin: where they are from, for what is told.
    tensors: by torchvision's names, or by our own paths.
    class_names: of the head's outputs, WordNet ids where they are ImageNet's;
      None where the file does not say.
    preprocessing: what the photos went through in training; of another size,
      perhaps.
  """

  origin: str
  tensors: Mapping[str, np.ndarray]
  class_names: tuple[str, ...] | None
  preprocessing: Preprocessing

  def put_into(self, model: ResNet, class_names: tuple[str, ...]
               ) -> tuple[dict[str, Any], str]:
    """The model's variables, and how its head came about, in words.

    A head that knows other classes stays behind. Where they include ours, such
    as breeds of dogs, ours begin as their means; else from zero.

    Raises:
      UserError: the weights are of another architecture.
    """
    shapes = variable_shapes(model)  # Nothing is drawn at random.
    if self.class_names in (None, class_names):
      variables, head_loaded = fit(self.origin, self.tensors, shapes,
                                   model.architecture)
      if head_loaded:
        return variables, 'its head too'
    else:
      theirs = model.clone(num_classes=len(self.class_names))
      variables, head_loaded = fit(self.origin, self.tensors,
                                   variable_shapes(theirs), model.architecture)
      groups = zero_shot.grouping(self.class_names, class_names)
      if head_loaded and groups is not None:
        shares, head = np.exp(groups), variables['params']['head']
        variables['params']['head'] = {
            name: leaf @ shares for name, leaf in head.items()}
        return variables, "a head that is the mean of its classes'"
    variables['params']['head'] = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), shapes['params']['head'])
    return variables, 'a new head'


def open_pretrained(config: ml_collections.ConfigDict, cache: pathlib.Path,
                    check: Callable[[], None] = lambda: None
                    ) -> Pretrained | None:
  """Reads the weights that `model.weights` names; None for random ones.

  Args:
    config: resolved.
    cache: the folder for what is made once and used again.
    check: called while a download goes on; what it raises ends that.

  Raises:
    UserError: they cannot be had, or cannot be read.
  """
  weights, size = config.model.weights, config.data.image_size
  if weights == 'none':
    return None
  if weights == 'bundled':
    if sha256(bundled.FILE) != bundled.SHA256:
      raise UserError(f'{bundled.FILE} is damaged; check it out again')
    return _of_own_file(bundled.FILE, size, 'the bundled file')
  if named := known_weights.split(weights):
    known = known_weights.find(named[0], config.model.name, named[1])
    return _of_known_file(_fetch(known, cache, check), size, known)
  if weights.startswith(hub.PREFIX):
    return _of_hub(weights.removeprefix(hub.PREFIX), config, cache, check)
  path = pathlib.Path(os.path.expanduser(weights))
  if path.is_dir():
    return _of_run(path, config.model.name, size)
  if path.is_file():
    known = (known_weights.by_hash(f'sha256:{sha256(path)}')
             or known_weights.by_hash(f'md5:{download.md5(path)}')
             or known_weights.by_name(path.name))
    return (_of_known_file(path, size, known) if known
            else _of_own_file(path, size, str(path)))
  raise UserError(
      f'config.model.weights: there is no file or run {path}; give a file of '
      "weights, a workdir, 'bundled', 'none', or published ones such as "
      "'torchvision:IMAGENET1K_V2', 'timm:a1_in1k', 'keras:imagenet', "
      "'bit:BiT-M-R50x1' or 'hf:OWNER/NAME'")


def initial_variables(config: ml_collections.ConfigDict,
                      pretrained: Pretrained | None, model: ResNet,
                      class_names: tuple[str, ...]
                      ) -> tuple[dict[str, Any], str]:
  """Puts the weights into the model, or makes random ones.

  Args:
    config: resolved.
    pretrained: of `open_pretrained`.
    model: of the config's `model` part.
    class_names: in the order of the logits.

  Returns:
    `params` and `batch_stats`, and a sentence that says where they are from.

  Raises:
    UserError: the weights are of another architecture.
  """
  if pretrained is None:
    return init_variables(model, config.seed), 'Random weights.'
  variables, head = pretrained.put_into(model, class_names)
  return variables, f'Weights from {pretrained.origin}, {head}.'


def _of_run(workdir: pathlib.Path, model: str, image_size: int) -> Pretrained:
  try:
    step = choose_step(workdir, 'best')
  except UserError as e:
    raise UserError(f'config.model.weights: {workdir} is no run that has been '
                    'evaluated; give a file of weights, or the workdir of one '
                    'that has') from e
  variables, meta = restore_variables(workdir, step)
  # The tensors of some differ in no shape, such as resnet50's and resnet50v1's.
  if (own := meta['config']['model']['name']) != model:
    raise UserError(f'config.model.weights: the run {workdir} is of {own}, not '
                    f'of {model}; set config.model.name to {own}, or to auto')
  preprocessing = Preprocessing.from_dict(meta['preprocessing'])
  return Pretrained(
      f'{workdir}, checkpoint {step}',
      traverse_util.flatten_dict(variables, sep='/'),
      tuple(meta['class_names']),
      dataclasses.replace(preprocessing, image_size=image_size))


def _fetch(known: known_weights.KnownWeights, cache: pathlib.Path,
           check: Callable[[], None]) -> pathlib.Path:
  """The file, from the cache or else downloaded."""
  folder = cache / 'weights'
  if known.hub:
    return hub.fetch_weights(known.hub, cache, check)
  if not known.hash:
    return published.fetch(known.url, folder, check)
  return download.fetch(known.url, known.hash, known.mebibytes, folder, check)


def _of_known_file(path: pathlib.Path, image_size: int,
                   known: known_weights.KnownWeights) -> Pretrained:
  tensors, _ = read_tensors(path)
  return Pretrained(
      f"{path} ({known.source}'s {known.model}, {known.tag})", tensors,
      tuple(imagenet.classes()) if known.imagenet else None,
      dataclasses.replace(known.preprocessing, image_size=image_size))


def _of_hub(repository: str, config: ml_collections.ConfigDict,
            cache: pathlib.Path, check: Callable[[], None]) -> Pretrained:
  said = hub.read_about(repository, cache, check)
  if said.model != config.model.name:  # Before a large download.
    raise UserError(f'config.model.weights: {hub.PREFIX}{repository} are of '
                    f'{said.model}, not of {config.model.name}; set '
                    f'config.model.name to {said.model}, or to auto')
  path = hub.fetch_weights(repository, cache, check)
  return _as_said(path, config.data.image_size, said, read_tensors(path)[0])


def _as_said(path: pathlib.Path, image_size: int, said: about.About,
             tensors: Mapping[str, np.ndarray]) -> Pretrained:
  return Pretrained(
      str(path), tensors, said.class_names,
      dataclasses.replace(said.preprocessing, image_size=image_size))


def _of_own_file(path: pathlib.Path, image_size: int,
                 origin: str) -> Pretrained:
  """What a file holds, and what it, or a file beside it, says of it."""
  tensors, metadata = read_tensors(path)
  if bundled.KEY not in metadata:
    if said := about.beside(path):
      return _as_said(path, image_size, said, tensors)
    return Pretrained(origin, tensors, None, Preprocessing(image_size))
  try:
    own = json.loads(metadata[bundled.KEY])
    class_names = tuple(own['class_names'])
    preprocessing = Preprocessing.from_dict(own['preprocessing'])
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(f'{path}: what it says of itself cannot be read '
                    f'({type(e).__name__}: {e}); save it anew') from e
  # In torchvision's names where `export` wrote it.
  outputs = np.shape(tensors.get('params/head/bias', tensors.get('fc.bias')))
  if outputs != (len(class_names),):
    raise UserError(f'{path}: it names {len(class_names)} classes, but its '
                    f'head is of shape {outputs}; save it anew')
  return Pretrained(
      origin, tensors, class_names,
      dataclasses.replace(preprocessing, image_size=image_size))
