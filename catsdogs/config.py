"""Checks a config whole, and keeps it beside a run."""

import dataclasses
import json
import os
import pathlib
import re
from typing import Any, Callable
import warnings

import ml_collections

from catsdogs.architectures import ARCHITECTURES
from catsdogs.errors import UserError
from catsdogs.pretrained import hub, known_weights

# Of the weights that come with the project.
BUNDLED_MODEL, BUNDLED_WIDTH = 'resnet18', 0.5
# Where a workdir keeps its run's.
CONFIG_FILE = 'config.json'
# What a number may be; a float32 could be 300 million times as large.
_LARGEST = 1e30


def _number(satisfies: Callable[[float], bool] = lambda v: v >= 0):
  """A number, which a bool is not, of a size that a float32 has room for."""
  return lambda v: (isinstance(v, (int, float)) and not isinstance(v, bool)
                    and abs(v) <= _LARGEST and satisfies(v))


def _whole(low: int, high: int = 2**31 - 1):
  return lambda v: (isinstance(v, int) and not isinstance(v, bool)
                    and low <= v <= high)


def _text(satisfies: Callable[[str], bool] = lambda v: True):
  return lambda v: isinstance(v, str) and '\0' not in v and satisfies(v)


def _one_of(*names: str):
  return _text(lambda v: v in names)


def _is_bool(value: Any) -> bool:
  return isinstance(value, bool)


def _is_source(value: str) -> bool:
  kind, _, where = value.partition(':')
  return value in ('auto', 'bundled') or (
      kind in ('folder', 'tfds') and bool(where))


def _is_regex(pattern: str) -> bool:
  try:
    with warnings.catch_warnings(action='ignore'):  # Such as of '[[a]'.
      re.compile(pattern)
  except (re.error, OverflowError, RecursionError):
    return False
  return True


def _is_crop_scale(value: Any) -> bool:
  return (isinstance(value, tuple) and len(value) == 2
          and all(_number(lambda v: 1e-3 <= v <= 1)(v) for v in value)
          and value[0] <= value[1])


def _is_lr_mults(value: Any) -> bool:
  return isinstance(value, tuple) and all(
      isinstance(pair, tuple) and len(pair) == 2
      and _text(_is_regex)(pair[0]) and _number()(pair[1]) for pair in value)


_COUNT = (_whole(1), 'a whole number from 1 to 2147483647')
_NOT_NEGATIVE = (_number(), 'from 0 to 1e30')
_POSITIVE = (_number(lambda v: v > 0), 'above 0, up to 1e30')
# What is next to 0 is 0 in a float32, and has no beta distribution.
_BETA = (_number(lambda v: v == 0 or 1e-3 <= v <= 1e3),
         '0, or from 0.001 to 1000')
_BELOW_ONE = (_number(lambda v: 0 <= v < 1), 'from 0 to below 1')
_SPLIT = (_text(), 'a TFDS split or empty')
_SWITCH = (_is_bool, 'True or False')

