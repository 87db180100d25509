"""Downloads from servers that are well, ill, or not there."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from catsdogs.errors import UserError
from catsdogs.pretrained import download, web as web_lib
from runs import ROOT
from web_server import Silence, WebServer, closed_url

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MIB = len(CONTENT) / 2**20
SHA256 = hashlib.sha256(CONTENT).hexdigest()
DIGEST = f'sha256:{SHA256}'
GIT = hashlib.sha1(b'blob 3000000\0' + CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def here_alone(monkeypatch):
  """No proxy of this machine's, no network either; short pauses."""
  for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY',
               'CATSDOGS_OFFLINE'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(web_lib, 'PAUSES_SECONDS', (0.01, 0.01))
  monkeypatch.setattr(web_lib, 'STALL_SECONDS', 1.0)


@pytest.fixture(name='web')
def fixture_web():
  with WebServer(CONTENT) as web:
    yield web


def fetch(web, folder, digest=DIGEST, mebibytes=MIB, **arguments
          ) -> pathlib.Path:
  return download.fetch(web.url, digest, mebibytes, folder, **arguments)


def leave_partial(folder: pathlib.Path, content: bytes) -> pathlib.Path:
  folder.mkdir(exist_ok=True)
  partial = folder / 'weights.pth.partial'
  partial.write_bytes(content)
  return partial


