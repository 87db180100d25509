"""Finds what a zip archive in a mapped file holds; unpacks nothing."""

import mmap
import struct
from typing import NamedTuple
import zlib

START = b'PK\x03\x04'

_STORED, _DEFLATED = 0, 8
# In place of a number that the directory has elsewhere, in the form of zip64;
# the number of the extra field where it is.
_ELSEWHERE, _ZIP64_FIELD = 0xffffffff, 1


class Entry(NamedTuple):
  """What the archive's directory says of an entry: nothing is checked yet.

  Attributes:
    offset: of its own header.
    packed: bytes that its content takes in the file.
    size: bytes of its content.
    crc: the CRC-32 of its content, zero where there is none.
    deflated: whether its content is compressed.
  """

  offset: int
  packed: int
  size: int
  crc: int
  deflated: bool


def directory(data: mmap.mmap) -> dict[str, Entry]:
  """The entries of an archive by their names.

  Raises:
    ValueError: there is no directory, or it has what neither torch nor numpy
      writes: encryption, overlapping entries, foreign compression, more than
      65,534 entries.
    struct.error: it is cut short.
  """
  # The end record is last, but for a comment of up to 65,535 bytes.
  end = data.rfind(b'PK\x05\x06', max(0, len(data) - 22 - 65_535))
  if end < 0:
    raise ValueError('the archive is cut short')
  count, _, position = struct.unpack('<HII', data[end + 10:end + 20])
  if position == _ELSEWHERE:
    position = _position_in_zip64(data, end)
  entries = {}
  for _ in range(count):
    (signature, flags, method, crc, packed, size, name_size, extra_size,
     comment_size, offset) = struct.unpack(
         '<I4xHH4xIIIHHH8xI', data[position:position + 46])
    name_end = position + 46 + name_size
    if signature != 0x02014b50 or name_end + extra_size > end:
      raise ValueError('the archive\'s directory is damaged')
    size, packed, offset = _large(data[name_end:name_end + extra_size],
                                  [size, packed, offset])
    if method not in (_STORED, _DEFLATED) or flags & 1:
      raise ValueError('an entry is encrypted, or compressed by other means '
                       'than deflate')
    if method == _STORED and packed != size:
      raise ValueError('the archive\'s directory contradicts itself')
    name = data[position + 46:name_end].decode('utf-8')
    entries[name] = Entry(offset, packed, size, crc, method == _DEFLATED)
    position = name_end + extra_size + comment_size
  # Also bounds the work on entries that lie over one another.
  if sum(entry.packed for entry in entries.values()) > len(data):
    raise ValueError('the archive\'s entries are larger than the file')
  return entries


def _position_in_zip64(data: mmap.mmap, end: int) -> int:
  """Where the directory begins, of an archive of more than 4 GiB.

  By the format's specification (PKWARE's APPNOTE.TXT 6.3.10, 4.3.14 and
  4.3.15), a locator right before the end record leads to a record that tells.
  """
  locator, record = struct.unpack('<4s4xQ', data[end - 20:end - 4])
  if locator != b'PK\x06\x07' or data[record:record + 4] != b'PK\x06\x06':
    raise ValueError('the archive\'s directory is damaged')
  return struct.unpack('<Q', data[record + 48:record + 56])[0]


def _large(extra: bytes, numbers: list[int]) -> list[int]:
  """Puts in the numbers that are elsewhere: by 4.5.3 of the same, in order."""
  while len(extra) >= 4 and _ELSEWHERE in numbers:
    field, size = struct.unpack('<HH', extra[:4])
    if field == _ZIP64_FIELD:
      own = iter(struct.unpack(f'<{size // 8}Q', extra[4:4 + size // 8 * 8]))
      return [next(own, number) if number == _ELSEWHERE else number
              for number in numbers]
    extra = extra[4 + size:]
  return numbers


def place(data: mmap.mmap, entry: Entry) -> int:
  """Where the content of an entry begins; all of it is in the file."""
  signature, name_size, extra_size = struct.unpack(
      '<I22xHH', data[entry.offset:entry.offset + 30])
  start = entry.offset + 30 + name_size + extra_size
  if signature != 0x04034b50 or start + entry.packed > len(data):
    raise ValueError('the archive is cut short or damaged')
  return start


def check_crc(content: bytes | memoryview, entry: Entry) -> None:
  """Compares the checksum of an entry's unpacked content.

  Raises:
    ValueError: it differs.
  """
  # Zero where torch was told to compute none (`set_crc32_options`).
  if entry.crc and zlib.crc32(content) != entry.crc:
    raise ValueError('a checksum differs: the file is damaged')
