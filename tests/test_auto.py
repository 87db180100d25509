"""What `auto` stands for, wherever the real thing is or is not."""

import dataclasses
import importlib
import json
import pathlib
import threading

import pytest

from catsdogs import auto, config as config_lib, console
from catsdogs.errors import UserError
from catsdogs.pretrained import known_weights
from configs import finetune
from hub_files import PREPROCESSOR, RESNET_50, TIMM, put_on_hub
from web_server import Silence, WebServer, closed_url

REAL = ('tfds:cats_vs_dogs', 'torchvision:IMAGENET1K_V2', 'resnet50', 1.0, 224)
BUNDLED = ('bundled', 'bundled', 'resnet18', 0.5, 128)
ON_PHOTOS = ('bundled', 'resnet18', 0.5, 160)
HALF = {'model__name': 'resnet18', 'model__width': 0.5}
SHIPPED = sorted(
    path.stem for path in pathlib.Path(finetune.__file__).parent.glob('*.py')
    if path.stem != '__init__')


class World:
  """What there is: prepared photos, cached weights, servers."""

  def __init__(self, tmp_path, monkeypatch):
    self.cache, self._monkeypatch = tmp_path / 'cache', monkeypatch
    self._prepared = tmp_path / 'tfds'
    self.photos = WebServer(bytes(4000))
    self.weights = WebServer(bytes(2000))
    monkeypatch.setenv('TFDS_DATA_DIR', str(self._prepared))
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY',
                 'CATSDOGS_OFFLINE'):
      monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(auto, '_PHOTOS_BYTES', 4000)
    self.photos_at(self.photos.url)
    self.weights_at(self.weights.url)

  def photos_at(self, url: str) -> None:
    self._monkeypatch.setattr(auto, '_PHOTOS_URL', url)

  def weights_at(self, url: str) -> None:
    self._monkeypatch.setattr(known_weights, 'WEIGHTS', tuple(
        dataclasses.replace(known, url=url, mebibytes=2000 / 2**20)
        for known in known_weights.WEIGHTS))

  def prepare_photos(self, version: str = '4.0.1') -> None:
    folder = self._prepared / 'cats_vs_dogs' / version
    folder.mkdir(parents=True)
    (folder / 'dataset_info.json').write_text('{}')

  def cache_weights(self) -> None:
    (self.cache / 'weights').mkdir(parents=True)
    (self.cache / 'weights' / 'weights.pth').write_text('weights')

  def offline(self) -> None:
    self._monkeypatch.setenv('CATSDOGS_OFFLINE', '1')

  def resolve(self, platform: str = 'cpu', processes: int = 1, **values):
    """What a config with these values is resolved to, and the notice."""
    return auto.resolve(config(**values), platform, self.cache, processes)

  def answer(self, **values):
    """Likewise: source, weights, name, width and size; and the notice."""
    resolved, notice = self.resolve(**values)
    config_lib.check(resolved)
    model = resolved.model
    return (resolved.data.source, model.weights, model.name, model.width,
            resolved.data.image_size), notice


def config(**values):
  given = finetune.get_config()
  given.update_from_flattened_dict(
      {field.replace('__', '.'): value for field, value in values.items()})
  config_lib.check(given)
  return given


@pytest.fixture(name='world')
def fixture_world(tmp_path, monkeypatch):
  world = World(tmp_path, monkeypatch)
  with world.photos, world.weights:
    yield world


@pytest.fixture(name='nobody_is_asked')
def fixture_nobody_is_asked(world):
  yield
  assert not world.photos.asked and not world.weights.asked


def test_the_address_of_the_photos_is_that_of_tfds():
  tfds = pytest.importorskip('tensorflow_datasets')
  folder = pathlib.Path(tfds.__file__).parent
  checksums = (folder / 'url_checksums' / 'cats_vs_dogs.txt').read_text()
  assert [auto._PHOTOS_URL, str(auto._PHOTOS_BYTES)] in [
      line.split()[:2] for line in checksums.splitlines()]
  source = folder / 'image_classification' / 'cats_vs_dogs.py'
  assert auto._PHOTOS_URL.rpartition('/')[2] in source.read_text()
  assert f'Version("{auto._PHOTOS_VERSION}")' in source.read_text()


