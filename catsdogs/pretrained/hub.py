"""Weights of the Hugging Face hub, and what is said there of them."""

import contextlib
import os
import pathlib
import re
from typing import Callable

from catsdogs.errors import UserError
from catsdogs.pretrained import about, published

PREFIX = 'hf:'
_HUB = 'https://huggingface.co'
_REPOSITORY = re.compile(r'[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*', re.ASCII)
# The first that there is.
_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')


def is_repository(name: str) -> bool:
  """Whether a name is of the form OWNER/NAME."""
  return bool(_REPOSITORY.fullmatch(name))


def fetch_weights(repository: str, cache: pathlib.Path,
                  check: Callable[[], None] = lambda: None) -> pathlib.Path:
  """A repository's file of weights, from the cache or else downloaded.

  Args:
    repository: OWNER/NAME. HF_ENDPOINT names another hub than Hugging Face's.
    cache: the folder for what is made once and used again.
    check: called while it takes time; what it raises ends the download.

  Raises:
    UserError: the file cannot be had.
  """
  folder = _folder(repository, cache)
  for name in _WEIGHTS:
    if published.is_whole(folder / name):
      return folder / name
  for name in _WEIGHTS:
    with contextlib.suppress(published.Missing):
      return published.fetch(_url(repository, name), folder, check)
  raise UserError(f'{_HUB}/{repository} has neither {" nor ".join(_WEIGHTS)}; '
                  'name a repository of weights for PyTorch')


def read_about(repository: str, cache: pathlib.Path,
               check: Callable[[], None] = lambda: None) -> about.About:
  """What a repository says of its weights; arguments as above.

  Raises:
    UserError: that cannot be had, or they are of another network.
  """
  folder = _folder(repository, cache)
  config = about.read_json(
      published.fetch(_url(repository, about.CONFIG), folder, check))
  preprocessor = None
  if about.needs_preprocessor(config):
    preprocessor = about.read_json(
        published.fetch(_url(repository, about.PREPROCESSOR), folder, check))
  return about.understand(f'{PREFIX}{repository}', config, preprocessor)


def _folder(repository: str, cache: pathlib.Path) -> pathlib.Path:
  return cache / 'weights' / repository.replace('/', '--')


def _url(repository: str, name: str) -> str:
  hub = os.environ.get('HF_ENDPOINT', '').rstrip('/') or _HUB
  return f'{hub}/{repository}/resolve/main/{name}'
