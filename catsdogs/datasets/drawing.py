"""The paintbox of the picture book in `drawn.py`: shapes, canvas, scenery.

A shape is an outline of points, [points, 2], x to the right and y down, in any
unit that a `Canvas` then maps to pixels.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Shape = np.ndarray  # [points, 2], an outline or a path
Mark = tuple[Shape, Colour]  # Seen only within the shape that it marks.

WHITE, INK, PINK = (244, 240, 234), (38, 32, 34), (232, 150, 152)
CLOTH: tuple[Colour, ...] = (
    (196, 60, 58), (64, 110, 184), (84, 158, 96), (236, 188, 72),
    (138, 96, 168), (228, 128, 92))
SCENE: tuple[Colour, ...] = (  # Walls, floors, skies; some are furs' too.
    (186, 212, 232), (128, 172, 212), (244, 236, 216), (228, 206, 176),
    (176, 132, 92), (206, 150, 110), (204, 222, 190), (140, 172, 128),
    (226, 190, 196), (150, 142, 160), (92, 96, 116), (232, 214, 150))


def pick(rng: np.random.Generator, options: Sequence):
  """One of the options, each as likely as the others."""
  return options[rng.integers(len(options))]


def mix(first: Colour, second: Colour, share: float) -> Colour:
  """The first colour with a share, 0 to 1, of the second stirred in."""
  return tuple(round(a + (b - a) * share) for a, b in zip(first, second))


def vary(colour: Colour, rng: np.random.Generator, spread: float) -> Colour:
  """A colour near the given one, both in hue and in lightness."""
  change = rng.normal(0, spread) + rng.normal(0, spread / 2, 3)
  return tuple(int(v) for v in np.clip(np.add(colour, change), 0, 255))


def ink_on(colour: Colour) -> Colour:
  """For lines to be seen on that colour, light or dark."""
  return mix(colour, INK, 0.8) if sum(colour) > 260 else mix(colour, WHITE, 0.5)


def ellipse(x: float, y: float, rx: float, ry: float) -> Shape:
  angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
  return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def curve(points: Sequence, closed: bool = True) -> Shape:
  """The Catmull-Rom spline through the points: smooth, and easy to aim."""
  p = np.asarray(points, float)
  p = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
  a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
  t = np.linspace(0, 1, 8, endpoint=not closed)[:, None]
  spline = (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2
            + (3 * b - a - 3 * c + d) * t**3) / 2
  return spline.reshape(-1, 2)


def limb(path: Sequence, start: float, end: float) -> Shape:
  """A rounded ribbon along a path, from one width to another."""
  spine = curve(path, closed=False)
  # Where two pieces of the curve meet, a point comes twice: no direction.
  spine = spine[np.r_[True, np.any(np.diff(spine, axis=0), axis=1)]]
  along = np.gradient(spine, axis=0)
  across = along[:, ::-1] * (-1, 1) / np.linalg.norm(along, axis=1)[:, None]
  u = np.linspace(0, 1, len(spine))
  half = (start + (end - start) * u) / 2 * np.sqrt(1 - u**8)
  side = across * half[:, None]
  return np.concatenate([spine + side, (spine - side)[::-1]])


def mirrored(half: Sequence) -> Shape:
  """The smooth symmetric outline whose right half is given, top to bottom."""
  half = np.asarray(half, float)
  return curve(np.concatenate([half, half[-2:0:-1] * (-1, 1)]))


@dataclasses.dataclass(frozen=True)
class Canvas:
  """A picture being painted, and the units and direction to paint it in.

  Attributes:
    image: the picture, painted in place.
    origin: [2], pixels, where the point (0, 0) lies.
    axes: [2, 2], pixels; its rows are one step along x and one along y.
  """
  image: Image.Image
  origin: np.ndarray
  axes: np.ndarray

  def moved(self, x: float, y: float, scale: float = 1.0, degrees: float = 0.0,
            flip: bool = False) -> 'Canvas':
    """The same picture with its origin at (x, y), scaled, turned, flipped."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = scale * np.array([[cos, sin], [-sin, cos]])
    turn[0] *= -1 if flip else 1
    return Canvas(self.image, self.pixels((x, y)), turn @ self.axes)

  def pixels(self, shape: Shape) -> np.ndarray:
    return np.asarray(shape, float) @ self.axes + self.origin

  @property
  def pixels_per_unit(self) -> float:
    return float(np.sqrt(abs(np.linalg.det(self.axes))))

  def fill(self, shape: Shape, colour: Colour, opacity: float = 1.0) -> None:
    """Paints a shape flat."""
    brush = ImageDraw.Draw(self.image, 'RGBA')
    brush.polygon(self.pixels(shape).ravel().tolist(),
                  fill=(*colour, round(255 * opacity)))

  def mould(self, shape: Shape, colour: Colour, marks: Sequence[Mark] = (),
            thickness: float = 0.13, closed: bool = True) -> None:
    """Paints a shape with its marks, a shaded rim and a soft outline.

    Args:
      shape: the outline.
      colour: within it.
      marks: painted over that, in turn, and cut off where the shape ends.
      thickness: of the shade along the rim away from the light.
      closed: False leaves its first and last point unjoined by the outline,
        for limbs that grow out of what is behind them.
    """
    xy, rim_px = self.pixels(shape), round(thickness * self.pixels_per_unit)
    # All is done on a cut-out with room for the shade: much less to paint.
    low = np.maximum(xy.min(axis=0).astype(int) - rim_px, -rim_px)
    high = np.minimum(xy.max(axis=0).astype(int) + rim_px + 2,
                      np.add(self.image.size, rim_px))
    if (low >= high).any():
      return
    cut = Canvas(self.image.crop((*low, *high)), self.origin - low, self.axes)
    for mark, mark_colour in [(shape, colour), *marks]:
      cut.fill(mark, mark_colour)
    mask = Image.new('L', cut.image.size)
    ImageDraw.Draw(mask).polygon((xy - low).ravel().tolist(), fill=255)
    lit = ImageChops.offset(mask, -rim_px, -rim_px)
    dark = mix(colour, INK, 0.5)
    cut.image.paste(dark, mask=ImageChops.subtract(mask, lit, scale=4))
    self.image.paste(cut.image, tuple(low.tolist()), mask)
    ends = shape[:1] if closed else shape[:0]
    self.stroke(np.concatenate([shape, ends]), dark, 0.045)

  def stroke(self, path: Shape, colour: Colour, width: float) -> None:
    """Draws a line along a path; the width is in the canvas's units."""
    width_px = max(2, round(width * self.pixels_per_unit))
    xy = self.pixels(path).ravel().tolist()
    ImageDraw.Draw(self.image).line(xy, fill=colour, width=width_px)


