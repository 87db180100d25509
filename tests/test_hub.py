"""Weights of the Hugging Face hub, from a hub on this machine."""

import base64
import hashlib
import json

import pytest

from catsdogs.errors import UserError
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained import hub, published, web as web_lib
from hub_files import PREPROCESSOR, RESNET_50, put_on_hub
from web_server import Page, WebServer, closed_url

WEIGHTS = bytes(range(256)) * 4000
MD5 = 'x-goog-hash'


@pytest.fixture(name='web', autouse=True)
def fixture_web(monkeypatch):
  """A hub with nothing on it, and no other network."""
  for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY',
               'CATSDOGS_OFFLINE'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(web_lib, 'PAUSES_SECONDS', (0.01, 0.01))
  with WebServer(b'') as web:
    monkeypatch.setenv('HF_ENDPOINT', f'{web.root}/')
    put_on_hub(web, 'o/n', {})
    yield web


def path_of(name: str) -> str:
  return f'/o/n/resolve/main/{name}'


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_the_weights_come_from_where_the_hub_sends_us(web, tmp_path, name):
  with WebServer(b'') as store:  # Another host, since of another port.
    put_on_hub(web, 'o/n', {name: WEIGHTS}, store)
    path = hub.fetch_weights('o/n', tmp_path)
    assert store.paths == [f'/store/{name}']  # For the content alone.
  assert path == tmp_path / 'weights' / 'o--n' / name
  assert path.read_bytes() == WEIGHTS
  note = json.loads((path.parent / f'{name}.published').read_text())
  assert note == {
      'url': web.root + path_of(name), 'size': len(WEIGHTS),
      'digest': f'sha256:{hashlib.sha256(WEIGHTS).hexdigest()}',
      'commit': 40 * 'c'}


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_what_is_there_stays_and_needs_no_network(web, tmp_path, monkeypatch,
                                                  name):
  put_on_hub(web, 'o/n', {name: WEIGHTS})
  path = hub.fetch_weights('o/n', tmp_path)
  put_on_hub(web, 'o/n', {name: WEIGHTS + b'a newer version'})
  web.paths.clear()
  assert hub.fetch_weights('o/n', tmp_path) == path
  monkeypatch.setenv('CATSDOGS_OFFLINE', '1')
  assert hub.fetch_weights('o/n', tmp_path) == path
  assert not web.paths and path.read_bytes() == WEIGHTS
  path.write_bytes(WEIGHTS[:-1])
  if name == 'model.safetensors':
    with pytest.raises(UserError, match='is damaged.*CATSDOGS_OFFLINE'):
      hub.fetch_weights('o/n', tmp_path)
  monkeypatch.delenv('CATSDOGS_OFFLINE')
  assert hub.fetch_weights('o/n', tmp_path).read_bytes().endswith(b'version')
  assert (path.parent / f'{name}.damaged').exists()


def test_offline_nobody_is_asked(web, tmp_path, monkeypatch):
  monkeypatch.setenv('CATSDOGS_OFFLINE', '1')
  for ask in (hub.fetch_weights, hub.read_about):
    with pytest.raises(UserError, match='o--n/.* is not there, and CATSDOGS_'):
      ask('o/n', tmp_path)
  assert not web.paths and not list(tmp_path.iterdir())


def test_a_broken_download_is_gone_on_with(web, tmp_path):
  put_on_hub(web, 'o/n', {'model.safetensors': WEIGHTS})
  web.cut_after = 400_000
  assert hub.fetch_weights('o/n', tmp_path).read_bytes() == WEIGHTS
  assert ('GET', 'bytes=400000-') in web.asked


def test_another_content_than_the_hub_told_is_refused(web, tmp_path):
  put_on_hub(web, 'o/n', {'model.safetensors': WEIGHTS})
  web.pages['/store/model.safetensors'].content = WEIGHTS[:-1] + b'?'
  with pytest.raises(UserError, match='what came has SHA-256'):
    hub.fetch_weights('o/n', tmp_path)
  assert not (tmp_path / 'weights' / 'o--n' / 'model.safetensors').exists()


