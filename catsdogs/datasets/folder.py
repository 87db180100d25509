"""Photos in folders: `train/` and `val/`, class folders, or class prefixes."""

import os
import pathlib
import re
import stat
from typing import Sequence

import numpy as np

from catsdogs.datasets import Source, Split, stable_hash
from catsdogs.errors import UserError
from catsdogs.photos import MAX_PIXELS

TRAIN_NAMES = ('train', 'training')
VAL_NAMES = ('val', 'valid', 'validation', 'test')

_LAYOUTS = ('It should hold train/ and val/ with a folder for each class, or '
            'a folder for each class, or files such as cat.0.jpg and '
            'dog.0.jpg')

# What Windows, macOS and Synology put into folders and do not show to people.
_HIDDEN = ('thumbs.db', 'ehthumbs.db', 'desktop.ini', '__macosx', '@eadir',
           'lost+found', '$recycle.bin', '#recycle',
           'system volume information')
# A photo of four channels of 16 bits takes no more; a film may.
_MAX_BYTES = 8 * MAX_PIXELS

# A class and the paths of its files, relative to the root.
_Classes = dict[str, list[str]]


def open_folder(root: pathlib.Path, val_fraction: float) -> Source:
  """Finds the photos below a folder and the class of each.

  Nothing is opened: whether a file is a photo is seen when it is decoded.

  Args:
    root: the folder, in one of the three layouts of `_LAYOUTS`.
    val_fraction: share of each class that validates, where the folder has no
      split of its own. A hash of the relative path chooses, so that a photo
      stays on its side when the folder moves.

  Raises:
    UserError: no such folder, no photos, fewer than two classes, an empty
      class, or a class that only one side has.
  """
  if not root.is_dir():
    raise UserError(f'data.source: there is no folder {root}; check the path')
  train_dir = _subfolder(root, TRAIN_NAMES)
  val_dir = _subfolder(root, VAL_NAMES)
  passed_over: list[tuple[str, str]] = []
  notices = []
  if train_dir and val_dir:
    train = _find_classes(root, train_dir, passed_over)
    val = _find_classes(root, val_dir, passed_over)
    _check_same_classes(root, train_dir, train, val_dir, val)
  else:
    classes = _find_classes(root, train_dir or '', passed_over)
    train, val = _divide(classes, val_fraction)
    alone = [name for name in classes if len(classes[name]) == 1]
    if alone:
      notices.append(
          f'{_listed(alone)} has a single photo, which is trained on and '
          'validated on: the accuracy says nothing about new photos')

  names = sorted(train, key=natural_key)
  if len(names) < 2:
    raise UserError(f'data.source: {root} has one class only ({names[0]!r}); a '
                    f'classifier needs two or more. {_LAYOUTS}')
  return Source(f'folder:{root}', tuple(names), _split(root, names, train),
                _split(root, names, val), tuple(passed_over), tuple(notices))


def open_labelled(root: pathlib.Path,
                  class_names: tuple[str, ...]) -> Split:
  """Class folders, or prefixed files, whose classes are known already.

  Args:
    root: the folder; not every class needs to be there.
    class_names: in the order of the labels.

  Raises:
    UserError: there are no photos, or there is a class that is not known.
  """
  if not root.is_dir():
    raise UserError(f'--images: there is no folder {root}; check the path')
  classes = _find_classes(root, '', [], field='--images')
  unknown = sorted(classes.keys() - set(class_names), key=natural_key)
  if unknown:
    raise UserError(f'--images: {root} has {_listed(unknown)}, but the '
                    f'checkpoint knows {_listed(list(class_names))} alone; '
                    'give photos of these classes')
  return _split(root, class_names, {name: classes.get(name, [])
                                    for name in class_names})


def natural_key(name: str) -> list:
  """Sorts 'class2' before 'class10', and upper case beside lower case."""
  parts = re.split(r'(\d+)', name)
  return [(int(p), '') if p.isdecimal() else (-1, p.casefold())
          for p in parts] + [(-1, name)]


def files_below(folder: pathlib.Path) -> list[str]:
  """Relative paths of all files below, in natural order; hidden ones left out.

  Links are followed, and each folder is entered once, whether it contains
  itself or several links lead to it. A folder below that cannot be listed
  stands in its place like a file: `read_file` gives the reason.
  """
  found: list[str] = []
  entered: set[str] = set()
  pending = ['']
  while pending:
    relative = pending.pop()
    # False too for what may not be looked at, where pathlib's raises.
    if not os.path.isdir(folder / relative):
      found.append(relative)
      continue
    here = os.path.realpath(folder / relative)
    if here in entered:
      continue
    entered.add(here)
    try:
      names = _visible_names(folder / relative)
    except UserError:
      if not relative:
        raise
      found.append(relative)
      continue
    pending += [f'{relative}/{name}' if relative else name
                for name in reversed(names)]
  return found


