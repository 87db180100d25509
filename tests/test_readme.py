"""What the README promises in tables is what the code has."""

import pathlib
import re

from catsdogs.config import flatten
from configs import finetune

README = pathlib.Path(__file__).parent.parent / 'README.md'


def test_the_table_of_fields_has_each_with_its_default():
  table = dict(re.findall(r'^\| `([\w.]+)` \| `(.*?)` \|', README.read_text(),
                          re.MULTILINE))
  defaults = flatten(finetune.get_config())
  assert table == {field: repr(value) for field, value in defaults.items()}


def test_every_file_that_is_named_exists():
  text = README.read_text()
  section = text[text.index('## The code'):]
  for row in re.findall(r'^\| (`[^|]*`) \|', section, re.MULTILINE):
    folder = ''
    for name in re.findall(r'`([^`]+)`', row):
      folder = 'catsdogs/' if name.startswith('catsdogs/') else folder
      path = name if name.startswith(folder) else folder + name
      assert (README.parent / path).exists(), path
