"""The classes of ImageNet, by which pretrained heads name what they see."""

import csv
import functools
import pathlib

_FILE = pathlib.Path(__file__).parent.parent / 'assets/imagenet_1k_classes.tsv'


@functools.cache
def classes() -> dict[str, str]:
  """The names of ImageNet's 1000 classes by their WordNet ids.

  In the order of the ids, which is that of everyone's heads (Russakovsky et al.
  2014, arXiv:1409.0575); the names are WordNet's.
  """
  with _FILE.open(newline='') as file:
    return {row['wordnet_id']: row['name']
            for row in csv.DictReader(file, delimiter='\t')}
