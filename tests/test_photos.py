"""Photos of every kind, turn and state of damage, and torchvision's scaling."""

import io
import struct

import numpy as np
from PIL import Image
import pytest

from bad_photos import encoded, ORIENTATION, png, scene, turned
from catsdogs import photos
from catsdogs.photos import BadPhoto, Decoding

# pytest undoes what the module itself silences.
pytestmark = pytest.mark.filterwarnings(r'ignore:::PIL\.')

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3


def decode(content: bytes, size_px: int) -> np.ndarray:
  return photos.decode(content, Decoding(size_px, size_px))


def plain(colour: tuple[int, ...] | int, mode: str = 'RGB',
          size: tuple[int, int] = (20, 20)) -> Image.Image:
  return Image.new(mode, size, colour)


def assert_near(pixels, expected, atol: float) -> None:
  np.testing.assert_allclose(np.asarray(pixels, float),
                             np.broadcast_to(expected, np.shape(pixels)),
                             rtol=0, atol=atol)


def mean_difference(first, second) -> float:
  return np.abs(np.asarray(first, float) - np.asarray(second, float)).mean()


# Formats and modes.


@pytest.mark.parametrize('kind,options,tolerance', [
    ('JPEG', {'quality': 95}, 5), ('JPEG', {'progressive': True}, 8),
    ('MPO', {'quality': 95}, 5), ('PNG', {}, 0), ('BMP', {}, 0),
    ('WEBP', {'lossless': True}, 0), ('WEBP', {'quality': 95}, 8),
    ('GIF', {}, 12)])
def test_each_format_gives_its_picture(kind, options, tolerance):
  image = scene(48, 48)
  pixels = decode(encoded(image, kind, **options), 48)
  assert pixels.dtype == np.uint8 and pixels.shape == (48, 48, 3)
  assert mean_difference(pixels, image) <= tolerance


def test_a_grayscale_jpeg_has_three_equal_channels():
  image = scene(40, 40).convert('L')
  pixels = decode(encoded(image, 'JPEG', quality=95), 40)
  assert mean_difference(pixels, np.asarray(image)[..., None]) < 3
  assert (pixels[..., 0] == pixels[..., 1]).all()
  assert (pixels[..., 0] == pixels[..., 2]).all()


def test_a_cmyk_jpeg_keeps_its_colours():
  image = scene(40, 40)
  pixels = decode(encoded(image.convert('CMYK'), 'JPEG', quality=95), 40)
  assert mean_difference(pixels, image) < 8


@pytest.mark.parametrize('mode', ['1', 'L'])
def test_a_bitmap_and_grays_are_exact(mode):
  image = scene(40, 40).convert(mode)
  pixels = decode(encoded(image, 'PNG'), 40)
  np.testing.assert_array_equal(pixels, np.asarray(image.convert('RGB')))


def test_a_palette_gives_its_colours():
  image = scene(40, 40).quantize(16)
  pixels = decode(encoded(image, 'PNG'), 40)
  np.testing.assert_array_equal(pixels, np.asarray(image.convert('RGB')))


@pytest.mark.parametrize('kind', ['PNG', 'GIF'])
def test_what_is_transparent_in_a_palette_becomes_white(kind):
  image = Image.new('P', (20, 20), 1)
  image.putpalette([*BLUE, *RED])
  image.paste(0, (0, 0, 20, 10))
  pixels = decode(encoded(image, kind, transparency=0), 20)
  assert_near(pixels[:10], WHITE, 0)
  assert_near(pixels[10:], RED, 0)


def test_a_transparent_colour_becomes_white():
  image = plain(RED)
  image.paste(BLUE, (0, 0, 20, 10))
  pixels = decode(encoded(image, 'PNG', transparency=BLUE), 20)
  assert_near(pixels[:10], WHITE, 0)
  assert_near(pixels[10:], RED, 0)


@pytest.mark.parametrize('kind,options', [
    ('PNG', {}), ('WEBP', {'lossless': True, 'exact': True})])
@pytest.mark.parametrize('alpha,expected', [
    (0, WHITE), (255, (200, 0, 0)), (128, (227, 127, 127))])
def test_alpha_is_blended_with_white(kind, options, alpha, expected):
  image = plain((200, 0, 0, alpha), 'RGBA')
  assert_near(decode(encoded(image, kind, **options), 20), expected, 1)


