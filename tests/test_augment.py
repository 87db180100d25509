"""Augmentation: what each draw depends on, and what it may do to a photo."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from catsdogs import augment

KEY = jax.random.key(3)


def settings(**values) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      'crop_scale': (1.0, 1.0), 'flip': False, 'color_jitter': 0.0,
      'mixup': 0.0, 'cutmix': 0.0, 'label_smoothing': 0.0, **values})


ALL = settings(crop_scale=(0.3, 1.0), flip=True, color_jitter=0.4)


def photos(count: int, side: int = 24, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(
      0, 256, (count, side, side, 3)).astype(np.uint8)


@functools.cache
def compiled(config: ml_collections.FrozenConfigDict, size: int):
  return jax.jit(
      lambda key, images: augment.augment(key, images, size, config))


def augmented(images, config, size=16, key=KEY) -> np.ndarray:
  config = ml_collections.FrozenConfigDict(config)
  return np.asarray(compiled(config, size)(key, images))


@functools.lru_cache
def crops_of_coordinates(scale: tuple[float, float], count: int = 2000
                         ) -> np.ndarray:
  """Height and width of random crops as shares, read off their pixels."""
  side, size = 64, 16
  place = (np.arange(side) + 0.5) / side
  image = np.stack(np.broadcast_arrays(place[:, None], place, 0.0), -1)
  crops = jax.jit(jax.vmap(lambda key: augment.random_resized_crop(
      key, jnp.asarray(image, jnp.float32), size, scale)))(
          jax.random.split(KEY, count))
  # Away from the borders, where antialiasing bends the ramp.
  rows = crops[:, -5, 8, 0] - crops[:, 4, 8, 0]
  columns = crops[:, 8, -5, 1] - crops[:, 8, 4, 1]
  return np.stack([rows, columns], 1) * size / 7


def test_an_augmented_batch_has_the_size_asked_for_and_stays_in_range():
  result = augmented(photos(32), settings(
      crop_scale=(0.05, 1.0), flip=True, color_jitter=0.9), size=20)
  assert result.shape == (32, 20, 20, 3) and result.dtype == np.float32
  assert result.min() >= 0 and result.max() <= 255


def test_cropping_alone_stays_in_range():
  white = np.full((16, 24, 24, 3), 255, np.uint8)
  result = augmented(white, settings(crop_scale=(0.05, 1.0)))
  np.testing.assert_allclose(result, 255, rtol=1e-5)


def test_the_same_key_gives_the_same_and_another_key_another_result():
  images = photos(4)
  np.testing.assert_array_equal(augmented(images, ALL), augmented(images, ALL))
  other = augmented(images, ALL, key=jax.random.key(4))
  assert (np.abs(augmented(images, ALL) - other).max(axis=(1, 2, 3)) > 1).all()


def test_a_photo_depends_on_its_place_and_not_on_the_others_of_the_batch():
  images = photos(8)
  few = images[:3].copy()
  few[1] = 255 - few[1]  # A neighbour is another photo.
  np.testing.assert_allclose(augmented(few, ALL)[[0, 2]],
                             augmented(images, ALL)[[0, 2]], atol=1e-3)


def test_the_same_photo_at_two_places_is_augmented_in_two_ways():
  images = np.repeat(photos(1), 8, axis=0)
  result = augmented(images, ALL).reshape(8, -1)
  assert len(np.unique(result.round(2), axis=0)) == 8


def test_the_whole_photo_is_resized_where_nothing_is_random():
  images = photos(4, side=32)
  expected = jax.image.resize(images.astype(np.float32), (4, 16, 16, 3),
                              'linear', antialias=True)
  np.testing.assert_allclose(augmented(images, settings()), expected,
                             atol=0.01)


def test_a_whole_photo_at_its_own_size_is_not_changed():
  images = photos(4, side=16)
  np.testing.assert_allclose(augmented(images, settings()), images, atol=0.01)


def test_about_half_of_the_photos_are_mirrored_and_the_rest_left_alone():
  images = photos(400, side=8)
  result = augmented(images, settings(flip=True), size=8)
  same = np.abs(result - images).max(axis=(1, 2, 3)) < 0.1
  mirrored = np.abs(result - images[:, :, ::-1]).max(axis=(1, 2, 3)) < 0.1
  assert (same ^ mirrored).all()
  assert 160 <= mirrored.sum() <= 240  # Four deviations.


def test_crops_show_the_share_of_the_area_that_was_asked_for():
  areas = crops_of_coordinates((0.3, 0.8)).prod(axis=1)
  assert areas.min() > 0.29 and areas.max() < 0.81
  # Uniform: each fifth of the range holds a fifth, up to five deviations.
  counts, _ = np.histogram(areas, 5, (0.3, 0.8))
  assert (np.abs(counts - 400) < 5 * np.sqrt(2000 * 0.2 * 0.8)).all()


def test_crops_of_nearly_the_whole_photo_never_show_less_than_asked_for():
  areas = crops_of_coordinates((0.9, 1.0)).prod(axis=1)
  assert areas.min() > 0.89 and areas.max() < 1.01


def test_the_sides_of_crops_have_ratios_within_the_limits_and_both_ways():
  height, width = crops_of_coordinates((0.3, 0.8)).T
  ratio = width / height
  assert 0.73 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.36
  assert abs(np.log(ratio).mean()) < 0.02


def test_crops_reach_all_parts_of_the_photo():
  side = 32
  place = np.broadcast_to(np.arange(side, dtype=np.float32)[:, None, None],
                          (side, side, 3))
  crops = jax.jit(jax.vmap(lambda key: augment.random_resized_crop(
      key, jnp.asarray(place), 8, (0.25, 0.25))))(jax.random.split(KEY, 300))
  centers = np.asarray(crops).mean(axis=(1, 2, 3)) / side
  assert centers.min() < 0.3 and centers.max() > 0.7
  assert abs(centers.mean() - 0.5) < 0.05


def test_no_jitter_changes_no_colour():
  image = photos(1)[0].astype(np.float32)
  np.testing.assert_allclose(augment.color_jitter(KEY, image, 0.0), image,
                             atol=1e-3)


def test_jitter_of_a_gray_photo_keeps_it_gray_and_within_its_strength():
  gray = np.full((4, 4, 3), 100.0, np.float32)
  result = np.asarray(jax.jit(jax.vmap(
      lambda key: augment.color_jitter(key, gray, 0.2)))(
          jax.random.split(KEY, 200)))
  np.testing.assert_allclose(result, result[:, :1, :1, :1] * np.ones(
      (4, 4, 3)), rtol=1e-4)
  level = result[:, 0, 0, 0]
  assert 79.9 < level.min() < 83 and 117 < level.max() < 120.1


def test_jitter_varies_contrast_and_saturation_too():
  image = photos(1)[0].astype(np.float32) / 4 + 90  # Far from clipping.
  results = np.asarray(jax.jit(jax.vmap(
      lambda key: augment.color_jitter(key, image, 0.2)))(
          jax.random.split(KEY, 100)))
  contrast = results.std(axis=(1, 2, 3)) / results.mean(axis=(1, 2, 3))
  chroma = (results.max(-1) - results.min(-1)).mean(axis=(1, 2)) / (
      results.mean(-1).std(axis=(1, 2)))
  assert np.ptp(contrast) > 0.05 and np.ptp(chroma) > 0.2


def mixed(config, images, targets, key=KEY):
  # Not jitted: that would compile the draw of a beta anew in each test.
  return [np.asarray(x)
          for x in augment.mix(key, jnp.asarray(images), targets, config)]


def solids(count: int, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
  """Photos of one colour each, a class each: pixels tell where they are from.
  """
  images = np.arange(count, dtype=np.float32)[:, None, None, None]
  return np.tile(images, (1, side, side, 3)), np.eye(count, dtype=np.float32)


def test_without_mixup_and_cutmix_nothing_is_mixed():
  images, targets = solids(4)
  same_images, same_targets = mixed(settings(), images, targets)
  np.testing.assert_array_equal(same_images, images)
  np.testing.assert_array_equal(same_targets, targets)


@pytest.mark.parametrize('values,count', [
    ({'mixup': 0.2}, 5), ({'mixup': 8.0}, 4), ({'cutmix': 1.0}, 5),
    ({'cutmix': 0.01}, 4), ({'cutmix': 1.0}, 1)], ids=str)
def test_targets_are_the_share_that_each_photo_has_of_the_pixels(values,
                                                                 count):
  images, targets = solids(count)
  for seed in range(5):
    new_images, new_targets = mixed(settings(**values), images, targets,
                                    jax.random.key(seed))
    assert new_images.shape == images.shape
    np.testing.assert_allclose(new_targets.sum(axis=1), 1, atol=1e-6)
    assert new_targets.min() >= 0
    # The mean colour is linear in the shares.
    np.testing.assert_allclose(
        new_targets @ np.arange(count), new_images.mean(axis=(1, 2, 3)),
        atol=1e-4)


def test_mixup_blends_whole_photos_and_cutmix_pastes_one_rectangle():
  images, targets = solids(2)
  blended, _ = mixed(settings(mixup=8.0), images, targets)
  assert np.ptp(blended, axis=(1, 2, 3)).max() < 1e-6
  for seed in range(8):
    cut, _ = mixed(settings(cutmix=1.0), images, targets,
                   jax.random.key(seed))
    assert np.isin(cut, [0, 1]).all()
    pasted = cut[0, :, :, 0] == 1
    rows, columns = pasted.any(axis=1), pasted.any(axis=0)
    np.testing.assert_array_equal(pasted, rows[:, None] & columns)
    for line in (rows, columns):  # Without gaps.
      assert np.abs(np.diff(np.r_[0, line.astype(int), 0])).sum() <= 2


def test_with_mixup_and_cutmix_each_batch_draws_one_of_them():
  images, targets = solids(2)
  config = settings(mixup=8.0, cutmix=1.0)
  results, shares = jax.jit(jax.vmap(
      lambda key: augment.mix(key, images, targets, config)))(
          jax.random.split(KEY, 60))
  np.testing.assert_allclose(results.mean(axis=(2, 3, 4)), shares[..., 1],
                             atol=1e-5)
  blended = (~np.isin(results, [0, 1])).any(axis=(1, 2, 3, 4)).sum()
  assert 15 <= blended <= 45


def test_mixup_of_equal_parameters_leans_to_neither_photo():
  images, targets = solids(2)
  shares = np.asarray(jax.jit(jax.vmap(lambda key: augment.mix(
      key, images, targets, settings(mixup=1.0))[1][0, 0]))(
          jax.random.split(KEY, 2000)))
  assert abs(shares.mean() - 0.5) < 0.03
  assert abs(shares.var() - 1 / 12) < 0.01  # Beta(1, 1) is uniform.