def _gradient(size: tuple[int, int], top: Colour, bottom: Colour
              ) -> Image.Image:
  """A picture that goes from one colour to the other, top to bottom."""
  two = Image.new('RGB', (1, 2), top)
  two.putpixel((0, 1), bottom)
  return two.resize(size, Image.Resampling.BILINEAR)


def scenery(size: tuple[int, int], rng: np.random.Generator) -> Canvas:
  """Paints a place to be in: a room, a meadow, the sky, a blur, or a wall.

  Args:
    size: width and height in pixels.
    rng: what decides on the place.

  Returns:
    The canvas; (0, 0) is its upper left corner, and 1 is its shorter side.
  """
  first, second = (vary(pick(rng, SCENE), rng, 14) for _ in range(2))
  canvas = Canvas(_gradient(size, first, second), np.zeros(2),
                  np.eye(2) * min(size))
  width, height = (side / min(size) for side in size)
  place = pick(rng, (_room, _room, _meadow, _meadow, _sky, _blur, _wall))
  place(canvas, rng, width, height)
  return canvas


def _rectangle(left: float, top: float, right: float, bottom: float) -> Shape:
  return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _room(canvas: Canvas, rng: np.random.Generator, width: float,
          height: float) -> None:
  """Wallpaper, something on the wall, a floor, perhaps a rug."""
  paper, floor = (vary(pick(rng, SCENE), rng, 14) for _ in range(2))
  if rng.random() < 0.5:
    for x in np.arange(rng.uniform(0, 0.1), width, rng.uniform(0.1, 0.25)):
      canvas.fill(_rectangle(x, 0, x + 0.05, height), paper, 0.6)
  x, y, side = rng.uniform((0, 0, 0.25), (0.6, 0.25, 0.5))
  decoration = pick(rng, (_window, _painting, _bookshelves))
  decoration(canvas.moved(x, y, side), rng, mix(paper, INK, 0.5))
  ground = height * rng.uniform(0.6, 0.85)
  canvas.fill(_rectangle(0, ground, width, height), floor)
  canvas.fill(_rectangle(0, ground, width, ground + 0.02), WHITE, 0.6)
  if rng.random() < 0.5:
    canvas.fill(ellipse(rng.uniform(0, width), height, 0.5, 0.15),
                vary(pick(rng, CLOTH), rng, 20))


def _window(canvas: Canvas, rng: np.random.Generator, wood: Colour) -> None:
  """Four panes in a frame, from (0, 0) to (1, 1)."""
  canvas.fill(_rectangle(0, 0, 1, 1), wood)
  sky = vary(pick(rng, SCENE), rng, 14)
  for x in (0.06, 0.53):
    for y in (0.06, 0.53):
      canvas.fill(_rectangle(x, y, x + 0.41, y + 0.41), sky)


def _painting(canvas: Canvas, rng: np.random.Generator, wood: Colour) -> None:
  """A picture of a mountain, framed, from (0, 0) to (1, 1)."""
  sky, mountain = (vary(pick(rng, SCENE), rng, 14) for _ in range(2))
  canvas.fill(_rectangle(0, 0, 1, 1), wood)
  canvas.fill(_rectangle(0.06, 0.06, 0.94, 0.94), sky)
  canvas.fill(np.array([(0.06, 0.94), (0.5, 0.35), (0.94, 0.94)]), mountain)