def test_a_gray_with_alpha_is_blended_with_white():
  assert_near(decode(encoded(plain((0, 0), 'LA'), 'PNG'), 20), 255, 0)
  assert_near(decode(encoded(plain((0, 128), 'LA'), 'PNG'), 20), 127, 1)


def test_16_bits_of_gray_are_scaled_not_clipped():
  ramp = np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)
  pixels = decode(encoded(Image.fromarray(ramp), 'PNG'), 40)
  assert_near(pixels, (ramp / 257)[..., None], 1)


def test_a_transparent_one_of_16_bits_of_gray_becomes_white():
  values = np.full((20, 20), 0x8000, np.uint16)
  values[:10] = 3
  content = encoded(Image.fromarray(values), 'PNG', transparency=3)
  assert_near(decode(content, 20)[:10], 255, 0)
  assert_near(decode(content, 20)[10:], 128, 0)


def test_16_bits_of_colour_are_scaled_not_clipped():
  row = b'\0' + struct.pack('>HHH', 0x2000, 0x8000, 0xe000) * 20
  assert_near(decode(png(20, 20, 16, 2, row * 20), 20), (32, 128, 224), 1)


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG'])
def test_of_an_animation_the_first_frame_is_seen(kind):
  frames = [plain(colour) for colour in (RED, BLUE, GREEN)]
  options = {'lossless': True} if kind == 'WEBP' else {}
  animation = encoded(frames[0], kind, save_all=True, duration=50,
                      append_images=frames[1:], **options)
  assert_near(decode(animation, 20), RED, 0)


# Orientation.


@pytest.mark.parametrize('kind,options,tolerance', [
    ('JPEG', {'quality': 95, 'subsampling': 0}, 3), ('PNG', {}, 0),
    ('WEBP', {'lossless': True}, 0)])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_orientation_gives_the_upright_picture(
    kind, options, tolerance, orientation):
  upright = scene(48, 32)
  pixels = decode(turned(upright, kind, orientation, **options), 32)
  assert mean_difference(pixels, np.asarray(upright)[:, 8:40]) <= tolerance


@pytest.mark.parametrize('orientation', [3, 6, 8])
def test_a_large_photo_is_turned_as_a_small_one(orientation):
  upright = scene(600, 400)
  pixels = decode(turned(upright, 'JPEG', orientation, quality=95), 64)
  assert mean_difference(pixels, decode(encoded(upright, 'PNG'), 64)) < 2


