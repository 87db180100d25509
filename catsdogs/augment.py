"""Random augmentation of a batch, on the accelerator, inside the step.

Every draw is a function of a key and of the photo's place in the global batch,
so it is the same on one device and on many, and after an interruption.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8
import ml_collections

# Szegedy et al. 2014 (arXiv:1409.4842), section 6.
ASPECT_RATIOS = (3 / 4, 4 / 3)
# Rec. 601 luma, as Pillow's conversion to gray.
_LUMA = (0.299, 0.587, 0.114)


def augment(key: Key[Array, ''], images: UInt8[Array, 'b s s 3'],
            size: int, config: ml_collections.ConfigDict
            ) -> Float[Array, 'b size size 3']:
  """Crops, mirrors and recolours each photo by itself.

  Args:
    key: of the step.
    images: the decoded photos, 0 to 255.
    size: height and width in pixels of the result.
    config: the config's `augment` part.

  Returns:
    The photos, 0 to 255.
  """
  def augment_one(place, image):
    keys = jax.random.split(jax.random.fold_in(key, place), 3)
    image = random_resized_crop(keys[0], image.astype(jnp.float32), size,
                                config.crop_scale)
    if config.flip:
      image = jnp.where(jax.random.bernoulli(keys[1]), image[:, ::-1], image)
    if config.color_jitter:
      image = color_jitter(keys[2], image, config.color_jitter)
    return image

  return jax.vmap(augment_one)(jnp.arange(len(images)), images)


def random_resized_crop(key: Key[Array, ''], image: Float[Array, 's s 3'],
                        size: int, scale: tuple[float, float]
                        ) -> Float[Array, 'size size 3']:
  """Shows a random part of the photo, antialiased, at the size asked for.

  Args:
    key: of this photo.
    image: 0 to 255.
    size: height and width in pixels of the result.
    scale: least and largest share of the photo's area that is shown.
  """
  side = image.shape[0]
  area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
  share = jax.random.uniform(area_key, minval=scale[0], maxval=scale[1])
  # Of the ratios, those with which so large a part is within the photo.
  ratio = jnp.exp(jax.random.uniform(
      ratio_key, minval=jnp.maximum(math.log(ASPECT_RATIOS[0]),
                                    jnp.log(share)),
      maxval=jnp.minimum(math.log(ASPECT_RATIOS[1]), -jnp.log(share))))
  height, width = side * jnp.sqrt(share / ratio), side * jnp.sqrt(share * ratio)
  top = jax.random.uniform(top_key) * (side - height)
  left = jax.random.uniform(left_key) * (side - width)
  zoom = jnp.array([size / height, size / width])
  return jax.image.scale_and_translate(
      image, (size, size, 3), (0, 1), zoom,
      -zoom * jnp.array([top, left]), method='linear', antialias=True)


def color_jitter(key: Key[Array, ''], image: Float[Array, 'h w 3'],
                 strength: float) -> Float[Array, 'h w 3']:
  """Varies brightness, contrast and saturation by up to a share each."""
  brightness, contrast, saturation = 1 + strength * jax.random.uniform(
      key, (3,), minval=-1, maxval=1)
  luma = jnp.array(_LUMA)
  image = image * brightness
  gray = (image @ luma).mean()
  image = gray + contrast * (image - gray)
  gray = (image @ luma)[..., None]
  image = gray + saturation * (image - gray)
  return image.clip(0, 255)


def mix(key: Key[Array, ''], images: Float[Array, 'b h w 3'],
        targets: Float[Array, 'b classes'],
        config: ml_collections.ConfigDict
        ) -> tuple[Float[Array, 'b h w 3'], Float[Array, 'b classes']]:
  """Mixes each photo and its target with those of another one.

  Mixup (arXiv:1710.09412) blends them, cutmix (arXiv:1905.04899) pastes a
  rectangle. With both, each batch draws one.
  """
  if not config.mixup and not config.cutmix:
    return images, targets
  choice_key, mix_key = jax.random.split(key)
  if config.mixup and config.cutmix:
    return jax.lax.cond(jax.random.bernoulli(choice_key), _mixup, _cutmix,
                        mix_key, images, targets, config.mixup, config.cutmix)
  mixing = _mixup if config.mixup else _cutmix
  return mixing(mix_key, images, targets, config.mixup, config.cutmix)


def _mixup(key, images, targets, mixup, cutmix):
  del cutmix
  share = jax.random.beta(key, mixup, mixup)
  return (share * images + (1 - share) * images[::-1],
          share * targets + (1 - share) * targets[::-1])


def _cutmix(key, images, targets, mixup, cutmix):
  del mixup
  share_key, box_key = jax.random.split(key)
  height, width = images.shape[1:3]
  side = jnp.sqrt(1 - jax.random.beta(share_key, cutmix, cutmix))
  center_y, center_x = jax.random.uniform(box_key, (2,))
  rows = _inside(height, center_y, side)
  columns = _inside(width, center_x, side)
  pasted = rows[:, None] & columns[None, :]
  # The rectangle may leave the picture; what is seen of it counts.
  share = 1 - pasted.mean()
  return (jnp.where(pasted[None, :, :, None], images[::-1], images),
          share * targets + (1 - share) * targets[::-1])


def _inside(length: int, center: Float[Array, ''], side: Float[Array, '']
            ) -> Int[Array, 'length']:
  place = (jnp.arange(length) + 0.5) / length
  return jnp.abs(place - center) < side / 2
