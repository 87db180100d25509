"""Configs: what is refused and how it is told, and `config.json`."""

import importlib
import json
import math
import pathlib

from hypothesis import given, settings, strategies as st
import ml_collections
import numpy as np
import pytest

from catsdogs import config as config_lib
from catsdogs.errors import UserError
from configs import debug, finetune, pretrain

FIELDS = sorted(config_lib.flatten(finetune.get_config()))
SHIPPED = sorted(
    path.stem for path in pathlib.Path(finetune.__file__).parent.glob('*.py')
    if path.stem != '__init__')

# One value each that a person might give, and that cannot work.
BAD = {
    'seed': -1,
    'data.source': 'photos/',
    'data.label_key': '',
    'data.train_split': 80,
    'data.val_split': ('train', 'test'),
    'data.val_fraction': 1.0,
    'data.sample_fraction': 0.0,
    'data.image_size': 31,
    'data.cache_gib': -1.0,
    'model.name': 'resnet19',
    'model.width': 0.1,
    'model.weights': '',
    'model.freeze': '(stem',
    'model.batch_norm': 'none',
    'model.dtype': 'float16',
    'optim.name': 'adam',
    'optim.learning_rate': 0.0,
    'optim.schedule': 'step',
    'optim.warmup_epochs': -0.5,
    'optim.weight_decay': -1e-4,
    'optim.lr_mults': (('^head/', -1.0),),
    'optim.grad_clip_norm': -1.0,
    'optim.accumulate_steps': 0,
    'optim.ema_decay': 1.0,
    'augment.crop_scale': (1.0, 0.4),
    'augment.flip': 'yes',
    'augment.color_jitter': 1.0,
    'augment.mixup': -0.1,
    'augment.cutmix': math.inf,
    'augment.label_smoothing': 1.0,
    'train.batch_size': 0,
    'train.epochs': 0.0,
    'train.evaluate_before': 'no',
    'train.log_every_steps': 0,
    'train.eval_every_epochs': 0.0,
    'train.checkpoint_every_steps': 0,
    'train.keep': 0,
    'train.fsdp': 'no',
}

WORDS = ('data.source', 'data.label_key', 'data.train_split', 'data.val_split',
         'model.name', 'model.weights', 'model.freeze', 'model.batch_norm',
         'model.dtype', 'optim.name', 'optim.schedule')
SWITCHES = ('augment.flip', 'train.evaluate_before', 'train.fsdp')
PAIRS = ('optim.lr_mults', 'augment.crop_scale')
NUMBERS = tuple(f for f in FIELDS if f not in WORDS + SWITCHES + PAIRS)
COUNTS = ('seed', 'data.image_size', 'optim.accumulate_steps',
          'train.batch_size', 'train.log_every_steps',
          'train.checkpoint_every_steps', 'train.keep')

# Values that fields of these kinds never have.
WRONG_TYPES = (
    [(f, v) for f in NUMBERS
     for v in ('1', None, math.nan, math.inf, True, False, (1,), 1j, 10**400,
               10**5000)
     if (f, v) != ('data.image_size', None)]
    + [(f, v) for f in COUNTS for v in (64.0, 64.5)]
    + [(f, v) for f in WORDS for v in (None, 1, 0.5, True, ('auto',), b'auto')]
    + [(f, v) for f in SWITCHES for v in (None, 1, 0, 1.0, 'True', ())]
    + [(f, v) for f in PAIRS
       for v in (None, 1, '', 'ab', 0.4, True, (None, None), (('a',),),
                 ('a', 'b'), ((1, 1.0),), (('a', math.nan),), (('(', 1.0),),
                 (('a', '1'),), (0.4, math.nan), (0.4, True), (0.4,))])


def with_value(field, value) -> ml_collections.ConfigDict:
  """finetune's config with a value that its types would not let in."""
  values = finetune.get_config().to_dict()
  *parents, name = field.split('.')
  part = values
  for parent in parents:
    part = part[parent]
  part[name] = value
  return ml_collections.ConfigDict(values)


def changed(config: ml_collections.ConfigDict, **values
            ) -> ml_collections.ConfigDict:
  """The config with other values: `optim__name='adamw'`."""
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(
      {field.replace('__', '.'): value for field, value in values.items()})
  return config


def what_differs(get_config, arg=None) -> dict:
  theirs = config_lib.flatten(get_config(arg))
  ours = config_lib.flatten(finetune.get_config(arg))
  assert theirs.keys() == ours.keys()
  return {f: v for f, v in theirs.items() if v != ours[f]}


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_configs_are_valid_and_locked(name):
  config = importlib.import_module(f'configs.{name}').get_config()
  config_lib.check(config)
  assert config.is_locked
  with pytest.raises(AttributeError):
    config.optim.learning_rat = 0.1