# Both are auto.

def test_what_is_reachable_is_the_real_thing_and_what_it_costs_is_told(world):
  answer, notice = world.answer()
  assert answer == REAL
  for words in ('downloaded', 'tfds:cats_vs_dogs (0 MB', 'IMAGENET1K_V2 (0 MB',
                'On a CPU, this run takes hours',
                '--config.data.source=bundled --config.model.weights=bundled'):
    assert words in notice


def test_the_sizes_are_those_of_the_real_files(tmp_path, monkeypatch):
  monkeypatch.setattr(auto.download, 'look', lambda *_: '')
  monkeypatch.delenv('CATSDOGS_OFFLINE', raising=False)
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  _, notice = auto.resolve(config(), 'gpu', tmp_path)
  assert '(825 MB' in notice and '(103 MB' in notice
  assert 'hours' not in notice  # On an accelerator.


def test_the_addresses_are_the_real_ones(tmp_path, monkeypatch):
  looked = []
  monkeypatch.setattr(auto.download, 'look',
                      lambda *arguments: looked.append(arguments) or '')
  monkeypatch.delenv('CATSDOGS_OFFLINE', raising=False)
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  auto.resolve(config(), 'cpu', tmp_path)
  assert sorted(looked) == [
      (auto._PHOTOS_URL, 824_887_076 / 2**20, 5.0),
      ('https://download.pytorch.org/models/resnet50-11ad3fa6.pth', 97.79,
       5.0)]


@pytest.mark.usefixtures('nobody_is_asked')
@pytest.mark.parametrize('offline', [False, True])
def test_what_is_prepared_and_cached_needs_no_network(world, offline):
  world.prepare_photos()
  world.cache_weights()
  if offline:
    world.offline()
  answer, notice = world.answer()
  assert answer == REAL
  assert 'downloaded' not in notice and 'On a CPU' in notice
  assert world.resolve('gpu')[1] is None
  assert world.answer(data__sample_fraction=1 / 20)[1] is None


@pytest.mark.usefixtures('nobody_is_asked')
@pytest.mark.parametrize('has', ['nothing', 'photos', 'weights'])
def test_offline_what_lacks_is_told(world, has):
  world.offline()
  if has == 'photos':
    world.prepare_photos()
  if has == 'weights':
    world.cache_weights()
  answer, notice = world.answer()
  assert answer == BUNDLED and 'CATSDOGS_OFFLINE is set' in notice
  assert ('cats_vs_dogs is not in' in notice) == (has != 'photos')
  assert ('IMAGENET1K_V2 is not in' in notice) == (has != 'weights')


@pytest.mark.parametrize('broken', ['photos', 'weights', 'both'])
@pytest.mark.parametrize('how, reason', [
    ('closed', 'it refuses the connection'), ('404', 'it answers 404'),
    ('portal', 'it answers with another file')])
def test_where_either_is_not_reachable_both_are_bundled(world, broken, how,
                                                        reason):
  for name in ('photos', 'weights') if broken == 'both' else (broken,):
    web = getattr(world, name)
    if how == 'closed':
      getattr(world, f'{name}_at')(closed_url())
    elif how == '404':
      web.status = 404
    else:
      web.content = b'<html>Log in</html>'
  answer, notice = world.answer()
  assert answer == BUNDLED
  assert notice.count(reason) == (2 if broken == 'both' else 1)
  assert ('cats_vs_dogs is not in' in notice) == (broken != 'weights')
  for words in ('stand in for photos', 'the bundled ResNet-18',
                '--config.data.source=folder:PATH (or tfds:cats_vs_dogs)',
                '--config.model.weights=FILE (or torchvision:IMAGENET1K_V2)'):
    assert words in notice


@pytest.mark.parametrize('accepts', [True, False])
def test_what_never_answers_is_bundled(world, monkeypatch, accepts):
  monkeypatch.setattr(auto, '_LOOK_SECONDS', 0.5)
  with Silence(accepts) as photos, Silence(accepts) as weights:
    world.photos_at(photos.url)
    world.weights_at(weights.url)
    answer, notice = world.answer()
  assert answer == BUNDLED and notice.count('no answer within 0.5 s') == 2


