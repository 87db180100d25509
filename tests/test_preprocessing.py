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
from catsdogs.pretrained import about, known_weights


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


def seen_by_us(photo: bytes, source: str, model: str, tag: str):
  """A photo as the weights see it, and their preprocessing."""
  preprocessing = known_weights.find(source, model, tag).preprocessing
  decoded = decode(photo, preprocessing.decoding)
  return np.asarray(model_input(decoded[None], preprocessing)[0]), preprocessing


def check_alike(ours: np.ndarray, theirs, preprocessing: Preprocessing):
  """Within 1/255 in the mean, as shares of white."""
  theirs = np.asarray(theirs)
  if theirs.shape[0] == 3:
    theirs = theirs.transpose(1, 2, 0)
  assert ours.shape == theirs.shape
  difference = np.abs(ours - theirs) * np.array(preprocessing.std)
  print(difference.mean() * 255)  # Seen with `pytest -rP`.
  assert difference.mean() < 1 / 255


@pytest.mark.parametrize('tag', ['IMAGENET1K_V1', 'IMAGENET1K_V2'])
def test_a_photo_is_what_torchvision_makes_of_it(photo, tag):
  pytest.importorskip('torch', reason='the peer, torch, is not installed')
  weights = peers.torchvision_models().get_weight(f'ResNet50_Weights.{tag}')
  ours, preprocessing = seen_by_us(photo, 'torchvision', 'resnet50', tag)
  theirs = weights.transforms()(Image.open(io.BytesIO(photo)))
  check_alike(ours, theirs, preprocessing)


@pytest.mark.parametrize('model, tag', [
    ('resnet50', 'a1_in1k'), ('resnet18', 'tv_in1k'), ('resnet50d', 'ra2_in1k'),
    ('bit_r50x1', 'goog_in21k')])
def test_a_photo_is_what_timm_makes_of_it(photo, model, tag):
  pytest.importorskip('torch', reason='the peer, torch, is not installed')
  peers.torchvision_models()  # Which timm imports.
  timm = pytest.importorskip('timm',
                             reason='the peer, timm, is not installed')
  if model.startswith('bit_'):
    ours, preprocessing = seen_by_us(photo, 'bit', model, 'BiT-M-R50x1')
    theirs, size = 'resnetv2_50x1_bit', (3, 224, 224)
  else:
    ours, preprocessing = seen_by_us(photo, 'timm', model, tag)
    theirs, size = model, None
  config = timm.data.resolve_data_config(
      {'input_size': size} if size else {},
      pretrained_cfg=timm.get_pretrained_cfg(f'{theirs}.{tag}').to_dict())
  transform = timm.data.create_transform(**config)
  check_alike(ours, transform(Image.open(io.BytesIO(photo))), preprocessing)


def test_a_photo_is_what_transformers_makes_of_it(photo):
  pytest.importorskip('torch', reason='the peer, torch, is not installed')
  transformers = pytest.importorskip(
      'transformers', reason='the peer, transformers, is not installed')
  # As https://huggingface.co/microsoft/resnet-50 has it.
  fields = {'crop_pct': 0.875, 'do_normalize': True, 'do_resize': True,
            'image_mean': list(IMAGENET_MEAN), 'image_std': list(IMAGENET_STD),
            'resample': 3, 'size': {'shortest_edge': 224}}
  preprocessing = about.understand(
      'x', {'model_type': 'resnet', 'depths': [3, 4, 6, 3],
            'hidden_sizes': [256, 512, 1024, 2048], 'embedding_size': 64,
            'layer_type': 'bottleneck', 'downsample_in_first_stage': False,
            'id2label': {'0': 'cat'}}, fields).preprocessing
  processor = transformers.ConvNextImageProcessor(**fields)
  theirs = processor(Image.open(io.BytesIO(photo)),
                     return_tensors='np')['pixel_values'][0]
  decoded = decode(photo, preprocessing.decoding)
  ours = np.asarray(model_input(decoded[None], preprocessing)[0])
  check_alike(ours, theirs, preprocessing)


@pytest.mark.parametrize('model, module', [('resnet50v1', 'resnet'),
                                           ('resnet50v2', 'resnet_v2')])
def test_pixels_are_what_keras_makes_of_them(model, module):
  keras = pytest.importorskip('keras',
                              reason='the peer, keras, is not installed')
  preprocessing = known_weights.find('keras', model, 'imagenet').preprocessing
  pixels = np.random.default_rng(0).integers(0, 256, (1, 9, 9, 3), np.uint8)
  theirs = getattr(keras.applications, module).preprocess_input(
      pixels.astype(np.float32))
  if model == 'resnet50v1':  # Blue first there; our kernel was turned.
    theirs = theirs[..., ::-1]
  np.testing.assert_allclose(normalize(pixels, preprocessing), theirs,
                             atol=1e-4)


@pytest.mark.parametrize('resize_px', [256, 235, 232, 230])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_a_photo_is_cut_where_torchvision_cuts_it(photo, resize_px,
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
