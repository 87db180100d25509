"""A model out of a workdir: for evaluation, prediction and export."""

import dataclasses
import pathlib
from typing import Any

import ml_collections

from catsdogs.checkpoint import choose_step, restore_variables
from catsdogs.models import ResNet, create_model
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained.initial import initial_variables


@dataclasses.dataclass(frozen=True)
class Restored:
  """A model that is ready to be applied.

  Attributes:
    model: the module.
    variables: `params` and `batch_stats`, on the host.
    class_names: in the order of the logits.
    preprocessing: between a photo and the model.
    name: which checkpoint, in words.
    data_fingerprint: of the data that it was trained and validated on.
  """

  model: ResNet
  variables: dict[str, Any]
  class_names: tuple[str, ...]
  preprocessing: Preprocessing
  name: str
  data_fingerprint: str


def restore_checkpoint(workdir: pathlib.Path,
                       config: ml_collections.ConfigDict,
                       which: str) -> Restored:
  """Restores a checkpoint of a run.

  Args:
    workdir: of the run.
    config: of the run.
    which: `best`, `last`, a step, or `pretrained`: the weights that the run
      started from, with its own new head.

  Raises:
    UserError: there is no such checkpoint, or it is damaged.
  """
  step = choose_step(workdir, which)
  variables, meta = restore_variables(workdir, step)
  class_names = tuple(meta['class_names'])
  model = create_model(config.model, len(class_names))
  name = f'checkpoint {step}'
  if which == 'pretrained':
    variables, name = initial_variables(config, model, class_names)
  return Restored(model, variables, class_names,
                  Preprocessing.from_dict(meta['preprocessing']), name,
                  meta['data_fingerprint'])