def test_debug_is_a_twentieth_of_finetune_for_one_epoch():
  assert what_differs(debug.get_config) == {
      'data.sample_fraction': 1 / 20, 'train.epochs': 1.0,
      'train.log_every_steps': 1}


def test_pretrain_differs_from_finetune_in_what_it_states_alone():
  assert what_differs(pretrain.get_config, 'resnet34') == {
      'data.val_fraction': 0.05, 'data.image_size': 64, 'model.width': 0.5,
      'model.weights': 'none', 'optim.learning_rate': 0.2,
      'optim.warmup_epochs': 1.0, 'optim.weight_decay': 5e-4,
      'optim.grad_clip_norm': 0.0, 'augment.crop_scale': (0.25, 1.0),
      'augment.label_smoothing': 0.1, 'train.batch_size': 128,
      'train.epochs': 20.0, 'train.evaluate_before': False,
      'train.log_every_steps': 50}


@pytest.mark.parametrize('get_config', [
    finetune.get_config, debug.get_config, pretrain.get_config])
def test_what_follows_the_colon_names_the_model(get_config):
  assert get_config('resnet50').model.name == 'resnet50'


def test_every_field_has_a_bad_value_in_this_file():
  assert sorted(BAD) == FIELDS


@pytest.mark.parametrize('field', FIELDS)
def test_a_bad_value_is_refused_by_the_name_of_its_field(field):
  with pytest.raises(UserError, match=rf'^config\.{field} is .*must be '):
    config_lib.check(with_value(field, BAD[field]))


@pytest.mark.parametrize(
    'field,value', WRONG_TYPES,
    ids=[f'{f}-{type(v).__name__}-{i}'
         for i, (f, v) in enumerate(WRONG_TYPES)])
def test_a_value_of_the_wrong_type_is_refused_by_its_field(field, value):
  with pytest.raises(UserError, match=rf'config\.{field} is .*must be '):
    config_lib.check(with_value(field, value))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(),
    st.text(max_size=8), st.binary(max_size=4), st.dates(),
    st.integers(300, 5000).map(lambda digits: 10**digits),
    st.sampled_from(['auto', 'folder:x', 'a{9999999999}',
                     '(' * 2000 + ')' * 2000, np.float32(1), np.arange(3),
                     np.array(['auto']), object(), np.float64('nan'),
                     np.bool_(True)]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.sampled_from('abc'), inner, max_size=2), max_leaves=4)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FIELDS), VALUES)
def test_whatever_a_field_holds_check_passes_or_names_it(field, value):
  try:
    config_lib.check(with_value(field, value))
  except UserError as e:
    assert f'config.{field}' in str(e)


def test_all_problems_are_told_at_once():
  config = with_value('optim.learning_rate', 'fast')
  config.train.batch_size = 0
  config.data.typo = 1
  del config.model.dtype
  with pytest.raises(UserError) as refused:
    config_lib.check(config)
  for words in ('config.optim.learning_rate is', 'config.train.batch_size is',
                'config.data.typo is unknown', 'config.model.dtype is missing'):
    assert words in str(refused.value)


@pytest.mark.parametrize('values,named', [
    ({'train__batch_size': 32, 'optim__accumulate_steps': 5},
     ['train.batch_size', 'optim.accumulate_steps']),
    ({'optim__warmup_epochs': 3.0, 'train__epochs': 2.0},
     ['optim.warmup_epochs', 'train.epochs']),
    ({'data__train_split': 'train[:80%]'},
     ['data.train_split', 'data.val_split']),
    ({'data__val_split': 'test'}, ['data.train_split', 'data.val_split']),
    ({'model__width': 0.25}, ['model.width', 'model.name']),
    ({'model__name': 'resnet18', 'model__weights': 'bundled'},
     ['model.weights', 'model.width', 'model.name']),
    ({'model__name': 'resnet50', 'model__width': 0.5,
      'model__weights': 'bundled'}, ['model.weights', 'model.name']),
    ({'model__name': 'resnet50', 'model__width': 0.5,
      'model__weights': 'torchvision:IMAGENET1K_V1'},
     ['model.weights', 'model.width']),
    ({'model__name': 'resnet18',
      'model__weights': 'torchvision:IMAGENET1K_V2'}, ['model.weights']),
], ids=lambda v: '-'.join(v))
def test_fields_that_contradict_each_other_are_refused(values, named):
  with pytest.raises(UserError) as refused:
    config_lib.check(changed(finetune.get_config(), **values))
  assert all(f'config.{field}' in str(refused.value) for field in named)


