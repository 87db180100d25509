"""The classes of ImageNet, by which pretrained heads name what they see."""

import csv
import functools

from catsdogs.pretrained.bundled import ASSETS


@functools.cache
def classes() -> dict[str, str]:
  """The names of ImageNet's 1000 classes by their WordNet ids.

  In the order of the ids, which is that of everyone's heads (Russakovsky et al.
  2014, arXiv:1409.0575); the names are WordNet's.
  """
  with open(ASSETS / 'imagenet_1k_classes.tsv', newline='') as file:
    return {row['wordnet_id']: row['name']
            for row in csv.DictReader(file, delimiter='\t')}
