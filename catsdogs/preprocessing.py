"""What a photo goes through before the model sees it: part of the weights."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from catsdogs.photos import Decoding

# Channel means and deviations of ImageNet in RGB from 0 to 1, with which
# torchvision's and most other weights were made.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# torchvision scales the shorter side to 256 and shows the 224 at the centre.
CROP_FRACTION = 224 / 256


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """How photos become the model's input.

  Attributes:
    image_size: height and width in pixels that the model sees.
    crop_fraction: how much of the photo's shorter side that is.
    mean: subtracted, per channel of RGB from 0 to 1.
    std: divided by.
    interpolation: `bilinear` or `bicubic`, by which the photo was scaled.
  """

  image_size: int
  crop_fraction: float = CROP_FRACTION
  mean: tuple[float, float, float] = IMAGENET_MEAN
  std: tuple[float, float, float] = IMAGENET_STD
  interpolation: str = 'bilinear'

  @property
  def decoding(self) -> Decoding:
    """The scale, and somewhat more than what the model is evaluated on.

    The square that is kept is larger than that by a multiple of four pixels:
    the middle of its middle is what torchvision's CenterCrop, which rounds a
    half to the even number, takes from the whole photo.
    """
    scaled_px = round(self.image_size / self.crop_fraction)
    spare_px = (scaled_px - self.image_size) // 4 * 4
    return Decoding(self.image_size + spare_px, scaled_px, self.interpolation)

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> 'Preprocessing':
    return cls(**{**values, 'mean': tuple(values['mean']),
                  'std': tuple(values['std'])})


def center_crop(images: UInt8[Array, 'b s s 3'],
                size: int) -> UInt8[Array, 'b size size 3']:
  """The middle of each picture, placed as torchvision's CenterCrop does."""
  top = round((images.shape[1] - size) / 2)
  left = round((images.shape[2] - size) / 2)
  return images[:, top:top + size, left:left + size]


def normalize(images: Array, preprocessing: Preprocessing
              ) -> Float[Array, 'b h w 3']:
  """From 0 ... 255 to what the weights expect."""
  mean = jnp.array(preprocessing.mean, jnp.float32) * 255
  std = jnp.array(preprocessing.std, jnp.float32) * 255
  return (images.astype(jnp.float32) - mean) / std


def model_input(images: UInt8[Array, 'b s s 3'],
                preprocessing: Preprocessing) -> Float[Array, 'b h w 3']:
  """What the model is evaluated on."""
  return normalize(center_crop(images, preprocessing.image_size),
                   preprocessing)
