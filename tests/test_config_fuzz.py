"""Any value in any field: a run, or one line that says what is wrong."""

import functools
import json
import math
import os
import pathlib
import queue
import subprocess
import sys
import threading

from hypothesis import (HealthCheck, Phase, example, given, settings,
                        strategies as st)
import jax
import ml_collections
import numpy as np
import pytest

from catsdogs import auto, config as config_lib, path_pattern
from catsdogs.architectures import ARCHITECTURES
from catsdogs.errors import UserError
from catsdogs.models import create_model, variable_shapes
from catsdogs.optimizer import (create_learning_rate_fn, create_optimizer,
                                split_params)
from catsdogs.progress import Timetable
from configs import finetune
from runs import ROOT, launch, make_folder, refused

# Numbers at the edges of what there is.
_EDGES = st.sampled_from([
    0.0, -0.0, 1.0, -1.0, 5e-324, 1e-300, 1e-45, 1e-8, 1 - 1e-16, 1e8, 1e30,
    1e38, 1e300, math.inf, -math.inf, math.nan])
_NUMBER = st.one_of(_EDGES, st.floats(0, 1), st.floats(0, 100), st.floats())
_WHOLE = st.one_of(st.integers(1, 64), st.integers(-1, 2**31),
                   st.sampled_from([0, 2**31 - 1, 2**63, 10**30, 10**400]))
# Expressions of which some are none, and some take years.
_REGEX = st.one_of(
    st.sampled_from(['', '^(stem|stage1)/', 'kernel', '.', '^head/', 'nothing',
                     '(', r'((\w|/)+)+!', r'(\w\w|\w|/)+!', '[[a]', '(?i)BN',
                     r'^(?!head)', 'x{9999999999}', '\udcff', '(' * 200]),
    st.text(max_size=20))
_TEXT = st.one_of(
    st.sampled_from(['', 'auto', '~', '~nobody/x', '\0', '\udcff', 'a' * 5000,
                     'folder:', 'tfds:', 'bundled', '../..', '/dev/null',
                     'folder:~nobody', 'folder:/dev/null', 'hf:a/b', 'none',
                     'folder:' + 'a' * 5000, 'tfds:no such/1.0', 'bfloat16',
                     'timm:', 'keras:x', 'bit:BiT-M-R50x1', 'train[:5]']),
    st.text(max_size=30))
_ANYTHING = st.one_of(_NUMBER, _WHOLE, _TEXT, st.none(), st.booleans(),
                      st.tuples(_NUMBER, _NUMBER), st.lists(_TEXT, max_size=2),
                      st.binary(max_size=3), st.just({}), st.just({'a': 1}))

_UP_TO_1E30 = st.one_of(st.sampled_from([0.0, -0.0, 1e-300, 1e-9, 1e30]),
                        st.floats(0, 100))
_ABOVE_0 = st.one_of(st.sampled_from([5e-324, 1e-9, 0.1, 1.0, 1e9, 1e30]),
                     st.floats(1e-3, 100))
_SHARE = st.one_of(st.sampled_from([0.0, 1e-300, 1 - 2**-53]),
                   st.floats(0, 1, exclude_max=True))
_COUNT = st.one_of(st.integers(1, 64), st.sampled_from([2**31 - 1]))
_BETA = st.one_of(st.sampled_from([0.0, 1e-3, 1e3]), st.floats(1e-3, 1e3))
# What each field may be, by itself.
RIGHT = {
    'seed': st.integers(0, 2**31 - 1),
    'data.source': st.sampled_from(['bundled', 'auto', 'folder:photos']),
    'data.label_key': st.text('ab', min_size=1),
    'data.train_split': st.just(''),
    'data.val_split': st.just(''),
    'data.val_fraction': st.floats(0, 1, exclude_min=True, exclude_max=True),
    'data.sample_fraction': st.floats(0, 1, exclude_min=True),
    'data.image_size': st.one_of(st.none(), st.integers(32, 2048)),
    'data.cache_gib': _UP_TO_1E30,
    'model.name': st.sampled_from(['auto', *ARCHITECTURES]),
    'model.width': st.floats(0.125, 4),
    'model.weights': st.sampled_from(['none', 'bundled', 'auto']),
    'model.freeze': _REGEX,
    'model.batch_norm': st.sampled_from(['batch', 'running']),
    'model.dtype': st.sampled_from(['auto', 'float32', 'bfloat16']),
    'optim.name': st.sampled_from(['sgd', 'adamw']),
    'optim.learning_rate': _ABOVE_0,
    'optim.schedule': st.sampled_from(['cosine', 'linear', 'constant']),
    'optim.warmup_epochs': _UP_TO_1E30,
    'optim.weight_decay': _UP_TO_1E30,
    'optim.lr_mults': st.lists(
        st.tuples(_REGEX, _UP_TO_1E30), max_size=2).map(tuple),
    'optim.grad_clip_norm': _UP_TO_1E30,
    'optim.accumulate_steps': st.sampled_from([1, 1, 2, 4, 256]),
    'optim.ema_decay': _SHARE,
    'augment.crop_scale': st.tuples(
        st.floats(1e-3, 1), st.floats(1e-3, 1)).map(sorted).map(tuple),
    'augment.flip': st.booleans(),
    'augment.color_jitter': _SHARE,
    'augment.mixup': _BETA,
    'augment.cutmix': _BETA,
    'augment.label_smoothing': _SHARE,
    'train.batch_size': _COUNT,
    'train.epochs': _ABOVE_0,
    'train.evaluate_before': st.booleans(),
    'train.log_every_steps': _COUNT,
    'train.eval_every_epochs': _ABOVE_0,
    'train.checkpoint_every_steps': _COUNT,
    'train.keep': _COUNT,
    'train.fsdp': st.booleans(),
}
FIELDS = sorted(config_lib.flatten(finetune.get_config()))
_SOME_RIGHT = st.fixed_dictionaries({}, optional=RIGHT)
_ANY = st.dictionaries(st.sampled_from(FIELDS), _ANYTHING, max_size=2)
VALUES = st.one_of(_SOME_RIGHT, st.builds(dict.__or__, _SOME_RIGHT, _ANY))