def test_what_barely_agrees_is_let_through():
  config_lib.check(changed(
      finetune.get_config('resnet18'), optim__accumulate_steps=32,
      optim__warmup_epochs=2.0, data__train_split='train',
      data__val_split='test', model__width=0.125))


@pytest.mark.parametrize('name, width, weights', [
    ('auto', 1.0, 'bundled'), ('resnet18', 0.5, 'bundled'),
    ('auto', 1.0, 'torchvision:IMAGENET1K_V1'),
    ('resnet101', 1.0, 'torchvision:IMAGENET1K_V2'),
    ('auto', 1.0, 'timm:a1_in1k'), ('resnet18d', 1.0, 'timm:ra2_in1k'),
    ('auto', 1.0, 'keras:imagenet'), ('resnet101', 1.0, 'keras:imagenet'),
    ('resnet50v2', 1.0, 'keras:imagenet'), ('auto', 1.0, 'bit:BiT-M-R50x3'),
    ('bit_r50x3', 1.0, 'bit:BiT-M-R50x3'), ('auto', 1.0, 'hf:a-b/c.d_e'),
    ('resnet50', 1.0, 'hf:microsoft/resnet-50'),
    ('resnet18', 0.25, './bundled'), ('resnet18', 0.25, 'torchvision.pth')])
def test_weights_that_may_fit_are_let_through(name, width, weights):
  config_lib.check(changed(finetune.get_config(name), model__width=width,
                           model__weights=weights))


@pytest.mark.parametrize('tag', ['', 'V2', 'IMAGENET1K_V3', 'DEFAULT'])
def test_an_unknown_tag_is_refused_with_those_there_are(tag):
  with pytest.raises(UserError, match='^config.model.weights: .*IMAGENET1K_V1 '
                     'and IMAGENET1K_V2$'):
    config_lib.check(with_value('model.weights', f'torchvision:{tag}'))


@pytest.mark.parametrize('name, weights, words', [
    ('auto', 'timm:a1', 'timm has no weights a1 of resnet50, only a1_in1k and'),
    ('resnet18d', 'timm:a1_in1k', 'of resnet18d, only ra2_in1k and ra4_'),
    ('resnet50v2', 'timm:a1_in1k', 'they are of resnet18, '),
    ('auto', 'keras:imagenet21k', 'of resnet50v1, only imagenet'),
    ('resnet18', 'keras:imagenet', 'they are of resnet50v1, '),
    ('resnet50', 'bit:BiT-M-R50x1', 'they are of bit_r50x1'),
    ('auto', 'bit:BiT-M-R50x2', 'only .* and BiT-|alike are BiT-'),
    ('auto', 'hf:resnet-50', 'hf:OWNER/NAME, such as'),
    ('auto', 'hf:../x', 'hf:OWNER/NAME'), ('auto', 'hf:a/b/c', 'hf:OWNER'),
    ('resnet50', 'hf:', 'hf:OWNER/NAME')])
def test_published_weights_that_there_are_not_are_refused(name, weights, words):
  with pytest.raises(UserError, match=f'^config.model.weights.*({words})'):
    config_lib.check(changed(finetune.get_config(name),
                             model__weights=weights))


def test_an_unknown_tag_is_told_beside_what_else_is_wrong():
  config = with_value('model.weights', 'timm:a1')
  config.train.epochs = 0.0
  with pytest.raises(UserError, match='weights a1 of .*config.train.epochs'):
    config_lib.check(config)


@pytest.mark.parametrize('weights', [
    'timm:a1_in1k', 'keras:imagenet', 'hf:microsoft/resnet-50'])
def test_published_weights_are_of_width_1(weights):
  with pytest.raises(UserError, match='config.model.width 0.5 .*of width 1'):
    config_lib.check(changed(finetune.get_config('resnet50'),
                             model__width=0.5, model__weights=weights))


def test_a_tag_that_the_model_lacks_is_refused_with_those_it_has():
  with pytest.raises(UserError, match='only IMAGENET1K_V1'):
    config_lib.check(changed(finetune.get_config('resnext101_64x4d'),
                             model__weights='torchvision:IMAGENET1K_V2'))


def test_the_devices_must_share_each_part_of_a_batch_equally():
  config = changed(finetune.get_config(), train__batch_size=32,
                   optim__accumulate_steps=2, data__image_size=224)
  for devices in (1, 2, 16):
    config_lib.check_devices(config, devices)
  for devices in (3, 32):
    with pytest.raises(UserError, match=r'config\.train\.batch_size'):
      config_lib.check_devices(config, devices)


