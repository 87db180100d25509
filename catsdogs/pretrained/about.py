"""What the files beside weights say of them: Hugging Face's and timm's."""

import dataclasses
import json
import math
import pathlib
from typing import Any

from catsdogs.architectures import ARCHITECTURES, Architecture
from catsdogs.errors import UserError
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained import imagenet
from catsdogs.pretrained.known_weights import cut_from

CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'
# Of PIL, which both name in their files, one by number and one by name.
_INTERPOLATIONS = {2: 'bilinear', 3: 'bicubic'}
# transformers' ConvNextImageProcessor crops below this size alone.
_UNCROPPED_PX = 384


@dataclasses.dataclass(frozen=True)
class About:
  """What is said of a file of weights.

  Attributes:
    model: name of the architecture, by our names.
    class_names: of the head's outputs, WordNet ids where they are ImageNet's;
      None where nothing is said.
    preprocessing: what the photos went through, of the size they had.
  """

  model: str
  class_names: tuple[str, ...] | None
  preprocessing: Preprocessing


def beside(path: pathlib.Path) -> About | None:
  """What lies beside a file of weights; None where nothing is said of it.

  Raises:
    UserError: that cannot be read, or they are of another network.
  """
  if not path.with_name(CONFIG).is_file():
    return None
  config, preprocessor = read_json(path.with_name(CONFIG)), None
  if needs_preprocessor(config):
    if not path.with_name(PREPROCESSOR).is_file():
      raise UserError(f'{path}: {PREPROCESSOR} is not beside it and '
                      f'{CONFIG}; put it there')
    preprocessor = read_json(path.with_name(PREPROCESSOR))
  elif 'pretrained_cfg' not in config:  # Of something else, such as a run.
    return None
  return understand(str(path), config, preprocessor)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The fields of a JSON file.

  Raises:
    UserError: it holds none.
  """
  try:
    if isinstance(fields := json.loads(path.read_text()), dict):
      return fields
    reason = 'it has no fields'
  except (OSError, ValueError, RecursionError) as e:
    reason = f'{type(e).__name__}: {e}'
  raise UserError(f'{path} cannot be read ({reason}); download it again')


def needs_preprocessor(config: dict[str, Any]) -> bool:
  """Whether the fields are Hugging Face's of a ResNet, not timm's."""
  return 'pretrained_cfg' not in config and config.get('model_type') == 'resnet'


def understand(name: str, config: dict[str, Any],
               preprocessor: dict[str, Any] | None) -> About:
  """Puts the fields of the files into our terms.

  Args:
    name: of the weights, for what is told.
    config: of `config.json`.
    preprocessor: of `preprocessor_config.json`, where it is needed.

  Raises:
    UserError: they are of another network, or make no sense.
  """
  try:
    if 'pretrained_cfg' in config:
      return _of_timm(name, config)
    if config.get('model_type') != 'resnet':
      raise UserError(f'{name} is of the type {config.get("model_type")}, not '
                      'resnet; name weights of a ResNet')
    return About(_transformers_model(name, config),
                 _transformers_classes(config),
                 _transformers_preprocessing(preprocessor))
  except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError,
          IndexError) as e:
    raise UserError(f'{name}: what {CONFIG} or {PREPROCESSOR} says of it makes '
                    f'no sense ({type(e).__name__}: {e}); name others') from e


def _of_timm(name: str, config: dict[str, Any]) -> About:
  """By timm/models/_hub.py and timm/data/config.py."""
  model, cfg = config['architecture'], config['pretrained_cfg']
  if model not in ARCHITECTURES:
    raise UserError(f"{name} is of timm's {model}, which is none of the "
                    'networks here; name weights of a plain ResNet')
  labels = cfg.get('label_names') or config.get('label_names')
  is_imagenet = (cfg.get('num_classes', config.get('num_classes')) == 1000
                 and str(cfg.get('tag', '')).endswith('in1k'))
  class_names = (tuple(map(str, labels)) if labels
                 else tuple(imagenet.classes()) if is_imagenet else None)
  _, image_size, width = cfg['input_size']
  if image_size != width:
    raise ValueError(f'input_size {cfg["input_size"]}')
  return About(model, class_names, _preprocessing(
      image_size, cut_from(image_size, cfg['crop_pct']), cfg['mean'],
      cfg['std'], cfg['interpolation']))


def _transformers_model(name: str, config: dict[str, Any]) -> str:
  """The architecture, by transformers/models/resnet."""
  wanted = Architecture(tuple(config.get('depths', (3, 4, 6, 3))),
                        config.get('layer_type', 'bottleneck') == 'bottleneck')
  # Each field of which ours is but one of several values.
  ours = {
      'num_channels': 3,
      'embedding_size': 64,
      'hidden_sizes': [wanted.out_channels(stage) for stage in range(1, 5)],
      'hidden_act': 'relu',
      'downsample_in_first_stage': False,
      'downsample_in_bottleneck': False,
  }
  for field, value in ours.items():
    if config.get(field, value) != value:
      raise UserError(f'{name} has {field} {config[field]} where the networks '
                      f'here have {value}; name other weights')
  for model, architecture in ARCHITECTURES.items():
    if architecture == wanted:
      return model
  raise UserError(f'{name} has stages of {wanted.stage_sizes} '
                  f'{config.get("layer_type", "bottleneck")} blocks, as none '
                  'of the networks here has; name other weights')


def _transformers_classes(config: dict[str, Any]) -> tuple[str, ...] | None:
  labels = config.get('id2label')
  if not labels:
    return None
  names = tuple(str(labels[str(i)]) for i in range(len(labels)))
  # Words for the classes of ImageNet, in its order.
  if len(names) == 1000 and names[0].startswith('tench'):
    return tuple(imagenet.classes())
  return names


def _transformers_preprocessing(fields: dict[str, Any]) -> Preprocessing:
  """By transformers' ConvNextImageProcessor, or those of most others."""
  size = fields['size']
  edge = size if isinstance(size, int) else size.get(
      'shortest_edge', size.get('height'))
  if 'crop_pct' in fields and edge < _UNCROPPED_PX:
    image_size = edge
    crop_fraction = cut_from(edge, fields['crop_pct'] or 224 / 256)
  elif fields.get('do_center_crop'):
    crop = fields['crop_size']
    image_size = crop if isinstance(crop, int) else crop['height']
    crop_fraction = image_size / edge
  else:
    image_size, crop_fraction = edge, 1.0
  mean, std = fields['image_mean'], fields['image_std']
  if not fields.get('do_normalize', True):
    mean, std = (0, 0, 0), (1, 1, 1)
  return _preprocessing(image_size, crop_fraction, mean, std,
                        _INTERPOLATIONS[fields['resample']])


def _preprocessing(image_size: int, crop_fraction: float, mean: list[float],
                   std: list[float], interpolation: str) -> Preprocessing:
  mean, std = (tuple(map(float, values)) for values in (mean, std))
  if (len(mean) != 3 or len(std) != 3 or not all(std)
      or not all(map(math.isfinite, (*mean, *std)))
      or not isinstance(image_size, int) or not 0 < crop_fraction <= 1
      or interpolation not in _INTERPOLATIONS.values()):
    raise ValueError(
        f'mean {mean}, std {std}, crop {crop_fraction:g}, {interpolation}')
  return Preprocessing(image_size, crop_fraction, mean, std, interpolation)