# Every field that a config has, what it must satisfy, and that in words.
_RULES = {
    'seed': (_whole(0), 'a whole number from 0 to 2147483647'),
    'data.source': (_text(_is_source),
                    "'auto', 'bundled', 'folder:PATH' or 'tfds:NAME'"),
    'data.label_key': (_text(bool), "a feature's name or 'auto'"),
    'data.train_split': _SPLIT,
    'data.val_split': _SPLIT,
    'data.val_fraction': (_number(lambda v: 0 < v < 1),
                          'above 0 and below 1'),
    'data.sample_fraction': (_number(lambda v: 0 < v <= 1),
                             'above 0 and at most 1'),
    'data.image_size': (lambda v: v is None or _whole(32, 2048)(v),
                        'a whole number from 32 to 2048 pixels'),
    'data.cache_gib': _NOT_NEGATIVE,
    'model.name': (_one_of('auto', *ARCHITECTURES),
                   f'auto or one of {", ".join(ARCHITECTURES)}'),
    'model.width': (_number(lambda v: 0.125 <= v <= 4), 'from 0.125 to 4'),
    'model.weights': (
        _text(bool),
        "'auto', 'bundled', 'none', a file, a workdir, 'torchvision:TAG', "
        "'timm:TAG', 'keras:imagenet', 'bit:NAME' or 'hf:OWNER/NAME'"),
    'model.freeze': (_text(_is_regex), 'a regular expression or empty'),
    'model.batch_norm': (_one_of('batch', 'running'), "'batch' or 'running'"),
    'model.dtype': (_one_of('auto', 'float32', 'bfloat16'),
                    "'auto', 'float32' or 'bfloat16'"),
    'optim.name': (_one_of('sgd', 'adamw'), "'sgd' or 'adamw'"),
    'optim.learning_rate': _POSITIVE,
    'optim.schedule': (_one_of('cosine', 'linear', 'constant'),
                       "'cosine', 'linear' or 'constant'"),
    'optim.warmup_epochs': _NOT_NEGATIVE,
    'optim.weight_decay': _NOT_NEGATIVE,
    'optim.lr_mults': (_is_lr_mults,
                       "pairs of a regular expression and a factor from 0 to "
                       "1e30, such as (('^head/', 10.0),)"),
    'optim.grad_clip_norm': (_number(), '0 (no clipping) to 1e30'),
    # Each part is compiled by itself.
    'optim.accumulate_steps': (_whole(1, 256), 'a whole number from 1 to 256'),
    'optim.ema_decay': _BELOW_ONE,
    'augment.crop_scale': (_is_crop_scale,
                           'two shares of the area, such as (0.4, 1.0)'),
    'augment.flip': _SWITCH,
    'augment.color_jitter': _BELOW_ONE,
    'augment.mixup': _BETA,
    'augment.cutmix': _BETA,
    'augment.label_smoothing': _BELOW_ONE,
    'train.batch_size': _COUNT,
    'train.epochs': _POSITIVE,
    'train.evaluate_before': _SWITCH,
    'train.log_every_steps': _COUNT,
    'train.eval_every_epochs': _POSITIVE,
    'train.checkpoint_every_steps': _COUNT,
    'train.keep': _COUNT,
    'train.fsdp': _SWITCH,
}


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config's values by dotted field, tuples where JSON would have lists."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, (ml_collections.ConfigDict, dict)):
      flat.update({f'{key}.{k}': v for k, v in flatten(value).items()})
    else:
      flat[key] = _as_tuple(value)
  return flat


def _as_tuple(value: Any) -> Any:
  if isinstance(value, (list, tuple)):
    return tuple(_as_tuple(v) for v in value)
  return value


def check(config: ml_collections.ConfigDict) -> None:
  """Raises `UserError` that names every field that is wrong, and the mend."""
  values = flatten(config)
  wrong = [f'config.{field} is unknown' for field in values
           if field not in _RULES]
  wrong += [f'config.{field} is missing' for field in _RULES
            if field not in values]
  for field in values.keys() & _RULES.keys():
    satisfied, words = _RULES[field]
    if not satisfied(values[field]):
      wrong.append(f'config.{field} is {_shown(values[field])}; it must be '
                   f'{words}')
  if not wrong:
    wrong = _contradictions(config)
  elif not any(text.startswith('config.model.') for text in wrong):
    wrong += _unfitting_weights(config.model)
  if wrong:
    raise UserError('; '.join(sorted(wrong)))


def _shown(value: Any) -> str:
  try:
    return repr(value)
  except Exception:  # Such as an int of too many digits.
    return f'what Python cannot print, of type {type(value).__name__}'


def _contradictions(config: ml_collections.ConfigDict) -> list[str]:
  wrong = []
  batch_size, parts = config.train.batch_size, config.optim.accumulate_steps
  if batch_size % parts:
    wrong.append(
        f'config.train.batch_size {batch_size} cannot be accumulated in '
        f'{parts} equal parts; set config.optim.accumulate_steps to a divisor')
  if config.optim.warmup_epochs > config.train.epochs:
    wrong.append(
        f'config.optim.warmup_epochs {config.optim.warmup_epochs:g} is longer '
        f'than config.train.epochs {config.train.epochs:g}; shorten it')
  if config.model.name == 'auto' and config.model.width != 1:
    wrong.append(f'config.model.width {config.model.width:g} is of no use '
                 'where config.model.name is auto, which decides it; name a '
                 'model')
  if bool(config.data.train_split) != bool(config.data.val_split):
    wrong.append('config.data.train_split and config.data.val_split go '
                 'together: set both or none')
  if config.model.name != 'auto':
    architecture = ARCHITECTURES[config.model.name]
    if not dataclasses.replace(
        architecture, width=architecture.width * config.model.width
    ).inner_channels(1):
      wrong.append(f'config.model.width {config.model.width:g} leaves the '
                   f'groups of {config.model.name} without a channel; widen '
                   'it')
  return wrong + _unfitting_weights(config.model)


