"""Photos that tests make, and a corpus of them in every state of damage."""

import dataclasses
import io
import os
import pathlib
import socket
import struct
import zlib

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # The EXIF tag.
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP')
# As hard for CSV files, terminals and JSON as a folder's name can be.
ODD_CLASS = os.fsdecode('chien, "grand"\n猫 \\udcff '.encode() + b'\xff')
CLASSES = ('cat', ODD_CLASS)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
  """Smooth blotches under fine grain; no two of its parts are alike."""
  random = np.random.default_rng(seed)
  blotches = random.integers(0, 256, (6, 6, 3), np.uint8)
  image = Image.fromarray(blotches).resize((width, height),
                                           Image.Resampling.BICUBIC)
  grain = random.normal(0, 4, (height, width, 3))
  return Image.fromarray((image + grain).clip(0, 255).astype(np.uint8))


def _chunk(name: bytes, content: bytes) -> bytes:
  return (struct.pack('>I', len(content)) + name + content
          + struct.pack('>I', zlib.crc32(name + content)))


def png(width: int, height: int, depth: int, colour_type: int,
        rows: bytes = b'') -> bytes:
  """A PNG made by hand: of a header that may lie, and of any depth."""
  header = struct.pack('>IIBBBBB', width, height, depth, colour_type, 0, 0, 0)
  return (b'\x89PNG\r\n\x1a\n' + _chunk(b'IHDR', header)
          + _chunk(b'IDAT', zlib.compress(rows)) + _chunk(b'IEND', b''))


def with_checksums(content: bytes) -> bytes:
  """A damaged PNG whose checksums are right again, so that it is read."""
  whole, place = content[:8], 8
  while place + 12 <= len(content):
    length = int.from_bytes(content[place:place + 4], 'big')
    length = min(length, len(content) - place - 12)
    whole += _chunk(content[place + 4:place + 8],
                    content[place + 8:place + 8 + length])
    place += 12 + length
  return whole + content[place:]


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
  """How a camera stores a picture, after the EXIF standard's table."""
  first_row, first_column = {
      1: ('top', 'left'), 2: ('top', 'right'), 3: ('bottom', 'right'),
      4: ('bottom', 'left'), 5: ('left', 'top'), 6: ('right', 'top'),
      7: ('right', 'bottom'), 8: ('left', 'bottom')}[orientation]
  stored = upright
  if first_row in ('left', 'right'):
    stored = stored.swapaxes(0, 1)
  if first_row in ('bottom', 'right'):
    stored = stored[::-1]
  if first_column in ('bottom', 'right'):
    stored = stored[:, ::-1]
  return np.ascontiguousarray(stored)


def turned(upright: Image.Image, kind: str, orientation: int,
           **options) -> bytes:
  """The picture as a camera stores it, with the EXIF tag that says how."""
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  stored = Image.fromarray(as_stored(np.asarray(upright), orientation))
  return encoded(stored, kind, exif=exif, **options)


def bombs(side: int = 2**31 - 1) -> dict[str, bytes]:
  """Files of a few bytes whose headers promise gigabytes of pixels.

  Args:
    side: how many pixels wide and high, within what each format can say.
  """
  short = min(side, 2**16 - 1)
  jpeg = bytearray(encoded(scene(40, 30), 'JPEG'))
  frame = jpeg.index(b'\xff\xc0')
  jpeg[frame + 5:frame + 9] = struct.pack('>HH', short, short)
  gif = bytearray(encoded(scene(40, 30), 'GIF'))
  gif[6:10] = struct.pack('<HH', short, short)
  bmp = bytearray(encoded(scene(40, 30), 'BMP'))
  bmp[18:26] = struct.pack('<ii', side, side)
  shorter = min(side, 2**14) - 1  # A lossless WebP has 14 bits for each.
  sides = struct.pack('<I', shorter | shorter << 14)
  webp = b'WEBPVP8L' + struct.pack('<I', 10) + b'\x2f' + sides + bytes(5)
  webp = b'RIFF' + struct.pack('<I', len(webp)) + webp
  return {'bomb.png': png(side, side, 8, 2), 'bomb.jpg': bytes(jpeg),
          'bomb.gif': bytes(gif), 'bomb.bmp': bytes(bmp), 'bomb.webp': webp}


