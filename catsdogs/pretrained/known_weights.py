"""torchvision's ImageNet weights: where each file lies, and how it was used."""

import dataclasses

from catsdogs.errors import UserError

_ADDRESS = 'https://download.pytorch.org/models/'
_CROP_PX = 224


@dataclasses.dataclass(frozen=True)
class KnownWeights:
  """A published file of weights.

  Attributes:
    model: name of the architecture, the same as ours; of width 1.
    tag: torchvision's name of the weights.
    url: of the file.
    sha256: the first digits of the file's SHA-256, which its name carries.
    mebibytes: size of the file, to three decimals.
    resize_px: to which the shorter side of a photo was scaled, before 224 x 224
      pixels were cut from its middle.
  """

  model: str
  tag: str
  url: str
  sha256: str
  mebibytes: float
  resize_px: int

  @property
  def name(self) -> str:
    """Of the file."""
    return self.url.rpartition('/')[2]

  @property
  def crop_fraction(self) -> float:
    """The share of the scaled photo's side that the network was shown."""
    return _CROP_PX / self.resize_px


def _weights(model: str, version: int, sha256: str, mebibytes: float,
             resize_px: int) -> KnownWeights:
  return KnownWeights(model, f'IMAGENET1K_V{version}',
                      f'{_ADDRESS}{model}-{sha256}.pth', sha256, mebibytes,
                      resize_px)


# From torchvision 0.28, torchvision/models/resnet.py. A model's best is last.
WEIGHTS = (
    _weights('resnet18', 1, 'f37072fd', 44.661, 256),
    _weights('resnet34', 1, 'b627a593', 83.275, 256),
    _weights('resnet50', 1, '0676ba61', 97.781, 256),
    _weights('resnet50', 2, '11ad3fa6', 97.79, 232),
    _weights('resnet101', 1, '63fe2227', 170.511, 256),
    _weights('resnet101', 2, 'cd907fc2', 170.53, 232),
    _weights('resnet152', 1, '394f9c45', 230.434, 256),
    _weights('resnet152', 2, 'f82ba261', 230.474, 232),
    _weights('wide_resnet50_2', 1, '95faca4d', 131.82, 256),
    _weights('wide_resnet50_2', 2, '9ba9bcbe', 263.124, 232),
    _weights('wide_resnet101_2', 1, '32ee1156', 242.896, 256),
    _weights('wide_resnet101_2', 2, 'd733dc28', 484.747, 232),
    _weights('resnext50_32x4d', 1, '7cdf4587', 95.789, 256),
    _weights('resnext50_32x4d', 2, '1a0047aa', 95.833, 232),
    _weights('resnext101_32x8d', 1, '8ba56ff5', 339.586, 256),
    _weights('resnext101_32x8d', 2, '110c445d', 339.673, 232),
    _weights('resnext101_64x4d', 1, '173b62eb', 319.318, 232),
)
TAGS = tuple(sorted({weights.tag for weights in WEIGHTS}))


def find(model: str, tag: str) -> KnownWeights:
  """The weights of that tag.

  Raises:
    UserError: torchvision has none such for this model.
  """
  for weights in (of_model := _of(model)):
    if weights.tag == tag:
      return weights
  tags = ' and '.join(weights.tag for weights in of_model)
  raise UserError(
      f'torchvision has no weights {tag} of {model}, '
      + (f'only {tags}' if tags else f'and no others of {model} either'))


def best(model: str) -> KnownWeights:
  """torchvision's latest weights of a model.

  Raises:
    UserError: it has none of this model.
  """
  if not (of_model := _of(model)):
    raise UserError(f'torchvision has no weights of {model}')
  return of_model[-1]


def by_hash(sha256: str) -> KnownWeights | None:
  """The weights whose file has this SHA-256, given in full."""
  for weights in WEIGHTS:
    if sha256.lower().startswith(weights.sha256):
      return weights
  return None


def _of(model: str) -> list[KnownWeights]:
  return [weights for weights in WEIGHTS if weights.model == model]
