"""The folder of a run: begun, continued, refused, cleared."""

import os
import pathlib

import pytest

from catsdogs import auto, config as config_lib, workdir as workdir_lib
from catsdogs.errors import UserError
from configs import finetune


def begin(workdir, restart=False, **values):
  """Begins or continues a run with finetune's config and other values."""
  config = finetune.get_config()
  config.update_from_flattened_dict(
      {field.replace('__', '.'): value for field, value in values.items()})
  return workdir_lib.begin_or_continue(workdir, config, restart, 'cpu',
                                       workdir.parent / 'cache')


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
  """No network, and no prepared photos of this machine."""
  monkeypatch.setenv('CATSDOGS_OFFLINE', '1')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
  """The workdir of a run that has begun."""
  workdir = tmp_path / 'runs' / 'cats'
  config, _ = begin(workdir)
  config_lib.save(config, workdir / 'config.json')
  return workdir


def test_a_new_run_gets_a_folder_and_the_resolved_config(tmp_path):
  config, notice = begin(tmp_path / 'a' / 'b')
  assert (tmp_path / 'a' / 'b').is_dir()
  assert config.data.source == config.model.weights == 'bundled'
  assert 'stand in' in notice
  assert not list((tmp_path / 'a' / 'b').iterdir())


def test_the_same_config_continues_with_the_answer_that_was_found(run):
  saved = config_lib.load(run / 'config.json')
  assert begin(run) == (saved, None)
  assert begin(run, data__source='bundled', model__name='resnet18',
               model__width=0.5) == (saved, None)


def test_a_run_that_goes_on_keeps_its_answer_without_a_look(run, monkeypatch):
  saved = config_lib.load(run / 'config.json')
  monkeypatch.setattr(auto, 'resolve', lambda *_: pytest.fail('looked'))
  for given in (finetune.get_config(), None):
    assert workdir_lib.begin_or_continue(
        run, given, False, 'gpu', run, processes=2) == (saved, None)


def test_several_processes_refuse_auto(tmp_path):
  with pytest.raises(UserError, match='2 processes'):
    workdir_lib.begin_or_continue(tmp_path, finetune.get_config(), False,
                                  'cpu', tmp_path, processes=2)


def test_the_cache_is_where_weights_are_looked_for(tmp_path):
  weights = tmp_path / 'cache' / 'weights' / 'resnet50-11ad3fa6.pth'
  weights.parent.mkdir(parents=True)
  weights.write_text('')
  config, _ = begin(tmp_path / 'run', data__source='folder:x')
  assert config.model.weights == 'torchvision:IMAGENET1K_V2'


def test_restart_removes_nothing_where_no_run_can_begin(run):
  (run / 'metrics.csv').write_text('')
  with pytest.raises(UserError, match='no weights'):
    begin(run, restart=True, model__name='resnet34')
  assert (run / 'metrics.csv').exists() and (run / 'config.json').exists()


def test_without_a_config_the_run_s_own_is_continued(run):
  config, _ = workdir_lib.begin_or_continue(run, None, False, 'cpu', run)
  assert config == config_lib.load(run / 'config.json')


def test_without_a_config_and_a_run_there_is_nothing_to_continue(tmp_path):
  with pytest.raises(UserError, match='--workdir.*holds no run'):
    workdir_lib.begin_or_continue(tmp_path, None, False, 'cpu', tmp_path)


def test_another_config_is_refused_by_all_fields_that_differ(run):
  with pytest.raises(UserError) as refused:
    begin(run, train__batch_size=64, optim__name='adamw')
  message = str(refused.value)
  assert 'train.batch_size (now 64, started with 32)' in message
  assert "optim.name (now 'adamw', started with 'sgd')" in message
  assert '--restart' in message and 'optim.schedule' not in message


def test_a_bad_config_is_refused_before_the_folder_is_made(tmp_path):
  with pytest.raises(UserError, match='train.batch_size'):
    begin(tmp_path / 'new', train__batch_size=0)
  assert not (tmp_path / 'new').exists()


def test_restart_removes_the_run_s_outputs_and_nothing_else(run):
  own = ['config.json', 'metrics.csv', 'results.json', 'predictions.csv',
         'predictions.png', 'skipped_files.csv', 'evaluation.json',
         'report.html', 'events.out.tfevents.1.host', 'checkpoints/10/state',
         'predictions/val.csv']
  foreign = ['notes.txt', 'config.py', 'my.json', 'photos/cat.0.jpg',
             'checkpoints.txt', 'old/checkpoints/10/state', '.hidden']
  for name in own + foreign:
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text('{}')
  config, _ = begin(run, restart=True, train__batch_size=64)
  assert config.train.batch_size == 64
  left = {str(p.relative_to(run)) for p in run.rglob('*') if p.is_file()}
  assert left == set(foreign)
  assert not (run / 'checkpoints').exists()


