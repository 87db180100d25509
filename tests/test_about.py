"""What Hugging Face's and timm's files say of weights, in our terms."""

import copy
import math

import pytest

from catsdogs.errors import UserError
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained import about, imagenet
from hub_files import PREPROCESSOR, RESNET_18, RESNET_50, TIMM

IMAGENET = tuple(imagenet.classes())
BIT = {'do_center_crop': True, 'do_resize': True, 'resample': 2,
       'crop_size': {'height': 224, 'width': 224},
       'size': {'shortest_edge': 256}, 'image_mean': [0.5, 0.5, 0.5],
       'image_std': [0.5, 0.5, 0.5]}


@pytest.mark.parametrize('config, model', [
    (RESNET_18, 'resnet18'), (RESNET_50, 'resnet50'),
    ({'model_type': 'resnet'}, 'resnet50'),  # transformers' own defaults.
    ({**RESNET_50, 'depths': [2, 2, 2, 2]}, 'resnet26'),
    ({**RESNET_18, 'depths': [3, 4, 6, 3]}, 'resnet34'),
    ({**RESNET_50, 'depths': [3, 8, 36, 3]}, 'resnet152')])
def test_the_architecture_is_known_by_its_fields(config, model):
  assert about.understand('x', config, PREPROCESSOR).model == model


@pytest.mark.parametrize('field, value', [
    ('downsample_in_bottleneck', True), ('downsample_in_first_stage', True),
    ('hidden_sizes', [128, 256, 512, 1024]), ('embedding_size', 32),
    ('hidden_act', 'gelu'), ('num_channels', 1), ('depths', [1, 2, 3, 4]),
    ('model_type', 'convnext')])
def test_another_network_is_refused_by_what_differs(field, value):
  with pytest.raises(UserError, match=r'^hf:o/n ') as refused:
    about.understand('hf:o/n', {**RESNET_50, field: value}, PREPROCESSOR)
  assert str(value).strip('[]') in str(refused.value)


@pytest.mark.parametrize('labels, expected', [
    (None, None), ({}, None), ({'1': 'dog', '0': 'cat'}, ('cat', 'dog')),
    ({str(i): 'x' for i in range(1000)}, 1000 * ('x',)),
    ({str(i): 'tench, Tinca tinca' for i in range(1000)}, IMAGENET),
    ({str(i): 'tench' for i in range(999)}, 999 * ('tench',))])
def test_the_names_of_the_classes(labels, expected):
  said = about.understand('x', {**RESNET_50, 'id2label': labels}, PREPROCESSOR)
  assert said.class_names == expected


@pytest.mark.parametrize('fields, expected', [
    (PREPROCESSOR, Preprocessing(224, 224 / 256, interpolation='bicubic')),
    ({**PREPROCESSOR, 'size': {'shortest_edge': 224}, 'resample': 2},
     Preprocessing(224, 224 / 256)),
    ({**PREPROCESSOR, 'crop_pct': None},
     Preprocessing(224, 224 / 256, interpolation='bicubic')),
    ({**PREPROCESSOR, 'crop_pct': 0.95},  # Rounded down, as they do.
     Preprocessing(224, 224 / 235, interpolation='bicubic')),
    ({**PREPROCESSOR, 'size': 384},
     Preprocessing(384, 1.0, interpolation='bicubic')),
    ({**PREPROCESSOR, 'do_normalize': False},
     Preprocessing(224, 224 / 256, (0,) * 3, (1,) * 3, 'bicubic')),
    (BIT, Preprocessing(224, 224 / 256, (0.5,) * 3, (0.5,) * 3)),
    ({**BIT, 'do_center_crop': False, 'size': {'height': 96, 'width': 96}},
     Preprocessing(96, 1.0, (0.5,) * 3, (0.5,) * 3))])
def test_the_preprocessing(fields, expected):
  preprocessing = about.understand('x', RESNET_50, fields).preprocessing
  assert preprocessing == expected


def test_what_transformers_makes_of_its_size():
  processors = pytest.importorskip('transformers.models.convnext')
  try:
    defaults = processors.ConvNextImageProcessor
  except ImportError as e:
    pytest.skip(f'transformers lacks what it needs: {e}')
  assert defaults.crop_pct == 224 / 256 and defaults.size == {
      'shortest_edge': about._UNCROPPED_PX}


def test_what_timm_says():
  said = about.understand('x', TIMM, None)
  assert said == about.About('resnet50', IMAGENET, Preprocessing(
      160, 160 / 168, interpolation='bicubic'))


@pytest.mark.parametrize('tag, classes, labels, expected', [
    ('a1_in1k', 1000, None, IMAGENET), ('a1_in1k', 2, None, None),
    ('mine', 1000, None, None), ('mine', 2, ['cat', 'dog'], ('cat', 'dog')),
    ('bamboo', 0, None, None)])
def test_the_classes_that_timm_names(tag, classes, labels, expected):
  config = copy.deepcopy(TIMM)
  config['pretrained_cfg'].update(tag=tag, num_classes=classes,
                                  label_names=labels)
  assert about.understand('x', config, None).class_names == expected


def test_a_network_of_timms_that_is_none_of_ours_is_refused():
  with pytest.raises(UserError, match="x is of timm's seresnet50.*ResNet"):
    about.understand('x', {**TIMM, 'architecture': 'seresnet50'}, None)


@pytest.mark.parametrize('field, value', [
    ('size', None), ('size', '224'), ('size', {}), ('size', 224.5),
    ('crop_pct', 2), ('crop_pct', 'x'), ('resample', 0), ('image_mean', 0.5),
    ('image_mean', [0.5]), ('image_std', [0, 0, 0]), ('image_std', None),
    ('image_mean', [math.nan, 0, 0])])
def test_nonsense_is_a_user_error(field, value):
  with pytest.raises(UserError, match='^hf:o/n.*makes no sense.*name others'):
    about.understand('hf:o/n', RESNET_50, {**PREPROCESSOR, field: value})


@pytest.mark.parametrize('config', [
    {**RESNET_50, 'depths': 3}, {**RESNET_50, 'id2label': {'5': 'x'}},
    {**RESNET_50, 'id2label': 3}, {'pretrained_cfg': {}},
    {**TIMM, 'pretrained_cfg': None}, {**TIMM, 'architecture': []}])
def test_a_config_of_nonsense_is_a_user_error(config):
  with pytest.raises(UserError, match='makes no sense'):
    about.understand('x', config, PREPROCESSOR)


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'\xff', b'[' * 100_000])
def test_what_is_no_json_of_fields_is_a_user_error(tmp_path, content):
  (tmp_path / 'config.json').write_bytes(content)
  with pytest.raises(UserError, match='config.json cannot be read'):
    about.beside(tmp_path / 'model.safetensors')


def test_nothing_is_beside(tmp_path):
  assert about.beside(tmp_path / 'model.safetensors') is None