def names(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('digest', [
    DIGEST, DIGEST[:15], f'sha256:{SHA256[:8].upper()}',
    f'md5:{hashlib.md5(CONTENT).hexdigest()}', f'git:{GIT}'])
@pytest.mark.parametrize('mebibytes', [MIB, None])
def test_what_is_fetched_is_whole_and_lies_alone(web, tmp_path, digest,
                                                 mebibytes):
  path = fetch(web, tmp_path / 'new' / 'weights', digest, mebibytes)
  assert path.read_bytes() == CONTENT
  assert names(tmp_path / 'new' / 'weights') == ['weights.pth']


def test_a_second_time_nobody_is_asked(web, tmp_path, monkeypatch, capsys):
  path = fetch(web, tmp_path)
  web.asked.clear()
  capsys.readouterr()
  assert fetch(web, tmp_path) == path
  monkeypatch.setenv('CATSDOGS_OFFLINE', '1')
  assert fetch(web, tmp_path) == path
  assert not web.asked and not capsys.readouterr().out


def test_plain_lines_where_there_is_no_terminal(web, tmp_path, capsys):
  fetch(web, tmp_path)
  out, err = capsys.readouterr()
  assert out == f'Downloading {web.url} (2.9 MiB).\n' and not err


def test_a_bar_on_a_terminal(web, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
  fetch(web, tmp_path)
  out = capsys.readouterr().out
  assert '\r' in out and '100%' in out and '3.00M/3.00M' in out


def test_a_damaged_file_is_set_aside_and_fetched_anew(web, tmp_path, capsys):
  path = fetch(web, tmp_path)
  path.write_bytes(CONTENT[:-1] + b'\0')
  assert fetch(web, tmp_path).read_bytes() == CONTENT
  assert names(tmp_path) == ['weights.pth', 'weights.pth.damaged']
  assert f'{path} is damaged' in capsys.readouterr().out


def test_a_partial_file_is_gone_on_with(web, tmp_path, capsys):
  leave_partial(tmp_path, CONTENT[:1_000_000])
  assert fetch(web, tmp_path).read_bytes() == CONTENT
  assert web.asked == [('GET', 'bytes=1000000-')]
  assert names(tmp_path) == ['weights.pth']
  assert 'from 1.0 on' in capsys.readouterr().out


def test_a_whole_partial_file_needs_no_network(web, tmp_path):
  leave_partial(tmp_path, CONTENT)
  assert fetch(web, tmp_path).read_bytes() == CONTENT
  assert not web.asked and names(tmp_path) == ['weights.pth']


@pytest.mark.parametrize('content', [CONTENT[:-1] + b'\0', CONTENT + b'more'])
def test_a_partial_file_that_is_too_long_or_wrong_is_begun_anew(
    web, tmp_path, content):
  leave_partial(tmp_path, content)
  assert fetch(web, tmp_path).read_bytes() == CONTENT
  assert names(tmp_path) == ['weights.pth']


def test_where_the_size_is_unknown_a_partial_file_is_gone_on_with(
    web, tmp_path, capsys):
  leave_partial(tmp_path, CONTENT[:1_000_000])
  assert fetch(web, tmp_path, mebibytes=None).read_bytes() == CONTENT
  assert web.asked == [('GET', 'bytes=1000000-')]
  assert f'Downloading {web.url} (from 1.0 on).' in capsys.readouterr().out
  web.cut_after = 500_000
  (tmp_path / 'weights.pth').unlink()
  with pytest.raises(UserError, match='was cut, 1.4 MiB came; the same'):
    fetch(web, tmp_path, mebibytes=None)


def test_without_ranges_it_begins_anew(web, tmp_path, capsys):
  web.knows_ranges = False
  leave_partial(tmp_path, CONTENT[:1_000_000])
  assert fetch(web, tmp_path).read_bytes() == CONTENT
  assert 'from the beginning' in capsys.readouterr().out


def test_a_cut_connection_is_mended_by_further_tries(web, tmp_path, capsys):
  web.cut_after = 1_200_000
  assert fetch(web, tmp_path).read_bytes() == CONTENT
  assert web.asked == [('GET', ''), ('GET', 'bytes=1200000-'),
                       ('GET', 'bytes=2400000-')]
  assert capsys.readouterr().out.count('trying again') == 2


def test_a_connection_cut_too_often_is_gone_on_with_by_the_next_run(
    web, tmp_path):
  web.cut_after = 500_000
  with pytest.raises(UserError, match=f'{web.url}: the connection was cut, '
                     '1.4 of 2.9 MiB.*goes on'):
    fetch(web, tmp_path)
  assert names(tmp_path) == ['weights.pth.partial']
  web.asked.clear()
  assert fetch(web, tmp_path).read_bytes() == CONTENT
  assert web.asked[0] == ('GET', 'bytes=1500000-')


def test_a_server_that_stalls_is_asked_again(web, tmp_path, capsys):
  web.stall_after = 1_000_000
  assert fetch(web, tmp_path).read_bytes() == CONTENT
  assert 'no answer within 1 s; trying again' in capsys.readouterr().out


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
  monkeypatch.setattr(web_lib, 'STALL_SECONDS', 0.2)
  with Silence(accepts=True) as silent:
    with pytest.raises(UserError, match=f'{silent.url}: no answer within 0.2'):
      fetch(silent, tmp_path)
  assert not names(tmp_path)


@pytest.mark.parametrize('algorithm, told, found', [
    ('sha256', 'SHA-256', SHA256),
    ('md5', 'MD5', hashlib.md5(CONTENT).hexdigest()),
    ('git', 'the git hash', GIT)])
@pytest.mark.parametrize('mebibytes', [MIB, None])
def test_a_wrong_hash_is_told_and_nothing_of_it_stays(
    web, tmp_path, algorithm, told, found, mebibytes):
  with pytest.raises(UserError,
                     match=f'{web.url}.*{told} {found[:16]}.*00000000'):
    fetch(web, tmp_path, f'{algorithm}:{8 * "0"}', mebibytes)
  assert not names(tmp_path)


@pytest.mark.parametrize('status, tries', [(404, 1), (403, 1), (503, 3)])
def test_what_the_server_answers_is_told(web, tmp_path, status, tries):
  web.status = status
  with pytest.raises(UserError,
                     match=f'{web.url}: the server answers {status}'):
    fetch(web, tmp_path)
  assert len(web.asked) == tries and not names(tmp_path)


@pytest.mark.parametrize('left', [b'', CONTENT[:1_000_000]])
def test_the_page_of_a_captive_portal_is_no_file_and_does_no_harm(
    web, tmp_path, left):
  web.content, web.knows_ranges = b'<html>Log in</html>', False
  partial = leave_partial(tmp_path, left)
  with pytest.raises(UserError, match=f'{web.url}: another file.*19 bytes'):
    fetch(web, tmp_path)
  assert (partial.read_bytes() if partial.exists() else b'') == left


def test_a_refused_connection_is_told_at_once(tmp_path):
  url = closed_url()
  with pytest.raises(UserError, match=f'{url}: it refuses the connection; '
                     'connect to the network.*HTTPS_PROXY'):
    download.fetch(url, DIGEST, MIB, tmp_path)
  assert not names(tmp_path)


def test_a_proxy_is_used(tmp_path, monkeypatch):
  with WebServer(CONTENT) as proxy:
    monkeypatch.setenv('http_proxy', proxy.url)
    monkeypatch.delenv('no_proxy', raising=False)
    monkeypatch.delenv('NO_PROXY', raising=False)
    path = download.fetch('http://weights.invalid/a.pth', DIGEST, MIB, tmp_path)
  assert path == tmp_path / 'a.pth' and proxy.asked


def test_offline_nobody_is_asked(web, tmp_path, monkeypatch):
  monkeypatch.setenv('CATSDOGS_OFFLINE', '1')
  with pytest.raises(UserError, match='is not there.*CATSDOGS_OFFLINE') as e:
    fetch(web, tmp_path)
  assert web.url in str(e.value) and str(tmp_path) in str(e.value)
  (tmp_path / 'weights.pth').write_text('damaged')
  with pytest.raises(UserError, match='is damaged.*CATSDOGS_OFFLINE'):
    fetch(web, tmp_path)
  assert not web.asked and names(tmp_path) == ['weights.pth']


@pytest.mark.parametrize('value, expected', [
    ('', False), ('0', False), ('1', True), ('yes', True)])
def test_what_counts_as_offline(monkeypatch, value, expected):
  monkeypatch.setenv('CATSDOGS_OFFLINE', value)
  assert web_lib.offline() == expected


def test_a_folder_that_cannot_be_written_is_told(web, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=f'{tmp_path}/file/weights cannot be '
                     'written .*CATSDOGS_CACHE'):
    fetch(web, tmp_path / 'file' / 'weights')


def test_a_signal_ends_it_and_the_next_run_goes_on(web, tmp_path):
  class Signalled(Exception):
    pass

  def check():
    if sum(path.stat().st_size for path in tmp_path.iterdir()) > 1_000_000:
      raise Signalled

  with pytest.raises(Signalled):
    fetch(web, tmp_path, check=check)
  web.asked.clear()
  assert fetch(web, tmp_path).read_bytes() == CONTENT
  assert web.asked[0][1].startswith('bytes=1')


# What other processes run: they fetch again and again, for each line once.
_FETCH = '''
import json, pathlib, resource, sys
from catsdogs.errors import UserError
from catsdogs.pretrained import download, web as web_lib
for line in sys.stdin:
  url, digest, mebibytes, folder, largest = json.loads(line)
  resource.setrlimit(resource.RLIMIT_FSIZE, (largest, -1))
  try:
    download.fetch(url, digest, mebibytes, pathlib.Path(folder))
    print('done', flush=True)
  except UserError as e:
    print('refused:', e, flush=True)
'''


class Fetcher:
  """A process of its own that fetches what it is told to."""

  def __init__(self):
    self.process = subprocess.Popen(
        [sys.executable, '-c', _FETCH], cwd=ROOT, text=True,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'CATSDOGS_OFFLINE': '',
             'no_proxy': '127.0.0.1'},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

  def start(self, web, folder, largest=-1) -> None:
    """Begins to fetch; no file may be larger than so many bytes."""
    self.process.stdin.write(json.dumps(
        [web.url, DIGEST, MIB, str(folder), largest]) + '\n')
    self.process.stdin.flush()

  def lines(self) -> list[str]:
    """What it said until it was done or refused."""
    lines = []
    while not lines or not lines[-1].startswith(('done', 'refused')):
      lines.append(self.process.stdout.readline().strip())
      assert lines[-1], self.process.wait()
    return lines


@pytest.fixture(name='fetchers', scope='module')
def fixture_fetchers():
  """Two of them; their imports take seconds, so they are kept."""
  fetchers = [Fetcher(), Fetcher()]
  yield fetchers
  for fetcher in fetchers:
    fetcher.process.kill()
    fetcher.process.communicate()


def test_of_two_processes_one_downloads_and_the_other_waits(
    web, tmp_path, fetchers):
  web.bytes_per_second = 3_000_000
  for fetcher in fetchers:
    fetcher.start(web, tmp_path)
  assert sorted(fetcher.lines() for fetcher in fetchers) == [
      ['Another process downloads weights.pth; waiting for it.', 'done'],
      [f'Downloading {web.url} (2.9 MiB).', 'done']]
  assert web.asked == [('GET', '')] and names(tmp_path) == ['weights.pth']


def test_a_full_disk_is_told_and_what_came_stays(web, tmp_path, fetchers):
  fetchers[1].start(web, tmp_path, largest=1_000_000)
  refusal = fetchers[1].lines()[-1]
  assert f'refused: {tmp_path} cannot be written' in refusal
  assert 'make room' in refusal
  partial = tmp_path / 'weights.pth.partial'
  assert CONTENT.startswith(partial.read_bytes())
  assert partial.stat().st_size == 1_000_000


def test_who_waits_goes_on_where_the_other_was_killed(web, tmp_path, fetchers):
  web.bytes_per_second = 1_500_000
  killed, waiting = fetchers
  killed.start(web, tmp_path)
  partial = tmp_path / 'weights.pth.partial'
  while not partial.exists() or partial.stat().st_size < 500_000:
    assert killed.process.poll() is None
    time.sleep(0.01)
  waiting.start(web, tmp_path)
  assert 'waiting' in waiting.process.stdout.readline()
  killed.process.kill()
  killed.process.wait()
  fetchers[0] = Fetcher()
  web.bytes_per_second = None
  assert waiting.lines()[-1] == 'done'
  assert (tmp_path / 'weights.pth').read_bytes() == CONTENT
  first = int(web.asked[1][1].removeprefix('bytes=').removesuffix('-'))
  assert first >= 500_000 and names(tmp_path) == ['weights.pth']


# The look beforehand.

@pytest.mark.parametrize('refuses_head', [False, True])
@pytest.mark.parametrize('knows_ranges', [False, True])
def test_a_file_of_that_size_is_found(web, refuses_head, knows_ranges):
  web.refuses_head, web.knows_ranges = refuses_head, knows_ranges
  assert download.look(web.url, round(MIB, 3), 5) == ''
  expected = [('HEAD', '')] + refuses_head * [('GET', 'bytes=0-0')]
  assert web.asked == expected


def test_a_file_of_another_size_is_not(web):
  assert download.look(web.url, MIB + 0.001, 5) == (
      'it answers with another file')
  web.content = b'<html>Log in</html>'
  assert download.look(web.url, MIB, 5) == 'it answers with another file'


@pytest.mark.parametrize('refuses_head', [False, True])
@pytest.mark.parametrize('status', [404, 500])
def test_an_error_of_the_server_is_the_reason(web, status, refuses_head):
  web.status, web.refuses_head = status, refuses_head
  assert download.look(web.url, MIB, 5) == f'it answers {status}'


def test_a_closed_port_is_the_reason():
  assert download.look(closed_url(), MIB, 5) == 'it refuses the connection'


@pytest.mark.parametrize('accepts', [True, False])
def test_a_black_hole_takes_no_longer_than_the_bound(accepts):
  with Silence(accepts) as silent:
    assert download.look(silent.url, MIB, 0.5) == 'no answer within 0.5 s'


def test_a_name_server_that_is_slow_takes_no_longer_either(monkeypatch):
  asked_long_enough = threading.Event()
  def slow(*_, **__):
    asked_long_enough.wait(60)
    raise OSError('no answer')
  monkeypatch.setattr(web_lib.socket, 'getaddrinfo', slow)
  assert download.look('http://weights.invalid/a', MIB, 0.3) == (
      'no answer within 0.3 s')
  asked_long_enough.set()


def test_a_name_that_nobody_knows_is_the_reason(monkeypatch):
  def unknown(*_, **__):
    raise web_lib.socket.gaierror(-2, 'Name or service not known')
  monkeypatch.setattr(web_lib.socket, 'getaddrinfo', unknown)
  assert download.look('http://weights.invalid/a', MIB, 5) == 'no such host'


@pytest.mark.parametrize('url', ['http://[', 'gopher://x/', 'http://a b/',
                                 'http://x:y/', 'weights.pth'])
def test_an_address_that_is_none_has_a_reason_too(url):
  assert download.look(url, MIB, 5)