def test_both_are_looked_for_at_once_so_that_one_bound_holds(world,
                                                             monkeypatch):
  both = threading.Barrier(2, timeout=60)  # Passed by two at once alone.
  def look(*_):
    both.wait()
    return 'gone'
  monkeypatch.setattr(auto.download, 'look', look)
  answer, notice = world.answer()
  assert answer == BUNDLED and notice.count('gone') == 2


def test_the_bound_is_what_was_promised():
  assert auto._LOOK_SECONDS <= 5


def test_photos_that_are_prepared_in_part_do_not_count(world):
  world.photos_at(closed_url())
  world.prepare_photos('incomplete.A1B2_4.0.1')
  assert world.answer()[0] == BUNDLED
  world.prepare_photos()
  assert world.answer()[0] == REAL


def test_the_folder_of_prepared_photos_is_tfds_own(world, tmp_path,
                                                   monkeypatch):
  world.offline()
  monkeypatch.delenv('TFDS_DATA_DIR')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  folder = (tmp_path / 'home' / 'tensorflow_datasets' / 'cats_vs_dogs'
            / '4.0.1')
  assert world.answer(model__weights='none')[0][0] == 'bundled'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text('{}')
  assert world.answer(model__weights='none')[0][0] == 'tfds:cats_vs_dogs'


# One of them is auto.

def test_the_source_alone(world):
  for weights, name, width, size in (
      ('none', 'resnet18', 0.5, 160), ('bundled', 'resnet18', 0.5, 160),
      ('w.pth', 'resnet50', 1.0, 224),
      ('torchvision:IMAGENET1K_V1', 'resnet50', 1.0, 224)):
    answer, notice = world.answer(model__weights=weights)
    assert answer == ('tfds:cats_vs_dogs', weights, name, width, size)
    assert '--config.data.source=bundled' in notice
    assert 'model.weights' not in notice
    assert ('hours' in notice) == (name == 'resnet50')
  world.photos.status = 404
  answer, notice = world.answer(model__weights='w.pth')
  assert answer == ('bundled', 'w.pth', 'resnet50', 1.0, 224)
  assert 'answers 404' in notice and 'model.weights' not in notice
  assert not world.weights.asked


def test_the_weights_alone(world):
  answer, notice = world.answer(data__source='folder:x')
  assert answer == ('folder:x', *REAL[1:])
  assert 'data.source' not in notice and 'hours' not in notice
  assert '--config.model.weights=bundled' in notice
  world.weights.status = 404
  answer, notice = world.answer(data__source='folder:x')
  assert answer == ('folder:x', *ON_PHOTOS)
  assert 'answers 404' in notice and 'data.source' not in notice
  assert not world.photos.asked


# The model is named.

@pytest.mark.parametrize('model, tag', [
    ('resnet18', 'IMAGENET1K_V1'), ('resnet101', 'IMAGENET1K_V2'),
    ('resnext101_64x4d', 'IMAGENET1K_V1')])
def test_a_named_model_gets_torchvisions_best(world, model, tag):
  answer, notice = world.answer(model__name=model, data__source='folder:x')
  assert answer == ('folder:x', f'torchvision:{tag}', model, 1.0, 224)
  assert tag in notice and 'bundled' not in notice


def test_a_named_model_s_cached_weights_need_no_network(world):
  world.offline()
  world.cache_weights()
  answer, notice = world.answer(model__name='resnet34',
                                data__source='folder:x')
  assert answer[1] == 'torchvision:IMAGENET1K_V1' and notice is None


@pytest.mark.parametrize('source', ['auto', 'folder:x'])
def test_a_named_model_without_weights_is_refused(world, source):
  world.weights.status = 404
  with pytest.raises(UserError) as refused:
    world.resolve(model__name='resnet34', data__source=source)
  for words in ('config.model.weights: no weights for resnet34',
                'torchvision:IMAGENET1K_V1 is not in', 'it answers 404',
                "set model.weights to a file of weights, or to 'none'"):
    assert words in str(refused.value)


@pytest.mark.usefixtures('nobody_is_asked')
@pytest.mark.parametrize('model, width', [('resnet18', 0.25),
                                          ('resnet50', 0.5)])
