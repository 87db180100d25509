"""The tables of published weights, held against their publishers' own."""

import importlib.util
import re

import pytest

from catsdogs.architectures import ARCHITECTURES
from catsdogs.errors import UserError
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained import known_weights
import peers

EVERY = [known for source in known_weights.SOURCES
         for known in known_weights.of_source(source)]


def test_torchvisions_are_torchvisions():
  if not importlib.util.find_spec('torchvision'):
    pytest.skip('the peer, torchvision, is not installed')
  theirs, torchvision_models = {}, peers.torchvision_models()
  of_torchvision = known_weights.of_source('torchvision')
  for model in {known.model for known in of_torchvision}:
    for weights in torchvision_models.get_model_weights(model):
      transform = weights.transforms()
      assert transform.crop_size == [224]
      assert transform.interpolation.value == 'bilinear'
      theirs[model, weights.name] = (
          weights.url, weights.meta['_file_size'], transform.resize_size)
  assert theirs == {
      (known.model, known.tag): (known.url, known.mebibytes,
                                 [known.preprocessing.decoding.scaled_px])
      for known in of_torchvision}


def test_timms_are_timms():
  if not (importlib.util.find_spec('timm')
          and importlib.util.find_spec('torchvision')):
    pytest.skip('the peer, timm, is not installed')
  peers.torchvision_models()
  from timm import models  # pylint: disable=g-import-not-at-top
  theirs = {}
  for model, default in models.resnet.default_cfgs.items():
    for tag, cfg in default.cfgs.items():
      if model in ARCHITECTURES and tag != 'untrained':
        size = cfg.input_size[1]
        # What timm does not list, the hub has not either.
        on_hub = models.is_model_pretrained(f'{model}.{tag}')
        theirs[model, tag] = (
            cfg.url or '', f'timm/{model}.{tag}' if on_hub else '',
            Preprocessing(size, size / int(size / cfg.crop_pct), cfg.mean,
                          cfg.std, cfg.interpolation), cfg.num_classes == 1000)
  assert theirs == {
      (known.model, known.tag): (known.url, known.hub, known.preprocessing,
                                 known.imagenet)
      for known in known_weights.of_source('timm')}


def test_keras_are_keras():
  resnet = pytest.importorskip('keras.src.applications.resnet')
  assert {
      (resnet.BASE_WEIGHTS_PATH + known.name, known.hash)
      for known in known_weights.of_source('keras')} == {
          (f'{resnet.BASE_WEIGHTS_PATH}{name}_weights_tf_dim_ordering_tf_'
           'kernels.h5', f'md5:{whole}')
          for name, (whole, _) in resnet.WEIGHTS_HASHES.items()
          if not name.startswith('resnext')}


@pytest.mark.parametrize('model, module', [
    ('resnet50v1', 'resnet'), ('resnet101v2', 'resnet_v2')])
