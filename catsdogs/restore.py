"""A model out of a workdir: for evaluation, prediction and export."""

import contextlib
import dataclasses
import pathlib
from typing import Any

import ml_collections
import numpy as np

from catsdogs.checkpoint import (choose_step, read_meta, restore_variables,
                                 saved_steps)
from catsdogs.errors import UserError
from catsdogs.models import ResNet, create_model
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained import imagenet, zero_shot
from catsdogs.pretrained.initial import (Pretrained, initial_variables,
                                         open_pretrained)


@dataclasses.dataclass(frozen=True)
class Restored:
  """A model that is ready to be applied.

  Attributes:
    model: the module.
    variables: `params` and `batch_stats`.
    class_names: of the probabilities, in their order.
    preprocessing: between a photo and the model.
    name: which checkpoint, in words.
    groups: of `zero_shot.grouping`, where the model's own classes are finer.
  """

  model: ResNet
  variables: dict[str, Any]
  class_names: tuple[str, ...]
  preprocessing: Preprocessing
  name: str
  groups: np.ndarray | None = None


def restore_checkpoint(workdir: pathlib.Path,
                       config: ml_collections.ConfigDict, which: str,
                       cache: pathlib.Path,
                       class_names: tuple[str, ...] | None = None) -> Restored:
  """Restores a checkpoint of a run.

  Args:
    workdir: of the run.
    config: of the run.
    which: `best`, `last`, a step, or `pretrained`: what the weights that the
      run starts from say of its classes.
    cache: the folder for what is made once and used again.
    class_names: with `pretrained`, in place of the run's where it has none yet;
      None for the weights' own.

  Raises:
    UserError: there is no such checkpoint, or it is damaged.
  """
  if which == 'pretrained':
    return _before_training(config, open_pretrained(config, cache),
                            _classes_of_run(workdir) or class_names)
  step = choose_step(workdir, which)
  variables, meta = restore_variables(workdir, step)
  class_names = tuple(meta['class_names'])
  return Restored(create_model(config.model, len(class_names)), variables,
                  class_names, Preprocessing.from_dict(meta['preprocessing']),
                  f'checkpoint {step}')


def _classes_of_run(workdir: pathlib.Path) -> tuple[str, ...] | None:
  """Those of its newest checkpoint that can be read; None without one."""
  for step in reversed(saved_steps(workdir)):
    with contextlib.suppress(UserError):
      return tuple(read_meta(workdir, step)['class_names'])
  return None


def zero_shot_model(config: ml_collections.ConfigDict,
                    pretrained: Pretrained | None,
                    class_names: tuple[str, ...]) -> Restored | None:
  """The weights with their own head, where its classes include those given.

  Args:
    config: resolved.
    pretrained: the weights; None for random ones.
    class_names: of the run.

  Returns:
    None where the weights do not know the classes, or know just these.
  """
  if pretrained is None or pretrained.class_names in (None, class_names):
    return None
  groups = zero_shot.grouping(pretrained.class_names, class_names)
  if groups is None:
    return None
  model = create_model(config.model, len(pretrained.class_names))
  variables, _ = pretrained.put_into(model, pretrained.class_names)
  return Restored(model, variables, class_names, pretrained.preprocessing,
                  f'{pretrained.origin}, zero-shot', groups)


def _before_training(config: ml_collections.ConfigDict,
                     pretrained: Pretrained | None,
                     class_names: tuple[str, ...] | None) -> Restored:
  """The model before the first step, with the weights' own head if it serves.

  Args:
    config: resolved.
    pretrained: the weights; None for random ones.
    class_names: of the run; None for those of the weights themselves.

  Raises:
    UserError: nobody says what the classes are.
  """
  if class_names:
    if answer := zero_shot_model(config, pretrained, class_names):
      return answer
    shown = class_names
  elif pretrained and pretrained.class_names:
    class_names, words = pretrained.class_names, imagenet.classes()
    shown = tuple(words.get(name, name) for name in class_names)
    shown = tuple(f'{word} ({name})' if shown.count(word) > 1 else word
                  for name, word in zip(class_names, shown))
  else:
    raise UserError('--checkpoint=pretrained: neither a checkpoint nor the '
                    'weights say what the classes are; train first')
  preprocessing = (pretrained.preprocessing if pretrained
                   else Preprocessing(config.data.image_size))
  model = create_model(config.model, len(class_names))
  variables, origin = initial_variables(config, pretrained, model, class_names)
  return Restored(model, variables, shown, preprocessing,
                  origin.removesuffix('.'))
