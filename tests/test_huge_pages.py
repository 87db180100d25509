"""Huge pages: when they are asked for, and what a restart must not lose."""

import json
import os
import subprocess
import sys

import pytest

from catsdogs import huge_pages
from runs import ROOT

SETTING = 'glibc.malloc.hugetlb=1'


@pytest.fixture(name='choice', autouse=True)
def fixture_choice(monkeypatch, tmp_path):
  """The file that says who chooses; on Linux, where nothing is set yet."""
  file = tmp_path / 'enabled'
  file.write_text('always [madvise] never\n')
  monkeypatch.setattr(huge_pages, '_CHOICE', file)
  monkeypatch.setattr(sys, 'platform', 'linux')
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  return file


def test_where_the_program_may_choose_it_asks_for_huge_pages():
  assert huge_pages.environment() == {'GLIBC_TUNABLES': SETTING}


@pytest.mark.parametrize('text', ['[always] madvise never\n',
                                  'always madvise [never]\n'])
def test_nothing_is_added_where_the_system_has_chosen(choice, text):
  choice.write_text(text)
  assert huge_pages.environment() == {}


def test_nothing_is_added_where_nobody_can_choose(choice):
  choice.unlink()
  assert huge_pages.environment() == {}


@pytest.mark.parametrize('platform', ['darwin', 'win32'])
def test_nothing_is_added_on_another_system(monkeypatch, platform):
  monkeypatch.setattr(sys, 'platform', platform)
  assert huge_pages.environment() == {}


def test_other_settings_are_kept(monkeypatch):
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=1')
  assert huge_pages.environment() == {
      'GLIBC_TUNABLES': f'glibc.malloc.check=1:{SETTING}'}


@pytest.mark.parametrize('setting', [
    SETTING, 'glibc.malloc.hugetlb=0', f'glibc.malloc.check=1:{SETTING}'])
def test_a_choice_that_somebody_made_stands(monkeypatch, setting):
  monkeypatch.setenv('GLIBC_TUNABLES', setting)
  assert huge_pages.environment() == {}


# Tells of each start of it, so that a second one shows.
SCRIPT = '''
import json, os, pathlib, sys
from catsdogs import huge_pages

huge_pages._CHOICE = pathlib.Path(sys.argv[1])
print(json.dumps([os.getpid(), sys.argv[1:], sys._xoptions.get('mine'),
                  sys.warnoptions, os.environ.get('GLIBC_TUNABLES')]),
      flush=True)
huge_pages.restart_with()
sys.exit(7)
'''


@pytest.mark.skipif(not sys.platform.startswith('linux'),
                    reason='only Linux has these pages')
@pytest.mark.parametrize('text, starts', [
    ('always [madvise] never\n', 2), ('[always] madvise never\n', 1)])
def test_a_restart_happens_once_and_loses_nothing(choice, tmp_path, text,
                                                  starts):
  choice.write_text(text)
  script = tmp_path / 'script.py'
  script.write_text(SCRIPT)
  arguments = [str(choice), '--flag=a b', "it's", '']
  process = subprocess.Popen(
      [sys.executable, '-X', 'mine=yes', '-W', 'ignore::ResourceWarning',
       str(script), *arguments], stdout=subprocess.PIPE, text=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT)})
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 7
  told = [[process.pid, arguments, 'yes', ['ignore::ResourceWarning'],
           setting] for setting in (None, SETTING)]
  assert [json.loads(line) for line in out.splitlines()] == told[:starts]


def test_launch_without_a_word_still_gets_one_line_and_status_2():
  done = subprocess.run(
      [sys.executable, 'launch.py'], cwd=ROOT, capture_output=True, text=True,
      check=False, timeout=120)
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 1 and '--config' in done.stderr
  assert not done.stdout
