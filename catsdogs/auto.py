"""Decides what `auto` stands for: the real thing where it can be had."""

from concurrent import futures
import dataclasses
import os
import pathlib
from urllib import parse

import ml_collections

from catsdogs.config import (BUNDLED_MODEL, BUNDLED_WIDTH, CONFIG_FILE, load)
from catsdogs.errors import UserError
from catsdogs.pretrained import about, download, hub, known_weights, web

_LOOK_SECONDS = 5.0
_SIZE_WITH_PRETRAINED_PX = 224
_SIZE_WITH_BUNDLED_OR_NONE_PX = 160
_SIZE_OF_DRAWN_PX = 128

# What `tfds:cats_vs_dogs` downloads, from TFDS 4.9.10:
# image_classification/cats_vs_dogs.py and url_checksums/cats_vs_dogs.txt.
_PHOTOS, _PHOTOS_VERSION = 'cats_vs_dogs', '4.0.1'
_PHOTOS_URL = ('https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-'
               '4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip')
_PHOTOS_BYTES = 824_887_076
# Of its 23,262 photos, those that are learnt from.
_PHOTOS_COUNT = 18_610
# What a ResNet-50 learns from on two cores (README.md, Speed), rounded down.
_PHOTOS_AN_HOUR = 20_000


@dataclasses.dataclass(frozen=True)
class _Real:
  """What a field would best stand for.

  Attributes:
    value: of the field.
    place: the folder where it would lie if we had it.
    is_there: whether it does.
    url: where it can be downloaded.
    mebibytes: size of the download.
  """

  value: str
  place: str
  is_there: bool
  url: str
  mebibytes: float

  def lacking(self) -> str:
    """Why it cannot be had; empty where it can. Takes `_LOOK_SECONDS`."""
    if self.is_there:
      return ''
    if web.offline():
      return f'{self.value} is not in {self.place}, and CATSDOGS_OFFLINE is set'
    reason = download.look(self.url, self.mebibytes, _LOOK_SECONDS)
    return reason and (f'{self.value} is not in {self.place}, nor reachable '
                       f'({parse.urlsplit(self.url).netloc}: {reason})')


def resolve(config: ml_collections.ConfigDict, platform: str,
            cache: pathlib.Path, processes: int = 1
            ) -> tuple[ml_collections.ConfigDict, str | None]:
  """Makes every `auto` concrete; takes 5 s at most.

  Longer only where weights of the Hugging Face hub say of which network they
  are: that has to be downloaded.

  Args:
    config: a checked config.
    platform: of the devices: `cpu`, `gpu` or `tpu`.
    cache: the folder for what is made once and used again.
    processes: that take part in the run.

  Returns:
    The concrete config; and what stands in for the real thing, or what the
    real thing asks for, if there is anything to say.

  Raises:
    UserError: there are no weights for the model that is named, what the hub
      says of its weights cannot be had, or several processes might answer
      differently.
  """
  config = config.copy_and_resolve_references()
  data, model = config.data, config.model
  fields = [field for field, value in (('data.source', data.source),
                                       ('model.weights', model.weights))
            if value == 'auto']
  if fields and processes > 1:
    raise UserError(
        f'{" and ".join(f"config.{field}" for field in fields)}: {processes} '
        'processes may not each decide what auto stands for; name it, such as '
        '--config.data.source=folder:PATH --config.model.weights=FILE')
  notice = _choose(config, fields, cache, platform) if fields else None

  _take_over_of_published(config, cache)
  if model.name == 'auto':
    _take_over_of_file(config)
  small = model.weights in ('bundled', 'none')
  if model.name == 'auto':
    model.name = BUNDLED_MODEL if small else known_weights.DEFAULT_MODEL
    model.width = BUNDLED_WIDTH if small else 1.0
  if data.image_size is None:
    data.image_size = (_SIZE_WITH_PRETRAINED_PX if not small
                       else _SIZE_OF_DRAWN_PX if data.source == 'bundled'
                       else _SIZE_WITH_BUNDLED_OR_NONE_PX)
  if model.dtype == 'auto':
    model.dtype = 'float32' if platform == 'cpu' else 'bfloat16'
  return config.lock(), notice


def _take_over_of_published(config: ml_collections.ConfigDict,
                            cache: pathlib.Path) -> None:
  """Network and size of the photos, where the weights are published ones."""
  data, model = config.data, config.model
  if named := known_weights.split(model.weights):
    source, tag = named
    model.name = known_weights.model_of(source, tag, model.name)
    preprocessing = known_weights.find(source, model.name, tag).preprocessing
  elif model.weights.startswith(hub.PREFIX) and (
      model.name == 'auto' or data.image_size is None):
    said = hub.read_about(model.weights.removeprefix(hub.PREFIX), cache)
    preprocessing = said.preprocessing
    if model.name == 'auto':
      model.name = said.model
  else:
    return
  if data.image_size is None:
    data.image_size = preprocessing.image_size


