"""What accuracy, and why: python -m benchmarks.why --config.data.source=SOURCE

Runs the controls that answer it, each a run of launch.py in its own workdir,
and prints them as a table in Markdown. Broken off, the same command goes on,
and runs that are finished stay. All --config.FIELD=VALUE go to every run.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from typing import Any, NoReturn

from benchmarks.side_by_side import machine


@dataclasses.dataclass(frozen=True)
class _Row:
  """One run: its config file, what differs from that, and both in words."""

  config: str
  samples: str
  fields: dict[str, str] = dataclasses.field(default_factory=dict)
  control: str = ''


_ROWS = {
    'debug': _Row('debug', '1/20 of the samples'),
    'one_epoch': _Row('finetune', 'all samples', {'train.epochs': '1.0'}),
    'finetune': _Row('finetune', 'all samples'),
    # As many samples as Keras saw below: 30,000 of 7,178 photos.
    'long': _Row('finetune', 'all samples', {'train.epochs': '4.2'}),
    'random': _Row('finetune', 'all samples', {'model.weights': 'none'},
                   ', from random weights'),
    'frozen': _Row('linear_probe', 'all samples',
                   control=', the backbone frozen'),
}
# What the rows differ in is not to be set for all of them.
_OWN_FIELDS = ('train.epochs', 'data.sample_fraction')
# A finished run of the first of these tells of the weights before training,
# and which network `random` is to have.
_MAIN = ('finetune', 'one_epoch', 'long', 'debug')
# The exercise's own record: accuracy, photos right, of how many, seconds. Its
# 0.9185 is no share of 1,796: Keras saw some of the photos more often.
_KERAS = {'debug': (0.6562, 21, 32, None),
          'long': (0.9185, 0.9185 * 1796, 1796, 4101.0)}


def main() -> None:
  flags, passed = _parse()
  signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
  commands, results = {}, {}
  main_row = next((name for name in _MAIN if name in flags.rows), None)
  for name in flags.rows:
    workdir = flags.workdir / name
    fields = dict(_ROWS[name].fields)
    if name == 'random':  # Nothing else than the weights is to differ.
      config = json.loads((flags.workdir / main_row / 'config.json')
                          .read_text())
      fields |= {f'{part}.{field}': str(config[part][field])
                 for part, field in (('model', 'name'), ('model', 'width'),
                                     ('data', 'image_size'),
                                     ('data', 'source'))}
    fields = {**fields, **passed, **fields}  # A row's own come first, and win.
    commands[name] = [
        'launch.py', f'--config=configs/{_ROWS[name].config}.py',
        f'--workdir={workdir}',
        *(f'--config.{field}={value}' for field, value in fields.items())]
    print(f'{name}:', _shown(commands[name]), file=sys.stderr, flush=True)
    status = _run(commands[name])
    if status:
      _refuse(f'the row {name!r} ended with status {status}, as told above; '
              'the same command goes on', status)
    results[name] = json.loads((workdir / 'results.json').read_text())

  about = {f'{result["model"]["name"]} on {result["data"]["source"]}'
           for result in results.values()}
  if len(about) > 1:  # Such as where `auto` found another answer meanwhile.
    _refuse(f'the rows cannot be compared: {"; ".join(sorted(about))}; name '
            'one --config.data.source and --config.model.name for all')
  lines = _lines(results, commands, main_row, flags.workdir)
  _print_table(lines)
  if flags.json:
    flags.json.write_text(json.dumps(
        [{'benchmark': 'why', **line, 'machine': machine()}
         for line in lines], indent=2) + '\n')


def _parse() -> tuple[argparse.Namespace, dict[str, str]]:
  """The flags, and the values for every run by dotted field."""
  parser = argparse.ArgumentParser(
      description=__doc__, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rows', default=','.join(_ROWS),
                      help='separated by commas: %(default)s (all)')
  parser.add_argument('--workdir', type=pathlib.Path,
                      default=pathlib.Path('runs/why'),
                      help='for the workdirs of the runs: %(default)s')
  parser.add_argument('--json', type=pathlib.Path, help='a file for the rows')
  flags, others = parser.parse_known_args()
  asked, passed = flags.rows.split(','), {}
  for name in asked:
    if name not in _ROWS:
      _refuse(f'--rows: {name!r} is none of {", ".join(_ROWS)}')
  flags.rows = [name for name in _ROWS if name in asked]
  if 'random' in asked and not set(_MAIN) & set(asked):
    _refuse("--rows: 'random' takes the network from another row; add one of "
            + ', '.join(_MAIN))
  for argument in others:
    match = re.fullmatch(r'--config\.([\w.]+)=(.*)', argument, re.DOTALL)
    if not match:
      _refuse(f'{argument!r} is neither a flag of ours nor of the form '
              '--config.FIELD=VALUE')
    if match[1] in _OWN_FIELDS:
      _refuse(f'--config.{match[1]} is what the rows differ in; leave it out')
    passed[match[1]] = match[2]
  return flags, passed


def _run(command: list[str]) -> int:
  """Runs it to its end, on our stderr; returns its exit status."""
  process = subprocess.Popen([sys.executable, *command], stdout=sys.stderr)
  try:
    status = process.wait()
  except BaseException:  # A signal to us: let the run save what it learnt.
    process.terminate()
    process.wait()
    raise
  return status if status >= 0 else 128 - status  # As shells tell a signal.


def _lines(results: dict[str, dict[str, Any]], commands: dict[str, list[str]],
           main_row: str | None, workdir: pathlib.Path
           ) -> list[dict[str, Any]]:
  """The lines of the table, each from the `results.json` of a run.

  Args:
    results: of each row.
    commands: that made them.
    main_row: the row that tells of the weights before training, if any.
    workdir: of all rows.
  """
  # Imported here, since it takes seconds.
  from catsdogs.evaluate import confidence_interval
  classes = len(next(iter(results.values()))['data']['classes'])
  lines = [_line('guess', f'a guess, one of {classes} classes', 1 / classes)]
  before = main_row and results[main_row]['before']
  if before:
    accuracy, count = before['val_accuracy'], before['val_count']
    lines.append(_line(
        'before', f'before training ({before["model"]})', accuracy, count,
        before['val_accuracy_interval'],
        how=_shown(['launch.py', '--mode=evaluate', '--checkpoint=pretrained',
                    f'--workdir={workdir / main_row}'])))
  for name, result in results.items():
    row, epochs = _ROWS[name], result['epochs']
    lines.append(_line(
        name, f'{row.samples}, {epochs:g} epoch{"s" * (epochs != 1)}'
        f'{row.control}', result['val_accuracy'], result['val_count'],
        result['val_accuracy_interval'], result['seconds_total'],
        _shown(commands[name])) | {
            key: result[key] for key in ('data', 'model', 'device')})
    if name in _KERAS:
      accuracy, right, count, seconds = _KERAS[name]
      lines.append(_line(
          f'keras_{name}', 'Keras, on the photos of the exercise', accuracy,
          count, confidence_interval(right, count), seconds,
          "the exercise's own record"))
  return lines


def _line(row: str, what: str, accuracy: float, count: int | None = None,
          interval: tuple[float, float] | None = None,
          seconds: float | None = None, how: str = '') -> dict[str, Any]:
  return {'row': row, 'what': what, 'val_accuracy': accuracy,
          'val_accuracy_interval': interval, 'val_count': count,
          'seconds_total': seconds, 'command': how}


def _print_table(lines: list[dict[str, Any]]) -> None:
  print('| what | val accuracy | photos | 95% interval | seconds | command |')
  print('|---|---|---|---|---|---|')
  for line in lines:
    interval, seconds = line['val_accuracy_interval'], line['seconds_total']
    how = line['command'].replace('|', r'\|')
    cells = [
        line['what'], f'{line["val_accuracy"]:.4f}', line['val_count'] or '',
        f'{interval[0]:.3f} to {interval[1]:.3f}' if interval else '',
        '' if seconds is None else f'{seconds:.0f}',
        f'`{how}`' if how.startswith('python') else how]
    print(f'| {" | ".join(map(str, cells))} |')


def _shown(command: list[str]) -> str:
  return shlex.join(['python', *command])


def _refuse(problem: str, status: int = 2) -> NoReturn:
  print('Error:', problem, file=sys.stderr)
  sys.exit(status)


if __name__ == '__main__':
  try:
    main()
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