def _bookshelves(canvas: Canvas, rng: np.random.Generator, wood: Colour
                 ) -> None:
  """Two shelves of books, from (0, 0) to (1, 1)."""
  for shelf in (0.45, 0.95):
    for x in np.arange(0, 0.99, 0.125):
      top = shelf - rng.uniform(0.25, 0.4)
      canvas.fill(_rectangle(x, top, x + 0.115, shelf),
                  vary(pick(rng, CLOTH), rng, 20))
    canvas.fill(_rectangle(0, shelf, 1, shelf + 0.05), wood)


def _meadow(canvas: Canvas, rng: np.random.Generator, width: float,
            height: float) -> None:
  """Hills, a tree or two, grass and flowers."""
  horizon = height * rng.uniform(0.3, 0.75)
  greens = [vary((118, 164, 84), rng, 26) for _ in range(3)]
  canvas.fill(ellipse(rng.uniform(0, width), horizon + 0.1, 0.7,
                      rng.uniform(0.2, 0.4)), greens[0])
  for x in rng.uniform(0, width, rng.integers(3)):
    canvas.fill(_rectangle(x - 0.03, horizon - 0.2, x + 0.03, horizon + 0.05),
                (112, 82, 60))
    canvas.fill(ellipse(x, horizon - 0.3, *rng.uniform(0.1, 0.22, 2)),
                greens[1])
  canvas.fill(_rectangle(0, horizon, width, height), greens[2])
  grass(canvas, rng, width, horizon, height)


def grass(canvas: Canvas, rng: np.random.Generator, width: float, top: float,
          bottom: float) -> None:
  """Blades and a few flowers between two heights."""
  green = vary((104, 150, 74), rng, 24)
  for x, y in rng.uniform((0, top + 0.05), (width, bottom + 0.05), (24, 2)):
    blade = [(x - 0.012, y), (x + rng.normal(0, 0.03), y - 0.09),
             (x + 0.012, y)]
    canvas.fill(np.array(blade), vary(green, rng, 14))
  for x, y in rng.uniform((0, top), (width, bottom), (rng.integers(7), 2)):
    canvas.fill(ellipse(x, y, 0.022, 0.02), vary(pick(rng, CLOTH), rng, 20))
    canvas.fill(ellipse(x, y, 0.008, 0.008), (250, 226, 130))


def _sky(canvas: Canvas, rng: np.random.Generator, width: float,
         height: float) -> None:
  """Clouds, and the sun or the moon."""
  canvas.fill(ellipse(*rng.uniform(0, (width, height)), 0.11, 0.11),
              (252, 232, 160))
  for x, y in rng.uniform(0, (width, height), (rng.integers(2, 5), 2)):
    for dx, radius in ((-0.12, 0.06), (0, 0.09), (0.12, 0.07)):
      canvas.fill(ellipse(x + dx, y, radius * 1.4, radius), WHITE, 0.75)


def _blur(canvas: Canvas, rng: np.random.Generator, width: float,
          height: float) -> None:
  """Lights far out of focus."""
  for x, y in rng.uniform(0, (width, height), (10, 2)):
    canvas.fill(ellipse(x, y, *[rng.uniform(0.06, 0.25)] * 2),
                vary(pick(rng, SCENE), rng, 20), 0.6)
  canvas.image.paste(canvas.image.filter(ImageFilter.BoxBlur(5)))


def _wall(canvas: Canvas, rng: np.random.Generator, width: float,
          height: float) -> None:
  """A plain wall, half the time with dots."""
  colour = vary(pick(rng, SCENE), rng, 20)
  if rng.random() < 0.5:
    for x in np.arange(0, width, 0.2):
      for y in np.arange(0, height, 0.2):
        canvas.fill(ellipse(x, y, 0.04, 0.04), colour)


def foreground(canvas: Canvas, rng: np.random.Generator) -> None:
  """Paints something that hides a little of what is behind it."""
  width, height = (side / min(canvas.image.size) for side in canvas.image.size)
  colour, x = vary(pick(rng, CLOTH), rng, 20), rng.uniform(0, width)
  thing = rng.integers(4)
  if thing == 0:
    grass(canvas, rng, width, height - 0.16, height)
  elif thing == 1:  # A ball.
    canvas.mould(ellipse(x, height - 0.08, 0.11, 0.11), colour,
                 [(ellipse(x, height - 0.08, 0.11, 0.035), WHITE)], 0.02)
  elif thing == 2:  # A leafy twig out of a corner.
    side = rng.integers(2) * width
    for reach in np.linspace(0, 0.3, 6):
      across = side + reach * (1 if side == 0 else -1)
      canvas.fill(ellipse(across, rng.uniform(0, 0.16), 0.06, 0.03),
                  vary((96, 140, 78), rng, 20))
  else:  # The rim of a basket.
    rim = height - rng.uniform(0.08, 0.16)
    canvas.fill(_rectangle(0, rim, width, height), colour)
    for stripe in np.arange(0, width, 0.1):
      canvas.fill(_rectangle(stripe, rim, stripe + 0.04, height), WHITE, 0.3)