def test_a_named_model_of_another_width_has_no_weights(world, model, width):
  with pytest.raises(UserError, match=f'no weights of {model}.*width {width}.*'
                     "'none'"):
    world.resolve(model__name=model, model__width=width,
                  data__source='folder:x')


@pytest.mark.usefixtures('nobody_is_asked')
def test_the_bundled_architecture_has_the_bundled_weights(world):
  answer, notice = world.answer(data__source='folder:x', **HALF)
  assert answer == ('folder:x', *ON_PHOTOS) and notice is None


def test_a_named_model_and_the_source_are_decided_each_alone(world):
  world.photos.status = 404
  answer, notice = world.answer(model__name='resnet34')
  assert answer[:3] == ('bundled', 'torchvision:IMAGENET1K_V1', 'resnet34')
  assert 'drawn' in notice.lower() and 'ResNet-18' not in notice
  assert world.answer(**HALF)[0] == BUNDLED
  world.photos.status = 200
  assert world.answer(**HALF)[0] == ('tfds:cats_vs_dogs', *ON_PHOTOS)


# Whatever is auto.

@pytest.mark.usefixtures('nobody_is_asked')
@pytest.mark.parametrize('values, fields', [
    ({}, ('data.source', 'model.weights')),
    ({'data__source': 'folder:x'}, ('model.weights',)),
    ({'data__source': 'folder:x', **HALF}, ('model.weights',)),
    ({'model__weights': 'none'}, ('data.source',))])
def test_several_processes_refuse_auto(world, values, fields):
  with pytest.raises(UserError, match='2 processes.*--config') as refused:
    world.resolve(processes=2, **values)
  for field in ('data.source', 'model.weights'):
    assert (f'config.{field}' in str(refused.value).partition(':')[0]) == (
        field in fields)


@pytest.mark.usefixtures('nobody_is_asked')
def test_several_processes_may_leave_the_rest_to_auto(world):
  resolved, notice = world.resolve('gpu', 2, data__source='folder:x',
                                   model__weights='none')
  assert resolved.model.name == 'resnet18' and notice is None


@pytest.mark.usefixtures('nobody_is_asked')
@pytest.mark.parametrize('weights, model', [
    ('none', ('resnet18', 0.5, 128)), ('bundled', ('resnet18', 0.5, 128)),
    ('torchvision:IMAGENET1K_V1', ('resnet50', 1.0, 224)),
    ('w.pth', ('resnet50', 1.0, 224)), ('no/run', ('resnet50', 1.0, 224))])
def test_without_auto_nobody_is_asked_and_nothing_is_said(world, weights,
                                                          model):
  answer, notice = world.answer(data__source='bundled', model__weights=weights)
  assert answer == ('bundled', weights, *model) and notice is None


@pytest.mark.usefixtures('nobody_is_asked')
def test_weights_of_another_run_bring_its_network(world, tmp_path):
  run, _ = world.resolve(data__source='bundled', model__weights='none',
                         model__name='resnet34', model__width=0.25,
                         data__image_size=96)
  config_lib.save(run, tmp_path / 'config.json')
  answer, _ = world.answer(data__source='bundled',
                           model__weights=str(tmp_path))
  assert answer == ('bundled', str(tmp_path), 'resnet34', 0.25, 96)


@pytest.mark.usefixtures('nobody_is_asked')
@pytest.mark.parametrize('given, weights, name, size', [
    ('auto', 'timm:a1_in1k', 'resnet50', 224),
    ('auto', 'timm:a3_in1k', 'resnet50', 160),
    ('resnet18d', 'timm:ra2_in1k', 'resnet18d', 224),
    ('auto', 'keras:imagenet', 'resnet50v1', 224),
    ('resnet101', 'keras:imagenet', 'resnet101v1', 224),
    ('resnet50v2', 'keras:imagenet', 'resnet50v2', 224),
    ('auto', 'bit:BiT-M-R50x3', 'bit_r50x3', 224)])