@pytest.mark.parametrize('orientation', [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
  image = scene(40, 40)
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  pixels = decode(encoded(image, 'PNG', exif=exif), 40)
  np.testing.assert_array_equal(pixels, np.asarray(image))


@pytest.mark.parametrize('exif', [
    b'', b'Exif', b'Exif\0\0', b'Exif\0\0MM\0*', b'Exif\0\0' + b'\xff' * 50,
    b'Exif\0\0II*\0\x08\0\0\0\xff\xff', b'Exif\0\0II*\0\xff\xff\xff\xff',
    b'Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\xff\xff\xff\x7f\xff\xff\xff\x7f'])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_damaged_exif_spoils_nothing(kind, exif):
  image = scene(40, 40)
  pixels = decode(encoded(image, kind, quality=95, exif=exif), 40)
  assert mean_difference(pixels, image) < 8


def test_exif_that_was_cut_short_spoils_nothing():
  exif = Image.Exif()
  exif[ORIENTATION] = 1
  exif[0x010f] = 'The maker of the camera'
  whole = exif.tobytes()
  image = scene(40, 40)
  for length in range(len(whole)):
    pixels = decode(encoded(image, 'JPEG', exif=whole[:length]), 40)
    assert mean_difference(pixels, image) < 8


# Damage.


@pytest.mark.parametrize('kind,options', [
    ('JPEG', {}), ('JPEG', {'progressive': True}), ('PNG', {}), ('GIF', {}),
    ('BMP', {}), ('WEBP', {}), ('WEBP', {'lossless': True})])
def test_a_truncated_photo_is_bad_and_never_half_a_photo(kind, options):
  whole = encoded(scene(150, 100), kind, **options)
  for tenth in range(1, 10):
    with pytest.raises(BadPhoto) as error:
      decode(whole[:len(whole) * tenth // 10], 64)
    assert str(error.value)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'BMP', 'WEBP'])
def test_flipped_bytes_give_a_photo_or_a_reason(kind):
  whole = np.frombuffer(encoded(scene(60, 40), kind), np.uint8)
  random = np.random.default_rng(0)
  for _ in range(100):
    damaged = whole.copy()
    places = random.integers(0, len(whole), 5)
    damaged[places] = random.integers(0, 256, 5)
    try:
      assert decode(damaged.tobytes(), 32).shape == (32, 32, 3)
    except BadPhoto as error:
      assert str(error) and '\n' not in str(error)


@pytest.mark.parametrize('content', [
    b'', b'\0', b'Not Found', b'<html>\n</html>', b'<svg/>', b'\xff\xd8\xff',
    b'\x89PNG\r\n\x1a\n', b'GIF89a', b'BM', b'RIFF\0\0\0\0WEBP', b'\0' * 999,
    np.random.default_rng(0).bytes(5000)])
def test_what_is_no_photo_is_bad(content):
  with pytest.raises(BadPhoto) as error:
    decode(content, 32)
  assert str(error.value) and '\n' not in str(error.value)


def test_the_reason_tells_an_empty_file_from_another_format():
  with pytest.raises(BadPhoto, match='empty'):
    decode(b'', 32)
  with pytest.raises(BadPhoto, match='JPEG, PNG, GIF, BMP or WEBP'):
    decode(encoded(plain(RED), 'TIFF'), 32)


@pytest.mark.parametrize('width,height', [
    (12_000, 12_000), (100_000, 100_000), (2**31 - 1, 1000)])
def test_a_huge_header_is_refused_for_its_pixels(width, height):
  with pytest.raises(BadPhoto, match='pixels'):
    decode(png(width, height, 8, 2), 32)


# Scaling.


def resized_and_cropped(image: Image.Image, resize_px: int,
                        crop_px: int) -> np.ndarray:
  """torchvision's Resize and CenterCrop: the whole is scaled, then cut."""
  short = min(image.size)
  size = tuple(int(resize_px * side / short) for side in image.size)
  left, top = (round((side - crop_px) / 2.0) for side in size)
  whole = image.resize(size, Image.Resampling.BILINEAR)
  return np.asarray(whole.crop((left, top, left + crop_px, top + crop_px)))


@pytest.mark.parametrize('size', [
    (256, 256), (257, 256), (300, 200), (199, 301), (333, 1001), (1024, 683),
    (97, 41), (3, 7), (500, 499), (641, 480), (1500, 90)])
def test_the_scaling_is_that_of_torchvision(size):
  """A decoded size of 256, of which evaluation shows the inner 224."""
  image = scene(*size)
  pixels = decode(encoded(image, 'PNG'), 256)
  assert_near(pixels, resized_and_cropped(image, 256, 256), 1)
  assert_near(pixels[16:240, 16:240], resized_and_cropped(image, 256, 224), 1)


@pytest.mark.parametrize('size,size_px', [((701, 522), 64), ((400, 900), 96),
                                          ((1030, 1030), 32)])
def test_a_large_jpeg_looks_as_if_it_were_decoded_in_full(size, size_px):
  jpeg = encoded(scene(*size), 'JPEG', quality=92)
  with Image.open(io.BytesIO(jpeg)) as full:
    expected = resized_and_cropped(full, size_px, size_px)
  assert mean_difference(decode(jpeg, size_px), expected) < 1.5


def test_a_jpeg_of_200_megapixels_is_scaled_while_it_is_decoded():
  large = encoded(Image.new('L', (16_320, 12_240), 77), 'JPEG')
  assert (decode(large, 64) == 77).all()


def test_the_shortest_pictures_are_magnified():
  assert_near(decode(encoded(plain(GREEN, size=(1, 1)), 'PNG'), 64), GREEN, 0)


@pytest.mark.parametrize('size', [(30_000, 10), (10, 30_000), (30_000, 1)])
def test_a_very_long_picture_shows_its_middle(size):
  """Scaled as a whole, it would take gigabytes."""
  width, height = size
  image = plain(RED, size=size)
  image.paste(GREEN, (width // 2 - 15, height // 2 - 15,
                      width // 2 + 15, height // 2 + 15))
  assert_near(decode(encoded(image, 'PNG'), 224), GREEN, 0)