def _visible_names(folder: pathlib.Path) -> list[str]:
  try:
    names = os.listdir(folder)
  except OSError as e:
    raise UserError(f'{folder} cannot be read ({e.strerror}); mend its '
                    'permissions') from e
  return sorted((name for name in names if not name.startswith('.')
                 and name.casefold() not in _HIDDEN), key=natural_key)


def _subfolder(root: pathlib.Path, names: tuple[str, ...]) -> str | None:
  return next((name for name in names if os.path.isdir(root / name)), None)


def _find_classes(root: pathlib.Path, side: str,
                  passed_over: list[tuple[str, str]],
                  field: str = 'data.source') -> _Classes:
  """The classes of one side, by their folders or else by files' prefixes.

  An error names the field or flag that the folder came from.
  """
  folder = root / side
  names = _visible_names(folder)
  subfolders = [name for name in names if os.path.isdir(folder / name)]
  files = [name for name in names if name not in subfolders]

  def path(*parts: str) -> str:
    return '/'.join(part for part in (side, *parts) if part)

  classes: _Classes = {}
  if subfolders:
    for name in subfolders:
      classes[name] = [path(name, f) for f in files_below(folder / name)]
    passed_over += [(path(f), 'lies outside the class folders')
                    for f in files]
  else:
    for file in files:
      name = _class_prefix(file)
      if name:
        classes.setdefault(name, []).append(path(file))
      else:
        passed_over.append((path(file), 'its name bears no class'))

  if not any(classes.values()):
    raise UserError(f'{field}: there are no photos in {folder}. {_LAYOUTS}')
  empty = [name for name, paths in classes.items() if not paths]
  if empty:
    raise UserError(f'{field}: {_listed(empty)} in {folder} is empty; put '
                    'photos there or remove the folder')
  return classes


def _class_prefix(file: str) -> str | None:
  """'cat' of 'cat.0.jpg', 'great_pyrenees' of 'great_pyrenees_15.jpg'."""
  stem = os.path.splitext(file)[0]
  numbered = re.fullmatch(r'(.*?\D)\d+\)?', stem)
  prefix = numbered[1] if numbered else stem.rpartition('.')[0]
  return prefix.split('.')[0].rstrip(' _-(') or None


def _divide(classes: _Classes, val_fraction: float
            ) -> tuple[_Classes, _Classes]:
  """Divides each class into training and validation by hashes of paths."""
  train, val = {}, {}
  for name, paths in classes.items():
    count = min(max(1, round(len(paths) * val_fraction)),
                max(1, len(paths) - 1))
    chosen = set(sorted(paths, key=stable_hash)[:count])
    val[name] = [path for path in paths if path in chosen]
    train[name] = [path for path in paths if path not in chosen] or paths
  return train, val


def _check_same_classes(root: pathlib.Path, train_dir: str, train: _Classes,
                        val_dir: str, val: _Classes) -> None:
  for side, own, other_side, other in ((train_dir, train, val_dir, val),
                                       (val_dir, val, train_dir, train)):
    missing = sorted(own.keys() - other.keys(), key=natural_key)
    if missing:
      raise UserError(
          f'data.source: {root / side} has {_listed(missing)}, which '
          f'{root / other_side} lacks; both need the same classes')


def _split(root: pathlib.Path, names: Sequence[str],
           classes: _Classes) -> Split:
  paths = [path for name in names for path in classes[name]]
  labels = np.repeat(np.arange(len(names), dtype=np.int32),
                     [len(classes[name]) for name in names])
  return Split(paths, labels, lambda i: read_file(root / paths[i]))


def read_file(path: pathlib.Path) -> bytes:
  """The file's bytes.

  Raises:
    OSError: it cannot be read, or is no photo for certain: a pipe or a device,
      which could hang, or larger than any photo.
  """
  status = path.stat()
  if stat.S_ISDIR(status.st_mode):
    raise OSError('a folder that cannot be read')
  if not stat.S_ISREG(status.st_mode):
    raise OSError('a pipe, socket or device, not a file')
  if status.st_size > _MAX_BYTES:
    raise OSError(f'{status.st_size:,} bytes are too many for a photo')
  return path.read_bytes()


def _listed(names: list[str]) -> str:
  shown = ', '.join(repr(name) for name in names[:5])
  more = f' and {len(names) - 5} more' if len(names) > 5 else ''
  return f'class{"es" if len(names) > 1 else ""} {shown}{more}'
