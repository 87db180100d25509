"""Published weights: where each file lies, and how its network was used."""

import csv
import dataclasses
import difflib
import functools
import pathlib
import re

from catsdogs.errors import UserError
from catsdogs.preprocessing import Preprocessing

SOURCES = ('torchvision', 'timm', 'keras', 'bit')
# What `auto` stands for where a source has weights of several models.
DEFAULT_MODEL = 'resnet50'

_PYTORCH = 'https://download.pytorch.org/models/'
_KERAS = 'https://storage.googleapis.com/tensorflow/keras-applications/resnet/'
_BIT = 'https://storage.googleapis.com/bit_models/'
_TIMM = pathlib.Path(__file__).parent.parent / 'assets/timm_resnets.tsv'
# The end of the names of files by torch's custom.
_SHA256_IN_NAME = re.compile(r'-([0-9a-f]{8})\.pth$')
# Tags that a message lists where there are many.
_LISTED = 5


@dataclasses.dataclass(frozen=True)
class KnownWeights:
  """A published file of weights.

  Attributes:
    source: one of `SOURCES`.
    model: name of the architecture, by our names; of width 1.
    tag: the source's name of the weights.
    url: of the file; empty where only the hub has it.
    hash: of that file, `sha256:` or `md5:` and its digits, of which SHA-256 may
      lack all but the first; empty where only its server tells.
    mebibytes: size of the file, to three decimals; None where unknown.
    preprocessing: what the photos went through, of the size they had.
    imagenet: whether the head's outputs are ImageNet's 1000 classes.
    hub: the repository of the Hugging Face hub that has the same weights, and
      is preferred; or empty.
  """

  source: str
  model: str
  tag: str
  url: str
  hash: str
  mebibytes: float | None
  preprocessing: Preprocessing
  imagenet: bool = True
  hub: str = ''

  @property
  def name(self) -> str:
    """Of the file."""
    return self.url.rpartition('/')[2]


def cut_from(image_size: int, crop_fraction: float) -> float:
  """The exact share of a photo whose size is rounded down before it is cut."""
  return image_size / int(image_size / crop_fraction)


def _torchvision(model: str, version: int, sha256: str, mebibytes: float,
                 resize_px: int) -> KnownWeights:
  return KnownWeights('torchvision', model, f'IMAGENET1K_V{version}',
                      f'{_PYTORCH}{model}-{sha256}.pth', f'sha256:{sha256}',
                      mebibytes, Preprocessing(224, 224 / resize_px))


def _keras(model: str, name: str, md5: str) -> KnownWeights:
  if model.endswith('v2'):
    preprocessing = Preprocessing(224, mean=(0.5,) * 3, std=(0.5,) * 3)
  else:  # Caffe's: the mean alone, from 0 to 255.
    preprocessing = Preprocessing(
        224, mean=(123.68 / 255, 116.779 / 255, 103.939 / 255),
        std=(1 / 255,) * 3)
  return KnownWeights(
      'keras', model, 'imagenet',
      f'{_KERAS}{name}_weights_tf_dim_ordering_tf_kernels.h5', f'md5:{md5}',
      None, preprocessing)


def _bit(kind: str, size: str, suffix: str = '') -> KnownWeights:
  """Trained on ImageNet (S), on ImageNet-21k (M), or on both in turn."""
  tag = f'BiT-{kind}-{size}{suffix}'
  return KnownWeights(
      'bit', f'bit_{size.lower()}', tag, f'{_BIT}{tag}.npz', '', None,
      Preprocessing(224, mean=(0.5,) * 3, std=(0.5,) * 3),
      imagenet=kind == 'S' or bool(suffix))


# All but timm's. A model's best are last.
WEIGHTS = (
    # From torchvision 0.28, torchvision/models/resnet.py.
    _torchvision('resnet18', 1, 'f37072fd', 44.661, 256),
    _torchvision('resnet34', 1, 'b627a593', 83.275, 256),
    _torchvision('resnet50', 1, '0676ba61', 97.781, 256),
    _torchvision('resnet50', 2, '11ad3fa6', 97.79, 232),
    _torchvision('resnet101', 1, '63fe2227', 170.511, 256),
    _torchvision('resnet101', 2, 'cd907fc2', 170.53, 232),
    _torchvision('resnet152', 1, '394f9c45', 230.434, 256),
    _torchvision('resnet152', 2, 'f82ba261', 230.474, 232),
    _torchvision('wide_resnet50_2', 1, '95faca4d', 131.82, 256),
    _torchvision('wide_resnet50_2', 2, '9ba9bcbe', 263.124, 232),
    _torchvision('wide_resnet101_2', 1, '32ee1156', 242.896, 256),
    _torchvision('wide_resnet101_2', 2, 'd733dc28', 484.747, 232),
    _torchvision('resnext50_32x4d', 1, '7cdf4587', 95.789, 256),
    _torchvision('resnext50_32x4d', 2, '1a0047aa', 95.833, 232),
    _torchvision('resnext101_32x8d', 1, '8ba56ff5', 339.586, 256),
    _torchvision('resnext101_32x8d', 2, '110c445d', 339.673, 232),
    _torchvision('resnext101_64x4d', 1, '173b62eb', 319.318, 232),
    # From Keras 3.15, keras/src/applications/resnet.py.
    _keras('resnet50v1', 'resnet50', '2cb95161c43110f7111970584f804107'),
    _keras('resnet101v1', 'resnet101', 'f1aeb4b969a6efcfb50fad2f0c20cfc5'),
    _keras('resnet152v1', 'resnet152', '100835be76be38e30d865e96f2aaae62'),
    _keras('resnet50v2', 'resnet50v2', '3ef43a0b657b3be2300d5770ece849e0'),
    _keras('resnet101v2', 'resnet101v2', '6343647c601c52e1368623803854d971'),
    _keras('resnet152v2', 'resnet152v2', 'a49b44d1979771252814e80f8ec446f9'),
    # From https://github.com/google-research/big_transfer.
    *(_bit(kind, size, suffix)
      for size in ('R50x1', 'R50x3', 'R101x1', 'R101x3', 'R152x2', 'R152x4')
      for kind, suffix in (('S', ''), ('M', ''), ('M', '-ILSVRC2012'))),
)


