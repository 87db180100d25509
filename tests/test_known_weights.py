"""torchvision's table of weights, held against torchvision itself."""

import importlib.util
import re

import pytest

from catsdogs.errors import UserError
from catsdogs.models import ARCHITECTURES
from catsdogs.pretrained import known_weights
import peers


def test_the_table_is_torchvisions():
  if not importlib.util.find_spec('torchvision'):
    pytest.skip('the peer, torchvision, is not installed')
  theirs, torchvision_models = {}, peers.torchvision_models()
  for model in ARCHITECTURES:
    for weights in torchvision_models.get_model_weights(model):
      transform = weights.transforms()
      assert transform.crop_size == [224]
      theirs[model, weights.name] = (
          weights.url, weights.meta['_file_size'], transform.resize_size)
  assert theirs == {
      (known.model, known.tag): (known.url, known.mebibytes, [known.resize_px])
      for known in known_weights.WEIGHTS}


def test_each_architecture_has_weights_and_its_best_are_the_latest():
  assert {known.model for known in known_weights.WEIGHTS} == set(ARCHITECTURES)
  for model in ARCHITECTURES:
    tags = [known.tag for known in known_weights.WEIGHTS
            if known.model == model]
    assert known_weights.best(model).tag == max(tags)
  assert known_weights.best('resnet50').tag == 'IMAGENET1K_V2'
  assert known_weights.best('resnet18').tag == 'IMAGENET1K_V1'


def test_the_name_of_a_file_carries_its_hash():
  for known in known_weights.WEIGHTS:
    assert re.fullmatch(rf'{known.model}-[0-9a-f]{{8}}\.pth', known.name)
    assert known.name == f'{known.model}-{known.sha256}.pth'


def test_a_file_is_recognised_by_its_hash_alone():
  for known in known_weights.WEIGHTS:
    assert known_weights.by_hash(known.sha256 + 56 * '0') == known
  assert known_weights.by_hash(known.sha256.upper() + 56 * 'A') == known
  assert known_weights.by_hash(64 * '0') is None


def test_the_share_of_the_photo_that_was_shown():
  assert known_weights.find(
      'resnet50', 'IMAGENET1K_V1').crop_fraction == 224 / 256
  assert known_weights.find(
      'resnet50', 'IMAGENET1K_V2').crop_fraction == 224 / 232
  assert known_weights.best('resnext101_64x4d').crop_fraction == 224 / 232


def test_weights_that_there_are_not_are_refused_with_those_there_are():
  with pytest.raises(UserError, match='IMAGENET1K_V2 of resnet18.*_V1'):
    known_weights.find('resnet18', 'IMAGENET1K_V2')
  with pytest.raises(UserError, match='IMAGENET1K_V1 and IMAGENET1K_V2'):
    known_weights.find('resnet50', 'V2')
  for ask in (lambda: known_weights.find('vgg16', 'IMAGENET1K_V1'),
              lambda: known_weights.best('vgg16')):
    with pytest.raises(UserError, match='vgg16'):
      ask()