def _take_over_of_file(config: ml_collections.ConfigDict) -> None:
  """Likewise, where they are another run's, or a file's that says so."""
  path = pathlib.Path(os.path.expanduser(config.model.weights))
  if (path / CONFIG_FILE).is_file():
    run = load(path / CONFIG_FILE)
    config.model.name, config.model.width = run.model.name, run.model.width
    image_size = run.data.image_size
  elif path.is_file() and (said := about.beside(path)):
    config.model.name = said.model
    image_size = said.preprocessing.image_size
  else:
    return
  if config.data.image_size is None:
    config.data.image_size = image_size


def _choose(config: ml_collections.ConfigDict, fields: list[str],
            cache: pathlib.Path, platform: str) -> str | None:
  """Sets the fields, of the source and of the weights, that are `auto`."""
  data, model = config.data, config.model
  named = model.name != 'auto'
  real = {}
  if 'data.source' in fields:
    real['data.source'] = _photos()
  if (model.name, model.width) == (BUNDLED_MODEL, BUNDLED_WIDTH):
    if 'model.weights' in fields:  # Made for just this model.
      model.weights = 'bundled'
  elif 'model.weights' in fields:
    real['model.weights'] = _weights(model, cache)
  with futures.ThreadPoolExecutor() as pool:
    lacking = dict(zip(real, pool.map(_Real.lacking, real.values())))

  if named and lacking.get('model.weights'):
    raise UserError(
        f'config.model.weights: no weights for {model.name}: '
        f'{lacking["model.weights"]}; set model.weights to a file of '
        "weights, or to 'none'")
  if not named and any(lacking.values()):  # Both are real, or both bundled.
    stand_in = list(real)
  else:
    stand_in = [field for field in real if lacking[field]]
  config.update_from_flattened_dict(
      {field: 'bundled' if field in stand_in else real[field].value
       for field in real})
  if stand_in:
    return _stand_in_notice(stand_in, real, [*filter(None, lacking.values())])
  photos = _PHOTOS_COUNT * data.sample_fraction * config.train.epochs
  hours = (platform == 'cpu' and data.source == f'tfds:{_PHOTOS}'
           and model.name != BUNDLED_MODEL
           and model.weights not in ('bundled', 'none')
           and photos > _PHOTOS_AN_HOUR)
  return _real_notice(real, named, hours)


def _photos() -> _Real:
  """The photos of `cats_vs_dogs`, without the seconds that TFDS would take."""
  folder = os.environ.get('TFDS_DATA_DIR') or os.path.join(
      os.path.expanduser('~'), 'tensorflow_datasets')
  prepared = os.path.isfile(os.path.join(
      os.path.expanduser(folder), _PHOTOS, _PHOTOS_VERSION,
      'dataset_info.json'))
  return _Real(f'tfds:{_PHOTOS}', folder, prepared, _PHOTOS_URL,
               _PHOTOS_BYTES / 2**20)


def _weights(model: ml_collections.ConfigDict, cache: pathlib.Path) -> _Real:
  """torchvision's best weights of the model.

  Raises:
    UserError: there are none.
  """
  if model.width != 1:
    raise UserError(
        f'config.model.weights: there are no weights of {model.name} with '
        f"model.width {model.width:g}; torchvision's are of width 1; set "
        "model.weights to a file of weights, or to 'none'")
  known = known_weights.best(
      known_weights.DEFAULT_MODEL if model.name == 'auto' else model.name)
  folder = cache / 'weights'
  return _Real(f'torchvision:{known.tag}', str(folder),
               os.path.isfile(folder / known.name), known.url, known.mebibytes)


def _stand_in_notice(fields: list[str], real: dict[str, _Real],
                     reasons: list[str]) -> str:
  """What stands in, why, and the fields that name the real thing."""
  words = {
      'data.source': ('drawn pictures stand in for photos', 'folder:PATH'),
      'model.weights': ('the bundled ResNet-18 of half width stands in for '
                        "torchvision's ResNet-50", 'FILE'),
  }
  what = ', and '.join(words[field][0] for field in fields)
  how = ', '.join(
      f'--config.{field}={words[field][1]} (or {real[field].value})'
      for field in fields)
  return (f'{what[0].upper()}{what[1:]}: {"; ".join(reasons)}. For the real '
          f'thing: {how}')


def _real_notice(real: dict[str, _Real], named: bool, hours: bool
                 ) -> str | None:
  """What the real thing asks for; None where that is nothing."""
  told = []
  downloads = [f'{r.value} ({r.mebibytes * 2**20 / 1e6:.0f} MB, into '
               f'{r.place})' for r in real.values() if not r.is_there]
  if downloads:
    told.append(f'To be downloaded first: {" and ".join(downloads)}.')
  if hours:
    told.append('On a CPU, this run takes hours.')
  quick = [f'--config.{field}=bundled' for field in real
           if field == 'data.source' or not named]
  if told and quick:
    told.append(f'A quick tour instead: {" ".join(quick)}')
  return ' '.join(told) or None
