"""Features that are computed once give what the whole network gives."""

import collections
import csv
import json
import pathlib
import signal
import time

from flax import traverse_util
import jax
import numpy as np
import pytest

from catsdogs import auto, linear_probe, loop, train
from catsdogs.checkpoint import restore_variables, saved_steps
from catsdogs.evaluate import create_eval_step, create_mesh, evaluate
from catsdogs.input_pipeline import (create_train_iter, prepare_data,
                                     train_indices)
from catsdogs.interruption import Interrupted
from catsdogs.models import (ResNet, create_model, init_variables,
                             variable_shapes)
from catsdogs.optimizer import split_params
from catsdogs.preprocessing import Preprocessing, model_input
from catsdogs.progress import Clock
from configs import linear_probe as probe_config
from runs import TINY, launch, make_folder
from weight_files import write_own

PROBE = '--config=configs/linear_probe.py'
SHORT = ('--config.train.epochs=6', '--config.train.eval_every_epochs=2')
ONCE = 'each photo goes through the backbone once'


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  return make_folder(tmp_path_factory.mktemp('photos'), per_class=13)


@pytest.fixture(scope='module')
def run(tmp_path_factory, photos, cache):
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  done = launch(PROBE, *TINY, *SHORT, f'--config.data.source=folder:{photos}',
                f'--workdir={workdir}', cache=cache)
  assert done.returncode == 0, done.stderr
  assert ONCE in done.stdout
  assert 'Computed the features of 26 photos in ' in done.stdout
  return workdir


def tiny_config(photos, **fields):
  config = probe_config.get_config()
  config.update_from_flattened_dict({
      'model.name': 'resnet10t', 'model.width': 0.125, 'model.weights': 'none',
      'data.image_size': 32, 'train.batch_size': 8,
      'data.source': f'folder:{photos}', 'train.epochs': 4.0,
      'train.eval_every_epochs': 1.5, **fields})
  return auto.resolve(config, 'cpu', pathlib.Path())[0]


def without_check():
  pass


def run_here(config, workdir, cache, check=without_check):
  workdir.mkdir(exist_ok=True)
  return train.train_and_evaluate(config, workdir, cache,
                                  Clock(time.monotonic()), check)


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def rows(file: pathlib.Path) -> list[dict[str, str]]:
  with file.open(newline='') as f:
    return list(csv.DictReader(f))


def random_network(config, classes=2):
  """A network of which each part, BatchNorm's and the head too, is random."""
  model = create_model(config.model, classes)
  variables = flat(jax.device_get(init_variables(model, 0)))
  random = np.random.default_rng(0)
  for path, x in variables.items():
    if not path.endswith('conv/kernel'):
      variables[path] = random.uniform(0.5, 1, x.shape).astype(np.float32)
  return model, traverse_util.unflatten_dict(variables, sep='/')


def features_of(data, config, model, variables):
  return linear_probe.compute_features(
      data, model, variables, Preprocessing(32), config.train.batch_size,
      create_mesh(), without_check)


@pytest.fixture(scope='module')
def computed(photos, cache):
  """A config, a network, the photos and their features."""
  config = tiny_config(photos)
  model, variables = random_network(config)
  data = prepare_data(config.data, Preprocessing(32).decoding, cache)
  return (config, model, variables, data,
          features_of(data, config, model, variables))


def test_features_are_the_pooled_output_for_what_is_evaluated(computed):
  _, model, variables, data, features = computed
  for photos, found in ((data.train, features.train),
                        (data.val, features.val)):
    expected = model.apply(
        variables, model_input(photos.decoded, Preprocessing(32)),
        method='features')['pooled']
    assert found.values.shape == (len(photos), 64)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-6)
    assert found.mask.tolist() == [1.0] * len(photos)
    assert list(found.split.ids) == list(photos.split.ids)
    np.testing.assert_array_equal(found.split.labels, photos.split.labels)
  assert features.fingerprint == data.fingerprint
  assert not hasattr(features.train, 'decoded')


@pytest.mark.parametrize('groups', [
    None, np.array([[0, -np.inf], [-np.inf, 0], [-np.inf, 0.5]], np.float32)])
def test_the_head_says_of_features_what_the_network_says_of_photos(
    computed, groups):
  config, _, _, data, _ = computed
  model, variables = random_network(config, 2 if groups is None else 3)
  features = features_of(data, config, model, variables)
  mesh, names = create_mesh(), data.class_names
  whole = evaluate(create_eval_step(model, Preprocessing(32), mesh, groups),
                   variables, data.val, names, 8, mesh)
  head = evaluate(
      create_eval_step(linear_probe.head_of(model), None, mesh, groups),
      variables, features.val, names, 8, mesh)
  np.testing.assert_allclose(head.probabilities, whole.probabilities,
                             rtol=1e-5)
  np.testing.assert_allclose(head.losses, whole.losses, rtol=1e-5)
  assert head.ids == whole.ids
  assert np.ptp(whole.probabilities[:, 0]) > 1e-4  # They say something.


