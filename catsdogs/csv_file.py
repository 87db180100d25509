"""CSV files that every reader can parse, whatever names files and classes have.

Linux allows bytes in a name that are not UTF-8. Python holds such a byte, FF
for instance, as U+DCFF, and it is written as the six characters `\\udcff`. A
backslash that would look like the start of one is written as `\\udc5c`. So the
bytes of any name come back with

    re.sub(rb'\\\\udc([0-9a-f]{2})',
           lambda m: bytes.fromhex(m[1].decode()), cell.encode())
"""

import csv
import pathlib
import re
from typing import Iterable, Sequence

_AMBIGUOUS = re.compile(r'\\(?=udc[0-9a-f]{2})')


def write_csv_file(file: pathlib.Path, header: Sequence[str],
                   rows: Iterable[Sequence[str]]) -> None:
  """Writes a CSV file in UTF-8; commas, quotes and line breaks are quoted."""
  with file.open('w', newline='', encoding='utf-8',
                 errors='backslashreplace') as f:
    writer = csv.writer(f)
    for row in (header, *rows):
      writer.writerow([_AMBIGUOUS.sub(r'\\udc5c', cell) for cell in row])
