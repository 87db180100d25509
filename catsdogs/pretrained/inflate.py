"""Unpacks compressed bytes of which only a claim says how many there are."""

import zlib

# A ResNet-152x4's take 3.7 GB, a ResNet-152's 0.24 GB.
MAX_BYTES = 4 * 2**30
# Weights hardly shrink: drawn at random by a tenth, to float16 and back by
# half. Only zeros do, up to 1,032 to one, and they are few.
MAX_RATIO = 100


def check_claim(nbytes: int, file_bytes: int) -> None:
  """Refuses what a few bytes cannot stand for, before any room is made.

  Args:
    nbytes: that all tensors together are said to take, unpacked.
    file_bytes: size of the whole file.

  Raises:
    ValueError: it is too much.
  """
  if nbytes > MAX_BYTES or nbytes > MAX_RATIO * file_bytes:
    raise ValueError(f'its {file_bytes} bytes claim to hold {nbytes}')


def inflate(packed: bytes | memoryview, nbytes: int,
            window_bits: int) -> bytes:
  """The bytes, exactly so many of them; never are more unpacked.

  Args:
    packed: the deflated bytes.
    nbytes: how many they must become.
    window_bits: of zlib; negative for bytes without its header.

  Raises:
    ValueError: they are damaged, or become more or fewer.
  """
  stream = zlib.decompressobj(window_bits)
  try:
    content = stream.decompress(packed, nbytes + 1)
  except zlib.error as error:
    raise ValueError(f'its compressed bytes are damaged ({error})') from error
  if len(content) != nbytes:
    raise ValueError('its compressed bytes do not become the '
                     f'{nbytes} that it claims')
  return content
