"""What is said, by whom, and on which kind of terminal."""

import io
import sys

import jax
import pytest

from catsdogs import console


class Terminal(io.StringIO):

  def isatty(self) -> bool:
    return True


def on_a_terminal(monkeypatch) -> Terminal:
  # No fixture: pytest sets stdout anew between those and the test.
  stdout = Terminal()
  monkeypatch.setattr(sys, 'stdout', stdout)
  return stdout


@pytest.fixture
def fake_time(monkeypatch):
  class FakeTime:
    now = 100.0
    monotonic = staticmethod(lambda: FakeTime.now)
  monkeypatch.setattr(console, 'time', FakeTime)
  return FakeTime


def test_say_prints_a_line(capsys):
  console.say('Found 3 photos.')
  assert capsys.readouterr().out == 'Found 3 photos.\n'


def test_only_process_0_speaks(monkeypatch):
  terminal = on_a_terminal(monkeypatch)
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  console.say('hello')
  console.box('hello')
  progress = console.EpochProgress(1, 2.0, 0, 0, 10)
  progress.advance()
  progress.report(0.5, 0.5, 10.0)
  progress.close()
  assert terminal.getvalue() == ''


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252', 'utf-8'])
def test_what_stdout_cannot_encode_is_escaped(encoding, monkeypatch):
  written = io.BytesIO()
  monkeypatch.setattr(sys, 'stdout',
                      io.TextIOWrapper(written, encoding, newline='\n'))
  console.say('classes 猫, \udcff and dog')
  text = written.getvalue().decode(encoding)
  assert text.startswith('classes ') and text.endswith('\\udcff and dog\n')


@pytest.mark.parametrize('name,shown', [
    ('cat 1.jpg', 'cat 1.jpg'), ('Kätzchen 猫.jpg', 'Kätzchen 猫.jpg'),
    ('a\nb\tc\x1b[31m', r'a\nb\tc\x1b[31m'), ('\udcff.jpg', r'\udcff.jpg'),
    ('\u202egpj.exe', r'\u202egpj.exe')])
def test_a_printable_name_is_one_line_without_control_characters(name, shown):
  assert console.printable(name) == shown


def test_a_box_of_80_columns_is_drawn_around_the_whole_message(capsys):
  message = ' '.join(f'word{i}' for i in range(40))
  console.box(message)
  lines = capsys.readouterr().out.splitlines()
  assert {len(line) for line in lines} == {80}
  assert lines[0] == lines[-1] == '+' + '-' * 78 + '+'
  assert ' '.join(line[1:-1].strip() for line in lines[1:-1]) == message


def test_progress_is_plain_lines_where_stdout_is_no_terminal(capsys,
                                                             fake_time):
  progress = console.EpochProgress(2, 2.5, 10, 10, 20)
  for _ in range(4):
    progress.advance()
  fake_time.now += 8
  progress.report(0.51239, 0.75, 123.4)
  progress.close()
  assert capsys.readouterr().out == (
      'Epoch 2/2.5, step 4/10: loss 0.5124, accuracy 0.7500, 123 images/s, '
      '12 s left\n')


def test_time_left_after_an_interruption_is_by_the_steps_since(capsys,
                                                               fake_time):
  progress = console.EpochProgress(1, 1.0, 0, 6, 10)
  progress.advance()
  progress.advance()
  fake_time.now += 10
  progress.report(0.5, 0.5, None)
  assert capsys.readouterr().out.endswith(
      'step 8/10: loss 0.5000, accuracy 0.5000, 10 s left\n')


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
  terminal = on_a_terminal(monkeypatch)
  progress = console.EpochProgress(1, 2.0, 0, 0, 10)
  for _ in range(10):
    progress.advance()
  progress.report(0.5, 0.75, 20.0)
  progress.close()
  text = terminal.getvalue()
  assert '\r' in text and 'Epoch 1/2' in text and '10/10' in text
  assert 'loss 0.5000, accuracy 0.7500, 20 images/s' in text
  assert text.endswith('\n')