def test_batches_hold_the_features_of_the_same_photos(computed):
  _, _, _, data, features = computed
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  pairs = zip(create_train_iter(data.train, 3, 8, 1, 7, sharding),
              create_train_iter(features.train, 3, 8, 1, 7, sharding),
              strict=True)
  for step, (of_photos, of_features) in enumerate(pairs, 1):
    indices = train_indices(3, len(data.train), step, 8)
    np.testing.assert_array_equal(of_features['image'],
                                  features.train.values[indices])
    for key in ('label', 'mask'):
      np.testing.assert_array_equal(of_features[key], of_photos[key])


def test_a_photo_that_vanished_has_the_mask_0(photos, tmp_path, cache):
  own = make_folder(tmp_path / 'photos', per_class=13)
  config = tiny_config(own, **{'data.cache_gib': 0.0})
  model, variables = random_network(config)
  data = prepare_data(config.data, Preprocessing(32).decoding, cache)
  whole = features_of(data, config, model, variables)
  lost = data.train.split.ids[4]
  (own / lost).unlink()
  features = features_of(data, config, model, variables)
  there = np.arange(len(data.train)) != 4
  np.testing.assert_array_equal(features.train.mask, there)
  np.testing.assert_array_equal(features.train.values[there],
                                whole.train.values[there])
  assert [file for file, _ in features.skipped] == [lost]
  batch = features.train.batch(np.array([3, 4, -1]))
  assert batch['mask'].tolist() == [1.0, 0.0, 0.0]
  assert all(value.dtype != np.float64 for value in batch.values())


def test_each_photo_goes_through_the_backbone_exactly_once(
    photos, cache, tmp_path, monkeypatch):
  seen = collections.Counter()
  features = ResNet.features

  def count(images):
    seen.update(image.tobytes() for image in np.asarray(images))

  def counted(self, x, train=False):
    if not self.is_initializing():
      jax.debug.callback(count, x)
    return features(self, x, train)

  monkeypatch.setattr(ResNet, 'features', counted)
  config = tiny_config(photos)
  finished = run_here(config, tmp_path / 'run', cache)
  jax.effects_barrier()
  data = prepare_data(config.data, Preprocessing(32).decoding, cache)
  for side in (data.train, data.val):
    for image in model_input(side.decoded, Preprocessing(32)):
      assert seen.pop(np.asarray(image).tobytes()) == 1
  assert len(seen) == 1  # Of the padding.
  assert finished['steps'] == 10 and finished['status'] == 'finished'


@pytest.mark.parametrize('fields, expected', [
    ({}, True),
    ({'augment.label_smoothing': 0.1, 'optim.ema_decay': 0.9}, True),
    ({'augment.crop_scale': (0.9, 1.0)}, False),
    ({'augment.flip': True}, False),
    ({'augment.color_jitter': 0.1}, False),
    ({'augment.mixup': 0.1}, False),
    ({'augment.cutmix': 0.1}, False),
    ({'model.batch_norm': 'batch'}, False),
    ({'model.freeze': ''}, False),
    ({'model.freeze': '^(stem|stage[123])/'}, False),
    ({'model.freeze': '^(stem|stage[1234])/|^head/bias$'}, True),
    ({'model.freeze': '^head/'}, False)])
def test_it_applies_where_features_depend_on_the_photo_alone(fields, expected):
  config = tiny_config('photos', **fields)
  params = variable_shapes(create_model(config.model, 2))['params']
  trainable, _ = split_params(params, config.model.freeze)
  assert linear_probe.applies(config, trainable) is expected



def test_a_checkpoint_holds_all_parameters_and_the_head_alone_has_learnt(
    run, photos):
  config = tiny_config(photos)
  model = create_model(config.model, 2)
  before = jax.device_get(flat(init_variables(model, config.seed)))
  for step in saved_steps(run):
    after = flat(restore_variables(run, step)[0])
    assert after.keys() == before.keys()
    changed = {path for path in after
               if not np.array_equal(after[path], before[path])}
    assert changed == {'params/head/kernel', 'params/head/bias'}