@dataclasses.dataclass(frozen=True)
class Entry:
  """What has to happen with a file of the corpus.

  Attributes:
    shows: the picture that it must be seen as; None where it is skipped.
    reason: what the reason must say, where it is skipped. Where there is
      neither, the format has no checksum that tells: both are allowed.
  """

  shows: Image.Image | None = None
  reason: str = ''


def write_corpus(root: pathlib.Path, good: int) -> dict[str, Entry]:
  """Writes two classes of photos, most of them odd or damaged.

  Args:
    root: the folder of the class folders.
    good: how many ordinary photos are written besides.

  Returns:
    What has to happen with each file, by its path below `root`. What people
    do not see, such as Thumbs.db, is written too, but not among these.
  """
  corpus: dict[str, Entry] = {}

  def add(name: str, content: bytes, **fate) -> None:
    path = f'{CLASSES[len(corpus) % 2]}/{name}'
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content)
    corpus[path] = Entry(**fate)

  for seed in range(good):
    image = scene(24, 20, seed % 16)
    add(f'good/{seed}.png', encoded(image, 'PNG'), shows=image)
  for name, (content, image) in _odd_photos().items():
    add(name, content, shows=image)
  for name, (content, reason) in _no_photos().items():
    add(name, content, reason=reason)
  for kind in FORMATS:
    whole = encoded(scene(60, 44), kind)
    for tenth in range(1, 10):
      add(f'cut/{tenth}.{kind.lower()}', whole[:len(whole) * tenth // 10],
          reason='.')
    random = np.random.default_rng(len(kind))
    for i in range(5):
      damaged = bytearray(whole)
      damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
      add(f'flipped/{i}.{kind.lower()}', bytes(damaged),
          reason='.' if kind == 'PNG' else '')
  corpus.update(_write_links_and_devices(root / 'cat'))
  _write_unseen(root)
  return corpus


def _odd_photos() -> dict[str, tuple[bytes, Image.Image]]:
  """Each with the picture that it shows."""
  image = scene(60, 44)
  gray, palette = image.convert('L'), image.quantize(16)
  frames = {'save_all': True, 'append_images': [scene(60, 44, 9)]}
  deep = np.asarray(gray).astype(np.uint16) * 257
  rows = b''.join(b'\0' + row.tobytes() for row in
                  (np.asarray(image).astype('>u2') * 257).reshape(44, 180))
  half = image.convert('RGBA')
  half.paste((0, 0, 0, 0), (0, 0, 30, 44))
  on_white = image.copy()
  on_white.paste('white', (0, 0, 30, 44))
  long = Image.new('RGB', (30_000, 10), 'teal')
  jpeg = encoded(image, 'JPEG', quality=95)
  photos = {
      'a png.jpg': (encoded(image, 'PNG'), image),
      'a bmp.png': (encoded(image, 'BMP'), image),
      'a gif.bmp': (encoded(palette, 'GIF'), palette),
      'a webp.gif': (encoded(image, 'WEBP', lossless=True), image),
      'a jpeg.webp': (jpeg, image), 'a jpeg.txt': (jpeg, image),
      'no extension': (jpeg, image), 'LOUD.JPG': (jpeg, image),
      'junk at the end.jpg': (jpeg + b'\xff\xd8 junk', image),
      'progressive.jpg': (encoded(image, 'JPEG', quality=95,
                                  progressive=True), image),
      'cmyk.jpg': (encoded(image.convert('CMYK'), 'JPEG', quality=95), image),
      'gray.jpg': (encoded(gray, 'JPEG', quality=95), gray),
      'gray 16.png': (encoded(Image.fromarray(deep), 'PNG'), gray),
      'colour 16.png': (png(60, 44, 16, 2, rows), image),
      'bitmap.png': (encoded(image.convert('1'), 'PNG'), image.convert('1')),
      'palette.png': (encoded(palette, 'PNG'), palette),
      'alpha.png': (encoded(half, 'PNG'), on_white),
      'alpha.webp': (encoded(half, 'WEBP', lossless=True), on_white),
      'animated.gif': (encoded(palette, 'GIF', **frames), palette),
      'animated.webp': (encoded(image, 'WEBP', lossless=True, **frames),
                        image),
      'animated.png': (encoded(image, 'PNG', **frames), image),
      '1 x 1.png': (encoded(image.resize((1, 1)), 'PNG'),
                    image.resize((1, 1))),
      '30000 x 10.jpg': (encoded(long, 'JPEG'), long),
      '10 x 30000.png': (encoded(long.transpose(Image.Transpose.ROTATE_90),
                                 'PNG'), long)}
  for orientation in range(1, 9):
    photos[f'turned/{orientation}.jpg'] = turned(
        image, 'JPEG', orientation, quality=95, subsampling=0), image
  names = ('猫 и собака.jpg', 'كلب.jpg', 'ñandú e\u0301.jpg', '🐈.jpg',
           'a, b;c.jpg', '"quoted" \'name\'.jpg', 'new\nline.jpg',
           'carriage\rreturn.jpg', 'tab\t.jpg', ' .jpg', '-rf.jpg',
           '=1+1.jpg', '[1]*?.jpg', '%s{}.jpg', 'NA', '\u202egpj.jpg',
           'back\\slash.jpg', '\\udce9.jpg', os.fsdecode(b'latin \xe9.jpg'),
           os.fsdecode(b'\x80\xff'), f'{"long" * 60}.jpg')
  photos.update({f'names/{name}': (jpeg, image) for name in names})
  return photos


def _no_photos() -> dict[str, tuple[bytes, str]]:
  """Each with what the reason must say."""
  image = scene(60, 44)
  jpeg = encoded(image, 'JPEG')
  return {
      **{name: (content, 'pixels') for name, content in bombs().items()},
      'empty.jpg': (b'', 'empty'), 'zeros.jpg': (bytes(5000), 'not a JPEG'),
      'page.jpg': (b'<html>\n404 Not Found</html>', 'not a JPEG'),
      'tiff.jpg': (encoded(image, 'TIFF'), 'not a JPEG'),
      'film.jpg': (b'\0\0\0\x20ftypheic' + bytes(500), 'not a JPEG'),
      'zeros at the end.jpg': (jpeg[:1000] + bytes(len(jpeg) - 1000), '.'),
      'without its end.jpg': (jpeg[:-2], 'truncated')}


def _write_links_and_devices(folder: pathlib.Path) -> dict[str, Entry]:
  """What is no file, or leads to another one; nested, to count as `folder`."""
  links = folder / 'links'
  links.mkdir()
  image = scene(60, 44)
  (links / 'dir.jpg').mkdir()
  (links / 'dir.jpg' / 'a.png').write_bytes(encoded(image, 'PNG'))
  (links / 'empty dir.jpg').mkdir()
  (links / 'photo.jpg').symlink_to('dir.jpg/a.png')
  (links / 'dangling.jpg').symlink_to('nowhere.jpg')
  (links / 'circular.jpg').symlink_to('circular.jpg')
  (links / 'device.jpg').symlink_to('/dev/zero')
  (links / 'itself').symlink_to('.')
  (links / 'up').symlink_to('..')
  os.mkfifo(links / 'pipe.jpg')
  here = os.getcwd()
  os.chdir(links)  # The path of a socket may be no longer than 107 bytes.
  try:
    with socket.socket(socket.AF_UNIX) as s:
      s.bind('socket.jpg')
  finally:
    os.chdir(here)
  with (links / 'film.jpg').open('wb') as file:
    file.truncate(2**30)  # A hole: it takes no room on the disk.
  fates = {'dir.jpg/a.png': Entry(image), 'photo.jpg': Entry(image),
           'dangling.jpg': Entry(reason='No such file'),
           'circular.jpg': Entry(reason='symbolic links'),
           'device.jpg': Entry(reason='device'),
           'pipe.jpg': Entry(reason='pipe'),
           'socket.jpg': Entry(reason='socket'),
           'film.jpg': Entry(reason='bytes are too many')}
  return {f'{folder.name}/links/{name}': fate for name, fate in fates.items()}


def _write_unseen(root: pathlib.Path) -> None:
  """What Windows and macOS leave behind."""
  for name in ('__MACOSX/cat/._1.jpg', 'cat/Thumbs.db', 'cat/desktop.ini',
               'cat/.DS_Store', 'cat/._1.jpg', 'cat/__MACOSX/1.jpg'):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b'\0\5\x16\7')
