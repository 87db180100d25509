"""The weights that come with the project are what their card says."""

import json
import pathlib
import re

from flax import traverse_util
import numpy as np
import pytest
import safetensors

from catsdogs.config import BUNDLED_MODEL, BUNDLED_WIDTH
from catsdogs.datasets import drawn
from catsdogs.preprocessing import Preprocessing, model_input
from catsdogs.pretrained import bundled, imagenet
from catsdogs.pretrained.initial import open_pretrained
from catsdogs.pretrained.read import read_tensors, sha256
from catsdogs.pretrained.zero_shot import grouping
from catsdogs.restore import zero_shot_model
from configs import finetune
from weight_files import small_shapes

CARD = bundled.FILE.with_suffix('.md').read_text()


@pytest.fixture(name='about', scope='module')
def fixture_about() -> dict:
  with safetensors.safe_open(bundled.FILE, framework='numpy') as file:
    return json.loads(file.metadata()[bundled.KEY])


def test_the_file_is_the_one_of_the_card_and_small():
  assert sha256(bundled.FILE) == bundled.SHA256
  assert f'`{bundled.SHA256}`' in CARD
  assert bundled.FILE.stat().st_size <= 12e6


def test_kernels_are_float16_and_all_is_finite_and_of_the_architecture():
  tensors, _ = read_tensors(bundled.FILE)
  shapes = traverse_util.flatten_dict(
      small_shapes(BUNDLED_MODEL, 275, BUNDLED_WIDTH), sep='/')
  assert {name: tensor.shape for name, tensor in tensors.items()} == {
      name: shape.shape for name, shape in shapes.items()}
  for tensor in tensors.values():
    assert tensor.dtype == (np.float16 if tensor.ndim > 1 else np.float32)
    assert np.isfinite(tensor).all()


def test_the_card_lists_the_classes_in_the_order_of_the_head(about):
  listed = re.findall(r'^\d+\. `(n\d{8})` (.*)$', CARD, re.MULTILINE)
  assert [name for name, _ in listed] == about['class_names']
  assert dict(listed).items() <= imagenet.classes().items()


def test_cats_and_dogs_are_among_them(about):
  groups = grouping(about['class_names'], ('cat', 'dog'))
  assert np.isfinite(groups).sum(axis=0).tolist() == [3, 18]


def test_their_features_tell_drawn_cats_from_drawn_dogs():
  """By the nearer mean of others like it, though they know only photos."""
  config = finetune.get_config(BUNDLED_MODEL).unlock()
  config.model.width, config.model.dtype = BUNDLED_WIDTH, 'float32'
  config.model.weights, config.data.image_size = 'bundled', 128
  answer = zero_shot_model(config, open_pretrained(config, pathlib.Path()),
                           drawn.KINDS)
  pictures = [drawn.draw(kind, np.random.default_rng([5, seed]))
              for seed in range(100) for kind in drawn.KINDS]
  size = answer.preprocessing.decoding.size_px
  images = np.stack([picture.resize((size, size)) for picture in pictures])
  features = np.asarray(answer.model.apply(
      answer.variables, model_input(images, answer.preprocessing),
      method='features')['pooled'])
  cats, dogs = features[:100:2].mean(0), features[1:100:2].mean(0)
  is_dog = (features[100:] - (cats + dogs) / 2) @ (dogs - cats) > 0
  # Of 100 guesses, 65 or more are right in 0.2% of all cases.
  assert (is_dog == np.tile([False, True], 50)).mean() >= 0.65


def test_the_card_gives_the_preprocessing(about):
  preprocessing = Preprocessing.from_dict(about['preprocessing'])
  assert (f'the shorter side is {preprocessing.decoding.scaled_px} px, the '
          f'middle {preprocessing.image_size} px of it') in CARD
  for value in (*preprocessing.mean, *preprocessing.std):
    assert f'{value:g}' in CARD
