"""Damages files at random, for the tests of what reads them."""

import random
from typing import Callable

# Sizes and offsets that a file may claim.
_LIES = (0, 1, 255, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40,
        2**62, 2**63, 2**64 - 1)


def mutated(content: bytes, dice: random.Random,
            choose_place: Callable[[bytearray, random.Random], int]) -> bytes:
  """The content, damaged at one to eight places of one's choice."""
  data = bytearray(content)
  for _ in range(dice.choice((1, 1, 2, 4, 8))):
    place = choose_place(data, dice)
    kind = dice.choice(('flip', 'set', 'lie', 'lie', 'copy', 'drop', 'insert',
                        'cut'))
    if kind == 'flip':
      data[place] ^= 1 << dice.randrange(8)
    elif kind == 'set':
      data[place] = dice.randrange(256)
    elif kind == 'lie':
      size = dice.choice((1, 2, 4, 8))
      lie = dice.choice((*_LIES, dice.randrange(len(data)))) % 2**(8 * size)
      data[place:place + size] = lie.to_bytes(
          size, dice.choice(('little', 'little', 'big')))
    elif kind == 'copy':
      start, size = dice.randrange(len(data)), dice.choice((4, 16, 64, 512))
      data[place:place + size] = data[start:start + size]
    elif kind == 'drop':
      del data[place:place + dice.choice((1, 2, 8, 64))]
    elif kind == 'insert':
      data[place:place] = dice.randbytes(dice.choice((1, 2, 8, 64)))
    elif dice.random() < 0.3:
      del data[place:]
    data = data or bytearray(1)
  return bytes(data)