def test_the_workdir_serves_as_any_other(run, photos, cache, tmp_path):
  done = launch('--mode=evaluate', f'--workdir={run}', cache=cache)
  assert done.returncode == 0, done.stderr
  recorded = json.loads((run / 'results.json').read_text())
  evaluated = json.loads((run / 'evaluation.json').read_text())
  assert evaluated['val_accuracy'] == recorded['val_accuracy']
  assert evaluated['val_loss'] == pytest.approx(recorded['val_loss'], rel=1e-5)
  assert recorded['val_loss'] < recorded['before']['val_loss']

  done = launch('--mode=predict', f'--workdir={run}', f'--images={photos}',
                cache=cache)
  assert done.returncode == 0, done.stderr
  predicted = {pathlib.Path(row['file']).name: float(row['dog'])
               for row in rows(run / 'predictions.csv')}
  assert len(predicted) == 26
  for row in rows(run / 'predictions' / 'val.csv'):
    assert predicted[pathlib.Path(row['file']).name] == pytest.approx(
        float(row['dog']), abs=2e-5)


def test_before_is_the_zero_shot_answer_of_the_whole_network(
    photos, cache, tmp_path):
  weights = tmp_path / 'own.safetensors'
  write_own(weights, model='resnet10t')
  config = tiny_config(photos, **{'model.weights': str(weights)})
  before = run_here(config, tmp_path / 'run', cache)['before']
  assert before['model'].endswith('zero-shot')
  done = launch('--mode=evaluate', '--checkpoint=pretrained',
                f'--workdir={tmp_path}/run', cache=cache)
  assert done.returncode == 0, done.stderr
  whole = json.loads((tmp_path / 'run' / 'evaluation.json').read_text())
  assert before['val_accuracy'] == whole['val_accuracy']
  assert before['val_loss'] == pytest.approx(whole['val_loss'], rel=1e-5)


def same_end(one: pathlib.Path, other: pathlib.Path) -> None:
  assert saved_steps(one) == saved_steps(other)
  for step in saved_steps(one):
    expected, found = (flat(restore_variables(workdir, step)[0])
                       for workdir in (one, other))
    for path, value in expected.items():
      np.testing.assert_array_equal(found[path], value, err_msg=path)
  assert ((one / 'predictions' / 'val.csv').read_text()
          == (other / 'predictions' / 'val.csv').read_text())
  for first, second in zip(rows(one / 'metrics.csv'),
                           rows(other / 'metrics.csv'), strict=True):
    for name in first.keys() - {'images_per_sec', 'seconds'}:
      assert first[name] == second[name], name


@pytest.mark.slow
def test_a_run_that_is_often_interrupted_ends_as_one_left_alone(
    photos, cache, tmp_path, monkeypatch):
  config = tiny_config(photos, **{'optim.ema_decay': 0.9,
                                  'train.checkpoint_every_steps': 2})
  alone, stopped = tmp_path / 'alone', tmp_path / 'stopped'
  run_here(config, alone, cache)

  computing = []
  compute = linear_probe.compute_features

  def told(*arguments):
    computing.append(True)
    features = compute(*arguments)
    computing.clear()
    return features

  monkeypatch.setattr(linear_probe, 'compute_features', told)
  where = collections.Counter()
  for times in (28, 33, 36):  # The checks before the signal.
    left = [times]

    def check():
      left[0] -= 1
      if not left[0]:
        where['features' if computing else 'loop'] += 1
        raise Interrupted(signal.SIGTERM)

    computing.clear()
    with pytest.raises(Interrupted):
      run_here(config, stopped, cache, check)
  assert where['features'] and where['loop'] > 1
  run_here(config, stopped, cache)
  same_end(alone, stopped)


def test_a_run_goes_on_with_the_backbone_of_its_checkpoint(
    photos, cache, tmp_path, monkeypatch):
  """Whatever became of the file of weights meanwhile."""
  config = tiny_config(photos, **{'train.checkpoint_every_steps': 2})
  alone, stopped = tmp_path / 'alone', tmp_path / 'stopped'
  run_here(config, alone, cache)
  save = loop.Loop.save

  def save_and_stop(self):
    save(self)
    if self.state.step == 4:
      raise Interrupted(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(loop.Loop, 'save', save_and_stop)
    with pytest.raises(Interrupted):
      run_here(config, stopped, cache)
  initial = train.initial_variables

  def changed(*arguments):
    variables, origin = initial(*arguments)
    return jax.tree.map(lambda x: x + 1, variables), origin

  monkeypatch.setattr(train, 'initial_variables', changed)
  run_here(config, stopped, cache)
  same_end(alone, stopped)


@pytest.mark.slow
def test_devices_share_the_work_and_find_the_same(run, photos, cache, tmp_path,
                                                  monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=4')
  done = launch(PROBE, *TINY, *SHORT, f'--config.data.source=folder:{photos}',
                f'--workdir={tmp_path}/run', cache=cache)
  assert done.returncode == 0, done.stderr
  one, four = (json.loads((workdir / 'results.json').read_text())
               for workdir in (run, tmp_path / 'run'))
  assert four['device']['count'] == 4
  assert four['val_accuracy'] == one['val_accuracy']
  assert four['val_loss'] == pytest.approx(one['val_loss'], rel=1e-4)