def test_published_weights_bring_their_network(world, given, weights, name,
                                               size):
  values = {'data__source': 'bundled', 'model__weights': weights,
            'model__name': given}
  answer, notice = world.answer(**values)
  assert answer == ('bundled', weights, name, 1.0, size) and notice is None
  resolved, _ = world.resolve(**values)
  assert auto.resolve(resolved, 'cpu', world.cache) == (resolved, None)
  assert config_lib.differences(config(**values), resolved) == []
  assert world.answer(data__image_size=96, **values)[0][-1] == 96


def test_weights_of_the_hub_say_which_network_they_are_of(world, monkeypatch):
  monkeypatch.setenv('HF_ENDPOINT', world.weights.root)
  put_on_hub(world.weights, 'o/n', {
      'config.json': json.dumps(RESNET_50).encode(),
      'preprocessor_config.json': json.dumps(
          {**PREPROCESSOR, 'size': 192}).encode()})
  values = {'data__source': 'bundled', 'model__weights': 'hf:o/n'}
  expected = ('bundled', 'hf:o/n', 'resnet50', 1.0, 192)
  assert world.answer(**values) == (expected, None)
  world.offline()
  assert world.answer(**values) == (expected, None)
  asked = len(world.weights.asked)
  answer, _ = world.answer(**{**values, 'model__weights': 'hf:o/other'},
                           model__name='resnet18', data__image_size=64)
  assert answer[2:] == ('resnet18', 1.0, 64)
  assert len(world.weights.asked) == asked
  with pytest.raises(UserError, match='o--other/config.json is not there'):
    world.resolve(**{**values, 'model__weights': 'hf:o/other'})


@pytest.mark.usefixtures('nobody_is_asked')
def test_what_lies_beside_a_file_says_which_network_it_is_of(world, tmp_path):
  file = tmp_path / 'model.safetensors'
  file.write_text('')
  (tmp_path / 'config.json').write_text(json.dumps(TIMM))
  answer, _ = world.answer(data__source='bundled', model__weights=str(file))
  assert answer[2:] == ('resnet50', 1.0, 160)


@pytest.mark.usefixtures('nobody_is_asked')
def test_auto_weights_that_only_others_have_are_named(world):
  with pytest.raises(UserError, match='no weights of resnet50v1; set '
                     'config.model.weights to keras:imagenet'):
    world.resolve(model__name='resnet50v1', data__source='folder:x')


@pytest.mark.parametrize('name', SHIPPED)
@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
@pytest.mark.parametrize('reachable', [True, False])
def test_no_auto_is_left_and_it_is_idempotent(world, name, platform,
                                              reachable):
  if not reachable:
    world.offline()
  given = importlib.import_module(f'configs.{name}').get_config()
  resolved, _ = auto.resolve(given, platform, world.cache)
  unresolved = {f for f, v in config_lib.flatten(resolved).items()
                if v in ('auto', None)}
  assert unresolved <= {'data.label_key'}  # The data set itself answers it.
  config_lib.check(resolved)
  assert resolved.is_locked
  assert auto.resolve(resolved, 'cpu', world.cache) == (resolved, None)
  assert config_lib.differences(given, resolved) == []


def test_the_given_config_stays_as_it_was(world):
  given = finetune.get_config()
  auto.resolve(given, 'cpu', world.cache)
  assert given == finetune.get_config()


@pytest.mark.usefixtures('nobody_is_asked')
def test_what_is_concrete_stays_and_only_the_rest_changes(world):
  given = config(model__name='resnet34', data__source='folder:x',
                 data__image_size=48, model__dtype='float32',
                 model__weights='w.pth')
  assert auto.resolve(given, 'gpu', world.cache) == (given, None)


def test_the_dtype_depends_on_the_platform(world):
  world.offline()
  dtypes = {platform: world.resolve(platform)[0].model.dtype
            for platform in ('cpu', 'gpu', 'tpu')}
  assert dtypes == {'cpu': 'float32', 'gpu': 'bfloat16', 'tpu': 'bfloat16'}


@pytest.mark.parametrize('reachable', [True, False])
def test_the_fields_survive_the_box(world, capsys, reachable):
  """A line that breaks within a field could not be copied."""
  if not reachable:
    world.offline()
  _, notice = world.resolve()
  console.box(notice)
  words = capsys.readouterr().out.split()
  for word in notice.split():
    if word.startswith('--config'):
      assert word in words
