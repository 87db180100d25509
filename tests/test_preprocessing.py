"""What a photo goes through before the model sees it."""

import io
import json

import numpy as np
import peers
from PIL import Image
import pytest

from catsdogs.photos import decode
from catsdogs.preprocessing import (IMAGENET_MEAN, IMAGENET_STD,
                                    Preprocessing, center_crop, model_input,
                                    normalize)


def photos(count, side):
  return np.random.default_rng(0).integers(
      0, 256, (count, side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize('image_size,decoded', [
    (224, (256, 256)), (128, (146, 144)), (32, (37, 36)), (64, (73, 72))])
def test_photos_are_decoded_larger_by_what_the_crop_leaves_out(image_size,
                                                               decoded):
  decoding = Preprocessing(image_size).decoding
  assert (decoding.scaled_px, decoding.size_px) == decoded


def test_without_a_crop_photos_are_decoded_as_the_model_sees_them():
  for image_size in (32, 97, 224):
    decoding = Preprocessing(image_size, 1.0).decoding
    assert decoding.size_px == decoding.scaled_px == image_size


def test_it_survives_json():
  values = Preprocessing(96, 0.95, (0.5, 0.25, 0.1), (0.2, 1 / 3, 1.0))
  assert Preprocessing.from_dict(json.loads(json.dumps(
      values.to_dict()))) == values


@pytest.mark.parametrize('side,size,first', [
    (256, 224, 16), (37, 32, 2), (35, 32, 2), (33, 32, 0), (32, 32, 0)])
def test_the_crop_is_where_torchvision_s_is(side, size, first):
  images = photos(2, side)
  np.testing.assert_array_equal(
      center_crop(images, size),
      images[:, first:first + size, first:first + size])


def test_black_and_white_are_what_imagenet_s_weights_expect():
  images = np.stack([np.zeros((2, 2, 3)), np.full((2, 2, 3), 255)])
  black, white = normalize(images.astype(np.uint8), Preprocessing(2))
  mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
  np.testing.assert_allclose(black[0, 0], -mean / std, rtol=1e-5)
  np.testing.assert_allclose(white[1, 1], (1 - mean) / std, rtol=1e-5)


def test_the_model_s_input_is_the_normalised_middle_in_float32():
  images = photos(3, 37)
  preprocessing = Preprocessing(32, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 2.0))
  result = model_input(images, preprocessing)
  assert result.dtype == np.float32
  np.testing.assert_allclose(
      result, (images[:, 2:34, 2:34] / 255 - (0.1, 0.2, 0.3)) / (1, 0.5, 2),
      atol=1e-5)


# Against the originals, on a photo larger than they want it, and not square.

@pytest.fixture(scope='module')
def photo() -> bytes:
  """A JPEG of 500 x 375 pixels, as sharp as photos are."""
  random = np.random.default_rng(0)
  picture = np.zeros((375, 500, 3))
  for cells in (4, 16, 64, 256):
    noise = random.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
    picture += np.asarray(Image.fromarray(noise).resize(
        (500, 375), Image.Resampling.BICUBIC)) * 0.6 * (4 / cells)**0.5
  buffer = io.BytesIO()
  Image.fromarray((picture * 255 / picture.max()).astype(np.uint8)).save(
      buffer, 'JPEG', quality=90)
  return buffer.getvalue()


@pytest.mark.parametrize('resize_px', [256, 235, 232, 230])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_a_photo_is_what_torchvision_makes_of_it(photo, resize_px,
                                                 interpolation):
  pytest.importorskip('torch', reason='the peer, torch, is not installed')
  peers.torchvision_models()
  # pylint: disable-next=g-import-not-at-top
  from torchvision import transforms
  theirs = transforms.Compose([
      transforms.Resize(resize_px,
                        transforms.InterpolationMode(interpolation)),
      transforms.CenterCrop(224), transforms.ToTensor(),
      transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(
          Image.open(io.BytesIO(photo))).numpy().transpose(1, 2, 0)
  preprocessing = Preprocessing(224, 224 / resize_px,
                                interpolation=interpolation)
  ours = model_input(decode(photo, preprocessing.decoding)[None],
                     preprocessing)[0]
  difference = np.abs(ours - theirs) * np.array(IMAGENET_STD)
  assert difference.mean() < 0.1 / 255