def test_keras_photos_go_through_what_keras_does(model, module):
  np = pytest.importorskip('numpy')
  keras = pytest.importorskip(f'keras.src.applications.{module}')
  image = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3) * 20
  known = known_weights.find('keras', model, 'imagenet').preprocessing
  ours = (image / 255 - np.array(known.mean)) / np.array(known.std)
  theirs = keras.preprocess_input(image.copy())
  if model == 'resnet50v1':  # Caffe's channels are in the other order.
    theirs = theirs[..., ::-1]
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bits_are_of_the_sizes_published_and_know_imagenet_if_trained_on_it():
  of_bit = known_weights.of_source('bit')
  assert {known.model for known in of_bit} == {
      name for name in ARCHITECTURES if name.startswith('bit_')}
  assert {known.tag: known.imagenet for known in of_bit
          if known.model == 'bit_r101x3'} == {
              'BiT-S-R101x3': True, 'BiT-M-R101x3': False,
              'BiT-M-R101x3-ILSVRC2012': True}
  known = known_weights.find('bit', 'bit_r50x1', 'BiT-M-R50x1')
  assert known.url == (
      'https://storage.googleapis.com/bit_models/BiT-M-R50x1.npz')
  assert known.preprocessing == Preprocessing(
      224, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_all_are_of_architectures_that_there_are_and_of_one_name_each():
  assert {known.model for known in EVERY} <= set(ARCHITECTURES)
  names = [(known.source, known.model, known.tag) for known in EVERY]
  assert len(set(names)) == len(names)
  assert len({known.name for known in known_weights.WEIGHTS}) == len(
      known_weights.WEIGHTS)  # They lie in one folder.


def test_what_a_source_calls_by_a_name():
  for model in ('resnet18', 'resnet50', 'resnet50v2'):
    for source in ('timm', 'torchvision'):
      assert known_weights.model_of(source, 'x', model) == model
  assert known_weights.model_of('timm', 'a1_in1k', 'auto') == 'resnet50'
  assert known_weights.model_of('keras', 'imagenet', 'auto') == 'resnet50v1'
  assert known_weights.model_of('keras', 'x', 'resnet152') == 'resnet152v1'
  assert known_weights.model_of('keras', 'x', 'resnet50v2') == 'resnet50v2'
  assert known_weights.model_of('bit', 'BiT-S-R152x4', 'auto') == 'bit_r152x4'
  assert known_weights.model_of('bit', 'BiT-S-R152x4', 'resnet50') == 'resnet50'


@pytest.mark.parametrize('weights, expected', [
    ('timm:a1_in1k', ('timm', 'a1_in1k')), ('keras:', ('keras', '')),
    ('timm', None), ('hf:a/b', None), ('./timm:x', None), ('auto', None)])
def test_what_is_a_source_and_a_tag(weights, expected):
  assert known_weights.split(weights) == expected


def test_the_best_are_torchvisions_latest():
  assert known_weights.best('resnet50').tag == 'IMAGENET1K_V2'
  assert known_weights.best('resnet18').tag == 'IMAGENET1K_V1'
  with pytest.raises(UserError, match='weights of vgg16$'):
    known_weights.best('vgg16')
  with pytest.raises(UserError, match='config.model.weights to keras:imagenet'):
    known_weights.best('resnet50v1')
  with pytest.raises(UserError, match='timm:a1_in1k, .* or [0-9] more$'):
    known_weights.best('resnet50d')


def test_the_name_of_a_file_carries_its_hash():
  for known in known_weights.of_source('torchvision'):
    assert re.fullmatch(rf'{known.model}-[0-9a-f]{{8}}\.pth', known.name)
    assert f'sha256:{known.name[-12:-4]}' == known.hash


def test_a_file_is_recognised_by_its_hash_alone():
  for known in EVERY:
    if known.hash:
      found = known_weights.by_hash(known.hash + 56 * '0')
      assert found.hash == known.hash and found.name == known.name
      if known.source != 'timm':  # It hosts some of torchvision's too.
        assert found == known
  sha256 = known_weights.best('resnet50').hash.partition(':')[2]
  assert known_weights.by_hash(f'sha256:{sha256.upper()}{56 * "A"}')
  assert known_weights.by_hash(f'md5:{sha256}{24 * "0"}') is None
  for other in (f'sha256:{64 * "0"}', f'md5:{32 * "0"}'):
    assert known_weights.by_hash(other) is None


def test_a_file_without_a_published_hash_is_recognised_by_its_name():
  assert known_weights.by_name('BiT-M-R50x1.npz').tag == 'BiT-M-R50x1'
  assert known_weights.by_name('resnet50-11ad3fa6.pth') is None
  assert known_weights.by_name('') is None


def test_weights_that_there_are_not_are_refused_with_those_there_are():
  for arguments, words in [
      (('torchvision', 'resnet18', 'IMAGENET1K_V2'), 'resnet18.*only.*_V1'),
      (('torchvision', 'resnet50', 'V2'), 'IMAGENET1K_V1 and IMAGENET1K_V2'),
      (('timm', 'resnet18d', 'a1_in1k'), 'only ra2_in1k and ra4_e3600_r224_in'),
      (('timm', 'vgg16', 'a1_in1k'), 'of vgg16, they are of .*resnet50.* more'),
      (('timm', 'vgg16', 'a1_in1'), 'alike are .*a1_in1k'),
      (('bit', 'resnet50', 'BiT-M-R50x1'), 'they are of bit_r50x1$'),
      (('bit', 'resnet50', 'BiT-M-R50x2'), 'alike are .*BiT-M-R50x1'),
      (('keras', 'resnet18', 'imagenet'), 'they are of resnet50v1, '),
      (('torchvision', 'vgg16', 'x'), 'no others of vgg16 either')]:
    with pytest.raises(UserError, match=words):
      known_weights.find(*arguments)