def test_a_batch_that_no_memory_holds_is_refused_before_it_is_tried():
  config = changed(finetune.get_config(), train__batch_size=2**31 - 1,
                   data__image_size=32)
  with pytest.raises(UserError, match='config.train.batch_size: .* GiB'):
    config_lib.check_devices(config, 1)


@pytest.mark.parametrize('values', [
    {}, {'optim__lr_mults': (('^head/', 10.0), ('^stem/', 0.0))},
    {'model__freeze': '^(stem|stage1)/', 'data__source': 'folder:a "b" \udcff'},
    {'optim__learning_rate': 0.1 + 0.2, 'augment__crop_scale': (1 / 3, 1.0)}])
def test_a_saved_config_loads_as_it_was(values, tmp_path):
  config = changed(finetune.get_config(), **values)
  config_lib.save(config, tmp_path / 'config.json')
  loaded = config_lib.load(tmp_path / 'config.json')
  assert config_lib.flatten(loaded) == config_lib.flatten(config)
  assert loaded.is_locked
  assert loaded.data.image_size is None
  assert isinstance(loaded.augment.crop_scale, tuple)
  assert all(isinstance(pair, tuple) for pair in loaded.optim.lr_mults)
  assert [p.name for p in tmp_path.iterdir()] == ['config.json']


def test_the_saved_config_is_plain_json(tmp_path):
  config_lib.save(finetune.get_config(), tmp_path / 'config.json')
  values = json.loads((tmp_path / 'config.json').read_text())
  assert values['augment']['crop_scale'] == [0.4, 1.0]


@pytest.mark.parametrize('content', [
    b'', b'{', b'null', b'5', b'[]', b'[["seed", 1]]', b'"config"',
    b'\xff\xfe\x00', b'{"seed": 0}', b'{"a.b": 1}', b'{"items": 1}',
    b'[' * 100_000, b'{"seed": ' + b'9' * 5000 + b'}'],
    ids=lambda content: repr(content[:12]))
def test_a_corrupt_config_json_is_a_user_error_that_names_it(content,
                                                             tmp_path):
  file = tmp_path / 'config.json'
  file.write_bytes(content)
  with pytest.raises(UserError, match='config.json cannot be read'):
    config_lib.load(file)


def test_a_config_json_that_is_missing_or_a_folder_is_a_user_error(tmp_path):
  for file in (tmp_path / 'none.json', tmp_path):
    with pytest.raises(UserError, match='cannot be read'):
      config_lib.load(file)


def test_a_config_that_was_cut_anywhere_is_a_user_error(tmp_path):
  file = tmp_path / 'config.json'
  config_lib.save(finetune.get_config(), file)
  whole = file.read_text().rstrip()
  for length in range(0, len(whole), 37):
    file.write_text(whole[:length])
    with pytest.raises(UserError):
      config_lib.load(file)


def test_differences_name_each_field_with_both_values():
  started = finetune.get_config()
  now = changed(started, train__batch_size=64, optim__lr_mults=(('a', 2.0),))
  assert config_lib.differences(now, started) == [
      "optim.lr_mults (now (('a', 2.0),), started with ())",
      'train.batch_size (now 64, started with 32)']


def resolved_config() -> ml_collections.ConfigDict:
  """finetune's config as a run with random weights would have it."""
  return changed(finetune.get_config('resnet18'), data__source='bundled',
                 data__image_size=128, model__width=0.5, model__weights='none',
                 model__dtype='float32')


def test_what_is_left_to_auto_does_not_differ_from_the_answer():
  resolved = resolved_config()
  assert config_lib.differences(finetune.get_config(), resolved) == []
  assert config_lib.differences(resolved, resolved) == []


def test_a_name_that_its_source_spells_otherwise_does_not_differ():
  started = changed(finetune.get_config('resnet50v1'),
                    model__weights='keras:imagenet')
  for name in ('auto', 'resnet50', 'resnet50v1'):
    now = changed(finetune.get_config(name), model__weights='keras:imagenet')
    assert config_lib.differences(now, started) == []
  now = changed(finetune.get_config('resnet101'),
                model__weights='keras:imagenet')
  assert len(config_lib.differences(now, started)) == 1


def test_a_concrete_value_other_than_the_answer_differs():
  resolved = resolved_config()
  now = changed(finetune.get_config('resnet34'), data__image_size=96)
  assert [text.split()[0] for text in config_lib.differences(now, resolved)
          ] == ['data.image_size', 'model.name', 'model.width']