def test_a_page_of_the_hub_is_followed_within_its_house(web, tmp_path):
  put_on_hub(web, 'new/n', {'model.safetensors': WEIGHTS})
  web.pages[path_of('model.safetensors')] = Page(b'', 307, {
      'Location': '/new/n/resolve/main/model.safetensors'})
  assert hub.fetch_weights('o/n', tmp_path).read_bytes() == WEIGHTS


@pytest.mark.parametrize('headers', [
    {}, {'ETag': '"abc"'}, {'X-Linked-Etag': '"12"', 'X-Linked-Size': 'x'}])
@pytest.mark.parametrize('status', [200, 302])
def test_an_answer_without_a_hash_is_refused(web, tmp_path, headers, status):
  if status == 302:  # As a network does that wants us to log in.
    headers = {**headers, 'Location': closed_url()}
  web.pages[path_of('model.safetensors')] = Page(b'log in', status, headers)
  with pytest.raises(UserError, match='tells no hash.*log in first'):
    hub.fetch_weights('o/n', tmp_path)


@pytest.mark.parametrize('status, code, words', [
    (401, 'RepoNotFound', 'answers 401, there is no such repository, or'),
    (404, 'RepoNotFound', 'answers 404, there is no such repository, or'),
    (403, 'GatedRepo', 'answers 403, its owner wants to be asked'),
    (401, '', 'answers 401, it is not public; check the name'),
    (404, 'EntryNotFound', 'neither model.safetensors nor pytorch_model.bin'),
    (410, '', 'answers 410; download the file by other means'),
    (503, '', 'answers 503')])
def test_what_the_hub_refuses_is_told(web, tmp_path, status, code, words):
  web.status, web.headers = status, {'X-Error-Code': code}
  with pytest.raises(UserError, match=words) as refused:
    hub.fetch_weights('o/n', tmp_path)
  assert '\n' not in str(refused.value)
  assert len(web.paths) == {503: 3}.get(status, 2 if 'neither' in words else 1)


def test_a_hub_that_is_not_there_is_told(tmp_path, monkeypatch):
  monkeypatch.setenv('HF_ENDPOINT', closed_url())
  with pytest.raises(UserError, match='it refuses the connection; connect'):
    hub.fetch_weights('o/n', tmp_path)


def test_what_is_said_of_the_weights(web, tmp_path, monkeypatch):
  put_on_hub(web, 'o/n', {
      'config.json': json.dumps(RESNET_50).encode(),
      'preprocessor_config.json': json.dumps(PREPROCESSOR).encode()})
  said = hub.read_about('o/n', tmp_path)
  assert said.model == 'resnet50' and said.class_names is None
  assert said.preprocessing == Preprocessing(224, interpolation='bicubic')
  monkeypatch.setenv('CATSDOGS_OFFLINE', '1')
  assert hub.read_about('o/n', tmp_path) == said
  del web.pages[path_of('preprocessor_config.json')]
  monkeypatch.delenv('CATSDOGS_OFFLINE')
  with pytest.raises(UserError, match='preprocessor_config.json: .*404'):
    hub.read_about('o/n', tmp_path / 'other')


def test_a_small_file_is_checked_too(web, tmp_path):
  put_on_hub(web, 'o/n', {'config.json': b'{}'})
  web.pages[path_of('config.json')].content = b'[]'
  with pytest.raises(UserError, match='what came has the git hash'):
    hub.read_about('o/n', tmp_path)


# Of Google's storage.

def test_the_md5_of_googles_storage_is_the_hash(web, tmp_path):
  web.status, web.content = 200, WEIGHTS
  def tell_md5(digest: bytes) -> None:
    md5 = base64.b64encode(digest).decode()
    web.headers = {MD5: f'crc32c=AAAAAA==,md5={md5}'}

  tell_md5(bytes(16))
  with pytest.raises(UserError, match='has MD5 .*, not 0000'):
    published.fetch(f'{web.root}/BiT.npz', tmp_path)
  tell_md5(hashlib.md5(WEIGHTS).digest())
  path = published.fetch(f'{web.root}/BiT.npz', tmp_path)
  assert path.read_bytes() == WEIGHTS and published.is_whole(path)
  web.headers = {MD5: 'crc32c=AAAAAA=='}
  with pytest.raises(UserError, match='tells no hash'):
    published.fetch(f'{web.root}/other.npz', tmp_path)