TINY = {'data.source': 'bundled', 'model.name': 'resnet10t',
        'model.width': 0.125, 'model.weights': 'none', 'data.image_size': 32,
        'train.batch_size': 8}


def config_of(values) -> ml_collections.ConfigDict:
  """A config with any values, also those that its types would not let in."""
  nested = finetune.get_config().to_dict()
  for field, value in {**TINY, **values}.items():
    *parents, name = field.split('.')
    part = nested
    for parent in parents:
      part = part[parent]
    part[name] = value
  return ml_collections.ConfigDict(nested)


@functools.cache
def _params(name: str, width: float):
  config = finetune.get_config().model
  config.update(name=name, width=width, dtype='float32')
  return variable_shapes(create_model(config, 2))['params']


def build(config, count: int, cache: pathlib.Path) -> None:
  """All that is decided before the first step, without any array."""
  config_lib.check(config)
  config, _ = auto.resolve(config, 'cpu', cache)
  config_lib.check(config)
  config_lib.check_devices(config, 1)
  loaded = config_lib.from_dict(json.loads(json.dumps(config.to_dict())))
  assert not config_lib.differences(config, loaded)
  timetable = Timetable.of(config.train, count)
  assert 1 <= timetable.total_steps and timetable.evaluates_at(
      timetable.total_steps)
  assert timetable.epoch_at(0).first_step == 0
  timetable.epochs(timetable.total_steps // 2)
  learning_rate_fn = create_learning_rate_fn(
      config.optim, timetable.steps_per_epoch, timetable.total_steps)
  for step in (0, timetable.total_steps // 2, timetable.total_steps - 1):
    rate = float(learning_rate_fn(np.int32(step)))
    assert 0 <= rate <= float(np.float32(config.optim.learning_rate)) * 1.001
  trainable, _ = split_params(_params(config.model.name, config.model.width),
                              config.model.freeze)
  optimizer = create_optimizer(config.optim, trainable, learning_rate_fn)
  jax.eval_shape(optimizer.init, trainable)


@pytest.fixture(scope='module', autouse=True)
def offline(tmp_path_factory):
  """No network, and no prepared photos of this machine."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('CATSDOGS_OFFLINE', '1')
    patch.setattr(path_pattern, '_SECONDS', 0.2)
    patch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('tfds')))
    yield


@settings(deadline=None, max_examples=250, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))
@given(VALUES, st.integers(1, 30_000))
def test_any_config_is_built_or_refused(tmp_path_factory, values, count):
  built_or_refused(tmp_path_factory, values, count)


@pytest.mark.slow
@settings(deadline=None, max_examples=10_000, database=None,
          suppress_health_check=list(HealthCheck))
@given(VALUES, st.integers(1, 30_000))
def test_ten_thousand_configs_are_built_or_refused(tmp_path_factory, values,
                                                   count):
  built_or_refused(tmp_path_factory, values, count)


def built_or_refused(tmp_path_factory, values, count) -> None:
  try:
    build(config_of(values), count, tmp_path_factory.getbasetemp() / 'cache')
  except UserError as e:
    assert str(e)


@pytest.mark.parametrize('pattern', [r'((\w|/)+)+!', r'(\w\w|\w|/)+!'])
@pytest.mark.parametrize('field', ['model.freeze', 'optim.lr_mults'])
def test_an_expression_that_takes_years_is_refused(tmp_path, field, pattern):
  value = pattern if field == 'model.freeze' else ((pattern, 1.0),)
  with pytest.raises(UserError, match=f'config.{field}: .* takes more than'):
    build(config_of({field: value}), 100, tmp_path)


# What is trained with, beside `TINY`: few steps of a tiny network.
_TRAINED = st.fixed_dictionaries({}, optional={
    **{field: value for field, value in RIGHT.items()
       if field not in TINY and not field.startswith('data.')},
    'data.val_fraction': RIGHT['data.val_fraction'],
    'data.sample_fraction': RIGHT['data.sample_fraction'],
    'data.cache_gib': RIGHT['data.cache_gib'],
    'data.image_size': st.integers(32, 49),
    'model.width': st.floats(0.125, 0.25),
    'model.freeze': st.sampled_from(['', '^(stem|stage1)/', '^(?!head)']),
    'optim.lr_mults': st.sampled_from([(), (('^head/', 1e30),), (('', 0.),)]),
    'optim.accumulate_steps': st.sampled_from([1, 2]),
    'train.batch_size': st.integers(1, 40)})


class Worker:
  """A process that trains one config after another (fuzz_worker.py)."""

  def __init__(self, folder: pathlib.Path):
    self._folder, self._runs = folder, 0
    self._photos = make_folder(folder / 'photos', 8)
    self._said = queue.SimpleQueue()
    self._process = subprocess.Popen(
        [sys.executable, str(ROOT / 'tests' / 'fuzz_worker.py')], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'CATSDOGS_ONEDNN': '0',
             'TF_CPP_MIN_LOG_LEVEL': '2', 'TF_ENABLE_ONEDNN_OPTS': '0',
             # The steps are compiled anew for each config, and run thrice.
             'XLA_FLAGS': '--xla_backend_optimization_level=0 '
                          '--xla_llvm_disable_expensive_passes=true',
             'PYTHONPATH': os.pathsep.join(filter(None, sys.path))})
    threading.Thread(target=self._listen, daemon=True).start()

  def _listen(self) -> None:
    for line in self._process.stdout:
      if line.startswith('@'):
        self._said.put(json.loads(line[1:]))
    self._said.put((1, 'the process ended'))

  def train(self, values) -> tuple[int, str]:
    """The exit status that launch.py would have, and its message."""
    self._runs += 1
    values = {'data.source': f'folder:{self._photos}', **values}
    self._process.stdin.write(json.dumps(
        [str(self._folder / f'run{self._runs}'), values]) + '\n')
    self._process.stdin.flush()
    return self._said.get(timeout=900)

  def close(self) -> None:
    """Ends the process, whatever it does."""
    self._process.kill()
    self._process.communicate()


@pytest.fixture(scope='module')
def worker(tmp_path_factory):
  worker = Worker(tmp_path_factory.mktemp('worker'))
  yield worker
  worker.close()


def ends_well(worker: Worker, values) -> None:
  status, message = worker.train(values)
  assert status in (0, 2), message
  assert message and 'Traceback' not in message


@settings(deadline=None, max_examples=2, derandomize=True, database=None,
          phases=[Phase.explicit, Phase.generate],
          suppress_health_check=list(HealthCheck))
@given(_TRAINED)
@example({'train.batch_size': 2**31 - 1})
@example({'data.source': 'folder:' + 'a' * 5000})
@example({'data.source': 'folder:~nobody/x'})
@example({'data.source': 'tfds:../..'})
@example({'model.weights': '~nobody/x'})
@example({'model.weights': '/dev/zero'})
@example({'train.epochs': 1e30})
@example({'train.epochs': 1e7, 'augment.crop_scale': (1e-3, 1e-3),
          'data.cache_gib': 1e30, 'train.log_every_steps': 1})
def test_a_config_trains_or_is_refused(worker, values):
  ends_well(worker, values)


@pytest.mark.slow
@settings(deadline=None, max_examples=100, database=None,
          phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(_TRAINED)
def test_a_hundred_configs_train_or_are_refused(worker, values):
  ends_well(worker, values)


@pytest.mark.parametrize('arguments', [
    ['--config.model=5'], ['--config.data={}'], ['--config.seed.x=1'],
    ['--config.optim.lr_mults=' + '(' * 3000],
    ['--config.data.source=folder:--help'], ['--workdir=' + 'a' * 5000],
    ['--config.model.freeze=\udcff(']],
    ids=lambda arguments: arguments[0][:30])
def test_a_hostile_command_line_gets_one_line(arguments, tmp_path):
  done = launch('--config=configs/finetune.py', f'--workdir={tmp_path}/run',
                *arguments, cache=tmp_path / 'cache')
  refused(done, 'Error: ')
