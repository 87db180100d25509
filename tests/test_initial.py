"""Where a run's weights come from, and what comes along with them."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from safetensors import numpy as safetensors

from catsdogs import models
from catsdogs.errors import UserError
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained import bundled, imagenet, known_weights
from catsdogs.pretrained.initial import initial_variables, open_pretrained
from catsdogs.restore import zero_shot_model
from configs import finetune
from hub_files import PREPROCESSOR, RESNET_18, put_on_hub
from web_server import WebServer
from weight_files import (IMAGENET_IDS, small_shapes, weights_like, write_own,
                          write_safetensors, write_weights_zip)

THEIRS = IMAGENET_IDS
OURS = ('cat', 'dog')


def config_of(weights: str, image_size: int = 48):
  config = finetune.get_config('resnet18').unlock()
  config.model.width, config.model.dtype = 0.125, 'float32'
  config.model.weights, config.data.image_size = weights, image_size
  return config


def variables_of(config, class_names, tmp_path):
  pretrained = open_pretrained(config, tmp_path)
  model = models.create_model(config.model, len(class_names))
  return initial_variables(config, pretrained, model, class_names)


def test_random_weights_are_nobodys(tmp_path):
  config = config_of('none')
  assert open_pretrained(config, tmp_path) is None
  _, origin = variables_of(config, OURS, tmp_path)
  assert origin == 'Random weights.'


def test_a_file_of_ours_tells_its_classes_and_preprocessing(tmp_path):
  file = tmp_path / 'own.safetensors'
  write_own(file)
  pretrained = open_pretrained(config_of(str(file)), tmp_path)
  assert pretrained.class_names == THEIRS
  assert pretrained.preprocessing == Preprocessing(48, 0.9, std=(0.5,) * 3)


def test_a_head_stays_behind_where_the_classes_differ(tmp_path):
  """Though they are as many: their order would be another."""
  file = tmp_path / 'own.safetensors'
  tensors = write_own(file)
  theirs, origin = variables_of(config_of(str(file)), THEIRS, tmp_path)
  assert origin.endswith('its head too.')
  np.testing.assert_array_equal(theirs['params']['head']['kernel'],
                                tensors['params/head/kernel'])
  others, origin = variables_of(config_of(str(file)), ('a', 'b', 'c', 'd'),
                                tmp_path)
  assert origin.endswith('a new head.')
  assert not np.any(others['params']['head']['kernel'])
  np.testing.assert_array_equal(others['params']['stem']['conv']['kernel'],
                                tensors['params/stem/conv/kernel'])


@pytest.fixture(name='known')
def fixture_known(tmp_path, monkeypatch) -> known_weights.KnownWeights:
  """A published file of weights, in the folder `cache`."""
  file = tmp_path / 'cache' / 'weights' / 'published.pth'
  file.parent.mkdir(parents=True)
  write_weights_zip(file, weights_like(small_shapes(classes=1000)))
  known = known_weights.KnownWeights(
      'torchvision', 'resnet18', 'IMAGENET1K_V1',
      'http://127.0.0.1:9/published.pth',
      f'sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}',
      file.stat().st_size / 2**20, Preprocessing(224, 224 / 232))
  monkeypatch.setattr(known_weights, 'WEIGHTS', (known,))
  return known


@pytest.mark.parametrize('how', ['by name', 'by content'])
def test_published_weights_come_with_imagenets_classes(tmp_path, known, how):
  """Also where they are given as a file, whatever its name."""
  cache = tmp_path / 'cache'
  weights = 'torchvision:IMAGENET1K_V1'
  if how == 'by content':
    weights = str((cache / 'weights' / 'published.pth').rename(
        tmp_path / 'misnamed.bin'))
  pretrained = open_pretrained(config_of(weights), cache)
  assert pretrained.class_names == tuple(imagenet.classes())
  assert pretrained.preprocessing == Preprocessing(48, 224 / 232)
  assert 'torchvision' in pretrained.origin


@pytest.mark.parametrize('how', ['md5', 'name'])
def test_other_publishers_preprocessing_comes_along(tmp_path, known,
                                                    monkeypatch, how):
  file = tmp_path / 'cache' / 'weights' / 'published.pth'
  md5 = hashlib.md5(file.read_bytes()).hexdigest()
  preprocessing = Preprocessing(160, 1.0, (0.5,) * 3, (0.25,) * 3, 'bicubic')
  monkeypatch.setattr(known_weights, 'WEIGHTS', (dataclasses.replace(
      known, source='bit', hash=f'md5:{md5}' if how == 'md5' else '',
      preprocessing=preprocessing, imagenet=False),))
  pretrained = open_pretrained(config_of(str(file)), tmp_path)
  assert pretrained.preprocessing == dataclasses.replace(preprocessing,
                                                         image_size=48)
  assert pretrained.class_names is None
  assert "bit's resnet18" in pretrained.origin


def hugging_face(url: str, monkeypatch):
  monkeypatch.setenv('HF_ENDPOINT', url)
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  monkeypatch.delenv('CATSDOGS_OFFLINE', raising=False)


def test_weights_of_the_hub_come_with_what_is_said_there(tmp_path, monkeypatch):
  file = write_safetensors(tmp_path / 'x',
                           weights_like(small_shapes(classes=2)))
  with WebServer(b'') as web:
    hugging_face(web.root, monkeypatch)
    put_on_hub(web, 'me/pets', {
        'config.json': json.dumps({
            **RESNET_18, 'id2label': {'0': 'cat', '1': 'dog'}}).encode(),
        'preprocessor_config.json': json.dumps(PREPROCESSOR).encode(),
        'model.safetensors': file.read_bytes()})
    config = config_of('hf:me/pets')
    pretrained = open_pretrained(config, tmp_path)
    assert pretrained.class_names == OURS
    assert pretrained.preprocessing == Preprocessing(
        48, 224 / 256, interpolation='bicubic')
    config.model.name = 'resnet50'
    web.paths.clear()
    with pytest.raises(UserError, match='of resnet18, not of resnet50; set'):
      open_pretrained(config, tmp_path)
  assert not web.paths
  monkeypatch.setenv('CATSDOGS_OFFLINE', '1')
  config.model.name = 'resnet18'
  again = open_pretrained(config, tmp_path)
  assert again.preprocessing == pretrained.preprocessing


def test_timms_weights_are_had_of_the_hub(tmp_path, monkeypatch):
  file = write_safetensors(tmp_path / 'x',
                           weights_like(small_shapes(classes=1000)))
  with WebServer(b'') as web:
    hugging_face(web.root, monkeypatch)
    put_on_hub(web, 'timm/resnet18.a1_in1k',
               {'model.safetensors': file.read_bytes()})
    pretrained = open_pretrained(config_of('timm:a1_in1k'), tmp_path)
  assert pretrained.class_names == tuple(imagenet.classes())
  assert pretrained.preprocessing == Preprocessing(
      48, 224 / 235, interpolation='bicubic')
  assert "timm's resnet18, a1_in1k" in pretrained.origin


def test_a_file_has_what_is_said_beside_it(tmp_path):
  file = write_safetensors(tmp_path / 'model.safetensors',
                           weights_like(small_shapes(classes=2)))
  (tmp_path / 'config.json').write_text(json.dumps(
      {**RESNET_18, 'id2label': {'0': 'cat', '1': 'dog'}}))
  with pytest.raises(UserError, match='preprocessor_config.json is not beside'):
    open_pretrained(config_of(str(file)), tmp_path)
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(PREPROCESSOR))
  pretrained = open_pretrained(config_of(str(file)), tmp_path)
  assert pretrained.class_names == OURS
  assert pretrained.preprocessing.interpolation == 'bicubic'
  (tmp_path / 'config.json').write_text('{"seed": 0}')  # Of something else.
  assert open_pretrained(config_of(str(file)), tmp_path).class_names is None


def test_a_file_that_nobody_knows_says_nothing_of_its_classes(tmp_path):
  file = write_weights_zip(tmp_path / 'x.pth',
                           weights_like(small_shapes(classes=1000)))
  pretrained = open_pretrained(config_of(str(file)), tmp_path)
  assert pretrained.class_names is None
  assert zero_shot_model(config_of(str(file)), pretrained, OURS) is None


def test_the_same_classes_in_another_order_are_put_in_order(tmp_path):
  file = tmp_path / 'own.safetensors'
  theirs = write_own(file)['params/head/kernel']
  variables, _ = variables_of(config_of(str(file)), THEIRS[::-1], tmp_path)
  np.testing.assert_array_equal(variables['params']['head']['kernel'],
                                theirs[:, ::-1])


def test_a_new_head_begins_as_the_mean_of_their_classes(tmp_path):
  file = tmp_path / 'own.safetensors'
  theirs = write_own(file)['params/head/kernel'].astype(np.float32)
  variables, origin = variables_of(config_of(str(file)), OURS, tmp_path)
  assert "the mean of its classes'" in origin
  np.testing.assert_allclose(
      variables['params']['head']['kernel'],
      np.stack([theirs[:, 2:].mean(axis=1), theirs[:, 1]], axis=1), rtol=1e-5)
  assert variables['params']['head']['bias'].shape == (2,)


@pytest.mark.parametrize('about', [
    '{', '{"class_names": ["a"]}', '[]',
    '{"class_names": ["a"], "preprocessing": {"size": 3}}',
    '{"class_names": ["a"], "preprocessing": {"image_size": 64, "mean": '
    '[0, 0, 0], "std": [1, 1, 1]}}'])  # Its head has more outputs.
def test_a_file_that_says_nonsense_of_itself_is_refused(tmp_path, about):
  file = tmp_path / 'own.safetensors'
  safetensors.save_file(write_own(file), file, {bundled.KEY: about})
  with pytest.raises(UserError, match='save it anew'):
    open_pretrained(config_of(str(file)), tmp_path)


def test_the_bundled_file_is_checked(tmp_path, monkeypatch):
  file = tmp_path / 'bundled.safetensors'
  write_own(file)
  monkeypatch.setattr(bundled, 'FILE', file)
  with pytest.raises(UserError, match='is damaged'):
    open_pretrained(config_of('bundled'), tmp_path)


def test_a_folder_that_is_no_run_gives_no_weights(tmp_path):
  with pytest.raises(UserError, match='config.model.weights.*is no run'):
    open_pretrained(config_of(str(tmp_path)), tmp_path)


def test_weights_that_do_not_exist_are_refused(tmp_path):
  with pytest.raises(UserError, match='there is no file or run'):
    open_pretrained(config_of(str(tmp_path / 'nothing')), tmp_path)


def test_the_zero_shot_model_keeps_their_head(tmp_path):
  file = tmp_path / 'own.safetensors'
  tensors = write_own(file)
  config = config_of(str(file))
  answer = zero_shot_model(config, open_pretrained(config, tmp_path), OURS)
  assert answer.class_names == OURS and answer.groups.shape == (4, 2)
  assert answer.model.num_classes == 4
  np.testing.assert_array_equal(answer.variables['params']['head']['bias'],
                                tensors['params/head/bias'])


def test_who_knows_just_our_classes_needs_no_grouping(tmp_path):
  file = tmp_path / 'own.safetensors'
  write_own(file, OURS)
  config = config_of(str(file))
  assert zero_shot_model(config, open_pretrained(config, tmp_path),
                         OURS) is None