def test_restart_removes_first_what_says_that_the_run_is_finished(
    run, monkeypatch):
  for name in ('results.json', 'metrics.csv'):
    (run / name).write_text('{}')
  (run / 'checkpoints').mkdir()

  def kill(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(workdir_lib.shutil, 'rmtree', kill)
  with pytest.raises(KeyboardInterrupt):
    begin(run, restart=True)
  assert (run / 'checkpoints').exists()
  assert not (run / 'results.json').exists()


def test_restart_keeps_the_only_config_there_is(run):
  before = config_lib.load(run / 'config.json')
  (run / 'metrics.csv').write_text('')
  for _ in range(2):  # A second process finds it as well.
    config, _ = workdir_lib.begin_or_continue(run, None, True, 'cpu', run)
    assert config == before
  assert not (run / 'metrics.csv').exists()


def test_restart_does_not_follow_a_link_out_of_the_workdir(run, tmp_path):
  elsewhere = tmp_path / 'disk'
  (elsewhere / '10').mkdir(parents=True)
  (run / 'checkpoints').symlink_to(elsewhere)
  begin(run, restart=True)
  assert (elsewhere / '10').is_dir() and not (run / 'checkpoints').exists()


def test_restart_of_a_folder_that_holds_no_run_begins_one(tmp_path):
  begin(tmp_path, restart=True)


def test_restart_mends_a_damaged_config_json(run):
  (run / 'config.json').write_text('{')
  with pytest.raises(UserError, match='config.json.*--restart'):
    begin(run)
  begin(run, restart=True)


@pytest.fixture
def unwritable(tmp_path):
  """A folder in which nothing can be made, not even by root."""
  if os.geteuid():
    tmp_path.chmod(0o500)
    yield tmp_path
    tmp_path.chmod(0o700)
  elif pathlib.Path('/proc/self').is_dir():
    yield pathlib.Path('/proc/self')
  else:
    pytest.skip('root may write anywhere')


def test_a_workdir_that_cannot_be_written_is_told_at_once(unwritable,
                                                          tmp_path):
  file = tmp_path / 'file'
  if os.geteuid() == 0:
    file.write_text('')
  for workdir in (unwritable, unwritable / 'new', file, file / 'below'):
    if workdir != file or file.exists():
      with pytest.raises(UserError, match='--workdir: .* cannot be written'):
        begin(workdir)


def test_a_finished_run_is_evaluated_with_other_data_if_asked_for(run):
  overrides = {'data.source': 'folder:x', 'data.cache_gib': 0.5,
               'data.train_split': 'train', 'data.val_split': 'test',
               'data.label_key': 'fine', 'model.dtype': 'bfloat16',
               'train.batch_size': 8}
  config = workdir_lib.started_config(run, overrides)
  flat = config_lib.flatten(config)
  assert {field: flat[field] for field in overrides} == overrides
  rest = config_lib.flatten(config_lib.load(run / 'config.json'))
  assert {f: v for f, v in flat.items() if f not in overrides} == {
      f: v for f, v in rest.items() if f not in overrides}


@pytest.mark.parametrize('field,value', [
    ('model.name', 'resnet50'), ('data.image_size', 64), ('seed', 1),
    ('optim.lr_mults', (('^head/', 2.0),)), ('no.such', 1)])
def test_what_the_run_was_trained_with_cannot_be_changed(run, field, value):
  with pytest.raises(UserError, match=rf'config\.{field}: the run in .* has'):
    workdir_lib.started_config(run, {field: value})


def test_overrides_that_agree_with_the_run_are_let_through(run):
  config = workdir_lib.started_config(run, {
      'model.name': 'resnet18', 'data.image_size': 128,
      'augment.crop_scale': (0.4, 1.0)})
  assert config == config_lib.load(run / 'config.json')


def test_an_override_of_auto_agrees_with_the_answer_that_was_found(run):
  config = workdir_lib.started_config(run, {
      'data.source': 'auto', 'model.dtype': 'auto', 'model.name': 'auto',
      'data.image_size': None})
  assert config == config_lib.load(run / 'config.json')


def test_a_bad_override_is_refused_by_its_field(run):
  with pytest.raises(UserError, match='config.train.batch_size'):
    workdir_lib.started_config(run, {'train.batch_size': 0})


def test_a_folder_without_a_run_is_told_with_how_to_train_one(tmp_path):
  with pytest.raises(UserError, match='--workdir.*--config=FILE'):
    workdir_lib.started_config(tmp_path / 'none')
