"""Decodes a photo: one way for training, evaluation and prediction.

Pillow decodes, because TensorFlow's decoders ignore EXIF orientation, refuse
some of what people have under a `.jpg`, and take seconds to import where one
photo is to be predicted. Its filters antialias, as torchvision's and timm's
transforms do, which the pretrained weights were evaluated with.
"""

from concurrent import futures
import dataclasses
import io
from typing import Callable
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP')
# Above this, a file is taken for a decompression bomb. Of a JPEG, which is
# scaled while it is decoded, the scaled pixels count: cameras make some of 200
# megapixels. But a progressive one takes memory for all of them.
MAX_PIXELS, _MAX_JPEG_PIXELS = 64 * 2**20, 256 * 2**20
# Above this, photos are decoded one after the other: a WebP takes 24 bytes a
# pixel meanwhile, and there may be a thread for each of many cores. A thread of
# their own does it, as glibc keeps for each thread what it once allocated.
_LARGE_PIXELS = 16 * 2**20
_large_photos = futures.ThreadPoolExecutor(max_workers=1)

# How the pixels must be turned for each EXIF orientation but 1, upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_FILTERS = {'bilinear': Image.Resampling.BILINEAR,
            'bicubic': Image.Resampling.BICUBIC}

# Its own bound is below that.
Image.MAX_IMAGE_PIXELS = None

# What Pillow has to say about odd files concerns nobody while they decode.
warnings.filterwarnings('ignore', module=r'PIL\.')


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How photos are scaled while they are decoded, and what is kept of them.

  Attributes:
    size_px: height and width of the square that is kept, from the middle.
    scaled_px: what the photo's shorter side is scaled to.
    interpolation: `bilinear` or `bicubic`.
  """

  size_px: int
  scaled_px: int
  interpolation: str = 'bilinear'


class BadPhoto(Exception):
  """A file that is no photo; the message is the reason."""


def decode(encoded: bytes, decoding: Decoding
           ) -> UInt8[np.ndarray, 'size size 3']:
  """Decodes a photo upright, scales its shorter side, and crops the centre.

  Args:
    encoded: the bytes of a JPEG, PNG, GIF (its first frame), BMP or WebP.
    decoding: the sizes.

  Raises:
    BadPhoto: the bytes cannot be decoded as any of these.
  """
  if not encoded:
    raise BadPhoto('the file is empty')
  try:
    return np.asarray(_decode(encoded, decoding))
  except BadPhoto:
    raise
  except Image.UnidentifiedImageError as e:
    raise BadPhoto(f'not a {", ".join(FORMATS[:-1])} or {FORMATS[-1]}') from e
  except Exception as e:  # Pillow's plugins raise anything on damaged files.
    reason = ' '.join(str(e).split()) or type(e).__name__
    raise BadPhoto(reason) from e


def decode_or_reason(read: Callable[[], bytes], decoding: Decoding
                     ) -> tuple[UInt8[np.ndarray, 'size size 3'], str]:
  """As `decode`, but of a bad file a black picture and the reason.

  Args:
    read: gives the encoded photo; may raise OSError.
    decoding: the sizes.

  Returns:
    The picture, and an empty string where it is a good one.
  """
  try:
    return decode(read(), decoding), ''
  except BadPhoto as e:
    reason = str(e)
  except OSError as e:
    reason = e.strerror or str(e)
  black = np.zeros((decoding.size_px, decoding.size_px, 3), np.uint8)
  return black, reason or 'unreadable'


def _decode(encoded: bytes, decoding: Decoding) -> Image.Image:
  image = _open(encoded, decoding)
  if image.width * image.height <= _LARGE_PIXELS:
    return _upright_square(image, decoding)
  del image  # Opened anew there, so that nothing of it stays here.
  return _large_photos.submit(lambda: _upright_square(
      _open(encoded, decoding), decoding)).result()


def _open(encoded: bytes, decoding: Decoding) -> Image.Image:
  """Reads the header, and of a PNG the checksums; no pixels as yet."""
  image = Image.open(io.BytesIO(encoded), formats=FORMATS)
  if image.format == 'PNG':
    # While Pillow decodes, it takes any checksum, and shows what it gets.
    image.verify()  # After which the image is of no more use.
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
  # A JPEG far larger than needed is scaled while it is decoded, to no less
  # than twice the size, so that the filter decides how it looks.
  enough = 2 * decoding.scaled_px
  if (min(image.size) >= 2 * enough
      and image.width * image.height <= _MAX_JPEG_PIXELS):
    image.draft(None, (enough, enough))
  if image.width * image.height > MAX_PIXELS:
    raise BadPhoto(f'{image.width} x {image.height} pixels are too many')
  return image


def _upright_square(image: Image.Image, decoding: Decoding) -> Image.Image:
  turn = _TURNS.get(_orientation(image))
  image = _to_rgb(image)
  if turn is not None:
    image = image.transpose(turn)
  return _resize_and_crop(image, decoding)


def _orientation(image: Image.Image) -> int:
  try:
    return image.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception:  # Damaged EXIF data do not spoil the pixels.
    return 1


def _to_rgb(image: Image.Image) -> Image.Image:
  """RGB of 8 bits; what is transparent becomes white."""
  if image.mode.startswith('I'):  # 16 bits of gray.
    values = np.asarray(image)
    gray = (values >> 8).clip(0, 255).astype(np.uint8)
    if image.has_transparency_data:
      gray[values == image.info['transparency']] = 255
    image = Image.fromarray(gray)
  if image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  return image.convert('RGB')


def _resize_and_crop(image: Image.Image, decoding: Decoding) -> Image.Image:
  """What torchvision's Resize and CenterCrop give, without the cut-off part.

  Only the square that stays is computed: the whole of a 30,000 x 10 picture
  would take gigabytes when scaled.
  """
  width, height = image.size
  short, size_px = min(width, height), decoding.size_px
  scaled_width = int(decoding.scaled_px * width / short)
  scaled_height = int(decoding.scaled_px * height / short)
  left = round((scaled_width - size_px) / 2)
  top = round((scaled_height - size_px) / 2)
  x_scale, y_scale = width / scaled_width, height / scaled_height
  box = (left * x_scale, top * y_scale,
         min((left + size_px) * x_scale, width),
         min((top + size_px) * y_scale, height))
  return image.resize((size_px, size_px), _FILTERS[decoding.interpolation],
                      box)