@functools.cache
def _timm() -> tuple[KnownWeights, ...]:
  """The plain ResNets of timm 1.0.31, timm/models/resnet.py."""
  with _TIMM.open(newline='') as file:
    return tuple(map(_of_timm, csv.DictReader(file, delimiter='\t')))


def _of_timm(row: dict[str, str]) -> KnownWeights:
  sha256, image_size = _SHA256_IN_NAME.search(row['url']), int(
      row['image_size'])
  mean, std = (tuple(map(float, row[field].split(',')))
               for field in ('mean', 'std'))
  return KnownWeights(
      'timm', row['model'], row['tag'], row['url'],
      f'sha256:{sha256[1]}' if sha256 else '', None,
      Preprocessing(image_size, cut_from(image_size, float(row['crop_pct'])),
                    mean, std, row['interpolation']),
      # Without a head, there are none.
      imagenet=row['classes'] == '1000', hub=row['hub'])


def of_source(source: str) -> list[KnownWeights]:
  """All weights of a source."""
  return [weights for weights in (_timm() if source == 'timm' else WEIGHTS)
          if weights.source == source]


def split(weights: str) -> tuple[str, str] | None:
  """Source and tag of `SOURCE:TAG`; None for what is none such."""
  source, colon, tag = weights.partition(':')
  return (source, tag) if colon and source in SOURCES else None


def model_of(source: str, tag: str, model: str) -> str:
  """The name of the architecture that the weights are of.

  Args:
    source: one of `SOURCES`.
    tag: of the weights, known or not.
    model: what a person calls it: `auto`, or a name.
  """
  if source == 'bit' and model == 'auto':
    return next((weights.model for weights in of_source('bit')
                 if weights.tag == tag), DEFAULT_MODEL)
  model = DEFAULT_MODEL if model == 'auto' else model
  if source == 'keras' and model in ('resnet50', 'resnet101', 'resnet152'):
    return f'{model}v1'  # What Keras calls by that name.
  return model


def find(source: str, model: str, tag: str) -> KnownWeights:
  """The weights of that tag.

  Raises:
    UserError: the source has none such for this model.
  """
  of_all = of_source(source)
  for weights in of_all:
    if (weights.model, weights.tag) == (model, tag):
      return weights
  tags = [weights.tag for weights in of_all if weights.model == model]
  models = [weights.model for weights in of_all if weights.tag == tag]
  if tags:
    there_is = f'only {" and ".join(tags)}'
  elif models:
    there_is = f'they are of {_listed(models)}'
  elif near := difflib.get_close_matches(
      tag, sorted({weights.tag for weights in of_all}), _LISTED):
    there_is = f'nor of that name; alike are {" and ".join(near)}'
  else:
    there_is = f'and no others of {model} either'
  raise UserError(f'{source} has no weights {tag} of {model}, {there_is}')


def best(model: str) -> KnownWeights:
  """torchvision's latest weights of a model.

  Raises:
    UserError: it has none of this model.
  """
  of_model = [weights for weights in of_source('torchvision')
              if weights.model == model]
  if of_model:
    return of_model[-1]
  others = [f'{weights.source}:{weights.tag}' for source in SOURCES
            for weights in of_source(source) if weights.model == model]
  raise UserError(
      f'torchvision has no weights of {model}'
      + (f'; set config.model.weights to {_listed(others, "or")}'
         if others else ''))


def by_hash(full_hash: str) -> KnownWeights | None:
  """The weights whose file has this hash, given in full.

  Args:
    full_hash: `sha256:` or `md5:` and the digits.
  """
  for weights in (*WEIGHTS, *_timm()):
    if weights.hash and full_hash.lower().startswith(weights.hash):
      return weights
  return None


def by_name(name: str) -> KnownWeights | None:
  """The weights of a file of this name, where no hash is published."""
  for weights in WEIGHTS:
    if not weights.hash and weights.name == name:
      return weights
  return None


def _listed(names: list[str], word: str = 'and') -> str:
  more = len(names) - _LISTED
  return (', '.join(names[:_LISTED]) + f' {word} {more} more' if more > 0
          else f' {word} '.join(names))
