"""The weights that come with the project are what their card says."""

import json
import re

from flax import traverse_util
import numpy as np
import pytest
import safetensors

from catsdogs.config import BUNDLED_MODEL, BUNDLED_WIDTH
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained import bundled, imagenet
from catsdogs.pretrained.load import read_tensors, sha256
from catsdogs.pretrained.zero_shot import grouping
from weight_files import small_shapes

CARD = bundled.FILE.with_suffix('.md').read_text()


@pytest.fixture(name='about', scope='module')
def fixture_about() -> dict:
  with safetensors.safe_open(bundled.FILE, framework='numpy') as file:
    return json.loads(file.metadata()[bundled.KEY])


def test_the_file_is_the_one_of_the_card_and_small():
  assert f'`{sha256(bundled.FILE)}`' in CARD
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


def test_the_card_gives_the_preprocessing(about):
  preprocessing = Preprocessing.from_dict(about['preprocessing'])
  assert f'{preprocessing.image_size} px' in CARD
  for value in (*preprocessing.mean, *preprocessing.std):
    assert f'{value:g}' in CARD