def _unfitting_weights(model: ml_collections.ConfigDict) -> list[str]:
  """Where the weights, by their name alone, are of another model or of none."""
  bundled = (BUNDLED_MODEL, BUNDLED_WIDTH)
  if (model.weights == 'bundled' and model.name != 'auto'
      and (model.name, model.width) != bundled):
    return [f'config.model.weights bundled are of {BUNDLED_MODEL} with '
            f'config.model.width {BUNDLED_WIDTH:g}, not of {model.name} with '
            f'{model.width:g}; set config.model.name to auto']
  named, on_hub = (known_weights.split(model.weights),
                   model.weights.startswith(hub.PREFIX))
  if (named or on_hub) and model.name != 'auto' and model.width != 1:
    return [f'config.model.width {model.width:g} does not go with '
            f'config.model.weights {model.weights}, which are of width 1']
  if on_hub and not hub.is_repository(model.weights.removeprefix(hub.PREFIX)):
    return [f'config.model.weights is {model.weights!r}; it must be '
            'hf:OWNER/NAME, such as hf:microsoft/resnet-50']
  if named:
    source, tag = named
    try:
      known_weights.find(
          source, known_weights.model_of(source, tag, model.name), tag)
    except UserError as e:
      return [f'config.model.weights: {e}']
  return []


def check_devices(config: ml_collections.ConfigDict, devices: int) -> None:
  """Raises `UserError` where no batch fits the memory or the devices.

  Args:
    config: resolved.
    devices: that share a batch equally.
  """
  # About four batches are on their way at a time (input_pipeline.py), over at
  # most as many machines as devices. Told here, since a system that runs out
  # of memory kills the process without a word.
  photo_bytes = 3 * config.data.image_size**2
  memory_bytes = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if 4 * photo_bytes * config.train.batch_size > memory_bytes * devices:
    raise UserError(
        f'config.train.batch_size: {config.train.batch_size} photos of '
        f'{config.data.image_size} pixels at a time are more than the memory '
        f'of {memory_bytes / 2**30:.0f} GiB holds; lower it')
  part = config.train.batch_size // config.optim.accumulate_steps
  if part % devices:
    raise UserError(
        f'config.train.batch_size: {part} photos at a time cannot be shared '
        f'equally by {devices} devices; choose a multiple of {devices}')


def save(config: ml_collections.ConfigDict, file: pathlib.Path) -> None:
  """Writes the config as JSON."""
  partial = file.with_suffix('.json.partial')
  partial.write_text(json.dumps(config.to_dict(), indent=2) + '\n')
  partial.replace(file)


def load(file: pathlib.Path) -> ml_collections.ConfigDict:
  """Reads what `save` wrote.

  Raises:
    UserError: it is not such a file.
  """
  try:
    config = from_dict(json.loads(file.read_text()))
    check(config)
  except (OSError, ValueError, AttributeError, RecursionError,
          UserError) as e:
    raise UserError(f'{file} cannot be read as a config ({e}); use the version '
                    'of catsdogs that wrote it, or begin anew with '
                    '--restart') from e
  return config


def from_dict(values: dict[str, Any]) -> ml_collections.ConfigDict:
  """The config that `to_dict` gave, lists as tuples again."""
  def convert(value):
    if isinstance(value, dict):
      return {k: convert(v) for k, v in value.items()}
    return _as_tuple(value)
  return ml_collections.ConfigDict(convert(values)).lock()


def differences(given: ml_collections.ConfigDict,
                started: ml_collections.ConfigDict) -> list[str]:
  """The fields in which a given config is not the one a run started with.

  A field that is given as `auto`, or left unset, agrees with the answer that
  the run found.
  """
  given, started = flatten(given), flatten(started)
  if given['model.name'] != 'auto' and (
      named := known_weights.split(given['model.weights'])):
    given['model.name'] = known_weights.model_of(*named, given['model.name'])
  auto_model = given['model.name'] == 'auto'
  return [
      f'{field} (now {given.get(field)!r}, started with {started.get(field)!r})'
      for field in sorted(given.keys() | started.keys())
      if given.get(field) != started.get(field)
      and given.get(field) not in ('auto', None)
      and not (field == 'model.width' and auto_model)]
