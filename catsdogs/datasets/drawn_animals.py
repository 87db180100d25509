"""Paints cats and dogs: the animals of the picture book in `drawn.py`.

An animal is painted from the tail to the whiskers, one outline over the other,
and measured in head radii around the centre of its head. What makes a cat a
cat is shape alone: coats, poses and collars come out of the same hat for both
kinds, so that no colour gives the answer away.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np
from numpy.random import Generator

from catsdogs.datasets.drawing import (
    CLOTH, Canvas, Colour, INK, Mark, PINK, Shape, WHITE, curve, ellipse,
    ink_on, limb, mirrored, mix, pick, vary)

FURS: tuple[Colour, ...] = (
    (56, 52, 57), (104, 104, 112), (168, 170, 176), WHITE, (236, 214, 178),
    (222, 140, 66), (132, 88, 56), (96, 64, 48), (210, 166, 98),
    (196, 160, 124), (168, 92, 52))
TAILS = {
    'long': [(-0.3, 0.2), (0.5, -0.3), (1.0, -0.9), (1.1, -1.7), (1.4, -2.1)],
    'curled': [(-0.3, 0.2), (0.4, -0.3), (0.5, -0.9), (0, -1.2), (-0.4, -0.8)],
    'stub': [(-0.3, 0.2), (0.1, -0.15), (0.35, -0.5)]}
PATTERNS = ('solid', 'stripes', 'patches', 'spots', 'bicolour', 'points')


@dataclasses.dataclass(frozen=True)
class Animal:
  """What one cat or dog looks like in any pose; lengths are in head radii."""
  kind: str
  pattern: str
  fur: Colour
  marking: Colour  # stripes, patches, spots, ears and tail of 'points'
  trim: Colour  # muzzle, chest and paws
  ears: str  # 'pricked', 'folded', 'floppy', 'long'
  ear_length: float
  head_width: float
  muzzle: float  # length, 0 (a pug's) to 1 (a collie's)
  legs: float  # width
  tail: str  # a key of TAILS
  tail_width: float
  shaggy: float  # depth of the tufts, 0 for short hair
  iris: Colour
  pupil: float  # width, as a share of the iris
  nose: Colour
  turn: float  # of the head, -1 (left) to 1
  asleep: bool
  tongue: bool
  collar: Colour | None


def imagine(kind: str, rng: Generator) -> Animal:
  """Makes up a 'cat' or a 'dog': first what both share, then the shapes."""
  fur, other = (vary(pick(rng, FURS), rng, 10) for _ in range(2))
  if abs(sum(fur) - sum(other)) < 150:  # Marks that would not be seen.
    other = mix(fur, INK, 0.5) if sum(fur) > 330 else mix(fur, WHITE, 0.7)
  pattern = pick(rng, PATTERNS)
  trim = {'bicolour': WHITE, 'points': other}.get(
      pattern, mix(fur, WHITE, rng.uniform(0.12, 0.55)))
  common = dict(
      kind=kind, pattern=pattern, fur=fur, marking=other, trim=trim,
      shaggy=max(0.0, rng.uniform(-0.12, 0.14)), turn=rng.uniform(-1, 1),
      legs=rng.uniform(0.4, 0.55), asleep=rng.random() < 0.1,
      collar=pick(rng, CLOTH) if rng.random() < 0.4 else None)
  if kind == 'cat':
    irises = ((150, 196, 88), (226, 190, 70), (208, 130, 52), (118, 178, 218))
    return Animal(
        ears='folded' if rng.random() < 0.05 else 'pricked',
        ear_length=rng.uniform(0.75, 1.2), head_width=rng.uniform(0.95, 1.2),
        muzzle=0.0, tail='long', tail_width=rng.uniform(0.22, 0.36),
        iris=vary(pick(rng, irises), rng, 10), pupil=rng.uniform(0.15, 0.75),
        nose=pick(rng, (PINK, (190, 104, 100), (92, 66, 66))),
        tongue=False, **common)
  irises = ((110, 68, 38), (84, 52, 34), (160, 104, 50), (118, 178, 218))
  return Animal(
      ears=pick(rng, ('pricked', 'folded', 'floppy', 'long')),
      ear_length=rng.uniform(0.8, 1.25), head_width=rng.uniform(0.78, 1.05),
      muzzle=rng.uniform(0.1, 1), tail=pick(rng, tuple(TAILS)),
      tail_width=rng.uniform(0.25, 0.5), iris=vary(pick(rng, irises), rng, 10),
      pupil=rng.uniform(0.5, 0.65), nose=pick(rng, (INK, (74, 52, 50))),
      tongue=rng.random() < 0.4, **common)


def _tufted(shape: Shape, animal: Animal, rng: Generator) -> Shape:
  """The outline of the same shape under the animal's hair."""
  tufts = 1 + rng.uniform(0, animal.shaggy, len(shape))
  tufts[::2] = 1
  centre = shape.mean(axis=0)
  return centre + (shape - centre) * tufts[:, None]


def _marks(animal: Animal, shape: Shape, bib: Shape, rng: Generator
           ) -> list[Mark]:
  """The coat's pattern within a head or a body of that outline.

  The bib is the part that is white on a coat of two colours.
  """
  low, high = shape.min(axis=0), shape.max(axis=0)
  width, height = high - low
  shapes = []
  if animal.pattern == 'bicolour':
    return [(bib, animal.trim)]
  if animal.pattern == 'stripes':
    for x in np.arange(0.08, 1, 0.42 / width) * width + low[0]:
      depth = low[1] + height * rng.uniform(0.3, 0.5)
      lean = 0.12 * np.sign(x - (low[0] + high[0]) / 2)
      path = [(x, low[1] - 0.1), (x + lean, (low[1] + depth) / 2), (x, depth)]
      shapes.append(limb(path, 0.2, 0.06))
  if animal.pattern in ('patches', 'spots'):
    count, radius = (2, 0.55) if animal.pattern == 'patches' else (14, 0.11)
    for _ in range(round(count * max(1, width * height / 5))):
      radii = rng.uniform(0.7, 1.3, 2) * radius
      shapes.append(ellipse(*rng.uniform(low, high), *radii))
  return [(mark, animal.marking) for mark in shapes]


def _rings(animal: Animal, ribbon: Shape) -> list[Mark]:
  """Rings or a tip of another colour, for a tail or a leg made by `limb`."""
  n = len(ribbon) // 2  # Points down one side, and then up the other.
  if animal.pattern == 'points':
    return [(ribbon, animal.marking)]
  spans, colour = [], animal.marking
  if animal.pattern == 'stripes':
    spans = [(start, start + 2) for start in range(3, n - 2, 5)]
  elif animal.pattern == 'bicolour':
    spans, colour = [(n * 2 // 3, n)], animal.trim
  return [(ribbon[np.r_[a:b, 2 * n - b:2 * n - a]], colour) for a, b in spans]


def _ear(canvas: Canvas, animal: Animal) -> None:
  """Paints the right ear; the left one is this, on a flipped canvas."""
  size = animal.ear_length
  outside = animal.marking if animal.pattern == 'points' else animal.fur
  folded = mix(outside, INK, 0.15)

  def outline(*points):
    return curve(np.multiply(points, (animal.head_width, 1)))

  if animal.ears == 'pricked':
    x, y = ((0.78, -0.55 - 0.95 * size) if animal.kind == 'cat' else
            (0.62, -0.6 - 1.05 * size))
    ear = outline((0.2, -0.7), (0.4, y / 2 - 0.36), (x, y),
                  (0.9, y / 2 - 0.2), (0.9, -0.3), (0.5, -0.3))
    canvas.mould(ear, outside)
    inside = ear.mean(axis=0) * 0.4 + ear * 0.6
    canvas.fill(inside, mix(PINK, animal.fur, 0.35))
  elif animal.ears == 'folded':
    top = -0.9 - (0.2 * size if animal.kind == 'dog' else -0.05)
    canvas.mould(outline((0.22, -0.78), (0.5, top - 0.08), (0.85, top + 0.04),
                         (1.02, -0.45), (0.6, -0.5)), outside)
    canvas.mould(outline((0.4, top), (0.9, top - 0.02), (1.05, -0.55),
                         (0.82, -0.35)), folded)
  else:
    drop = size * (1.25 if animal.ears == 'long' else 0.65)
    canvas.mould(outline((0.45, -0.82), (0.82, -0.85), (1.18, -0.3),
                         (1.28, drop - 0.35), (1.02, drop),
                         (0.8, drop - 0.4), (0.78, -0.2)), folded)


def _eye(canvas: Canvas, animal: Animal) -> None:
  """Paints an eye around the origin, its outer corner to the right."""
  radius = 0.27 if animal.kind == 'cat' else 0.18
  if animal.asleep:
    lid = curve([(-radius, 0), (0, radius / 2), (radius, 0)], closed=False)
    canvas.stroke(lid, ink_on(animal.fur), 0.07)
    return
  if animal.kind == 'cat':
    almond = curve([(-radius, 0.1), (-0.08, -0.22), (0.16, -0.24),
                    (radius * 1.1, -0.06), (0.1, 0.22)])
    canvas.fill(almond * 1.2, mix(animal.fur, INK, 0.8))
    canvas.fill(almond, animal.iris)
    canvas.fill(ellipse(0.04, -0.01, 0.24 * animal.pupil, 0.22), INK)
  else:
    rim = mix(animal.fur, INK, 0.7)
    for size, colour in (1.25, rim), (1, animal.iris), (animal.pupil, INK):
      canvas.fill(ellipse(0, 0, radius * size, radius * size), colour)
  canvas.fill(ellipse(-0.07, -0.08, 0.055, 0.055), WHITE)


def _cat_muzzle(canvas: Canvas, animal: Animal) -> None:
  """Paints two small cheeks, a small nose, the mouth, and the whiskers."""
  for side in (-1, 1):
    canvas.fill(ellipse(0.17 * side, 0.42, 0.26, 0.2), animal.trim)
    mouth = curve([(0, 0.38), (0.1 * side, 0.48), (0.26 * side, 0.42)], False)
    canvas.stroke(mouth, ink_on(animal.trim), 0.04)
    for rise in (-0.16, 0.02, 0.2):
      whisker = curve([(0.3 * side, 0.4 + rise / 4),
                       (0.8 * side, 0.36 + rise * 0.7),
                       (1.4 * side, 0.46 + rise * 1.4)], closed=False)
      canvas.stroke(whisker, WHITE if sum(animal.fur) < 520 else INK, 0.025)
  canvas.fill(curve([(-0.13, 0.2), (0.13, 0.2), (0.0, 0.36)]), animal.nose)


def _dog_muzzle(canvas: Canvas, animal: Animal) -> None:
  """Paints a snout that comes forward, a big nose, perhaps the tongue."""
  length = animal.muzzle
  tip = 0.3 * animal.turn * (0.4 + length)
  width, chin = 0.5 - 0.1 * length, 0.75 + 0.25 * length
  if animal.tongue:
    tongue = [(tip, 0.6), (tip + 0.05, chin), (tip + 0.06, chin + 0.45)]
    canvas.mould(limb(tongue, 0.34, 0.3), (226, 110, 118), thickness=0.05)
  snout = curve([(-width * 0.75, -0.08), (width * 0.75, -0.08),
                 (tip + width, 0.4), (tip + 0.6 * width, chin),
                 (tip - 0.6 * width, chin), (tip - width, 0.4)])
  canvas.mould(snout, animal.trim, thickness=0.08)
  canvas = canvas.moved(tip, 0.2 + 0.15 * length)
  for side in (-1, 1):
    mouth = curve([(0, 0), (0, 0.32), (0.18 * side, 0.45),
                   (0.4 * side, 0.28)], closed=False)
    canvas.stroke(mouth, ink_on(animal.trim), 0.05)
  nose = mirrored([(0, -0.15), (0.25, -0.08), (0.1, 0.14), (0, 0.15)])
  canvas.fill(nose, animal.nose)
  canvas.fill(ellipse(-0.07, -0.06, 0.07, 0.035), mix(animal.nose, WHITE, 0.6))


def _head(canvas: Canvas, animal: Animal, rng: Generator) -> None:
  """Paints the collar and, over it, the head, a little aslant."""
  if animal.collar:
    band = curve([(-0.62, 0.62), (0, 0.98), (0.62, 0.62)], closed=False)
    canvas.stroke(band, animal.collar, 0.2)
    canvas.fill(ellipse(0, 1.08, 0.13, 0.13), (238, 200, 84))
  canvas = canvas.moved(0, 0, degrees=rng.normal(0, 9))
  sides = [canvas, canvas.moved(0, 0, flip=True)]
  if animal.kind == 'cat':
    half = [(0, -0.82), (0.5, -0.76), (0.92, -0.2), (1, 0.25), (0.6, 0.72),
            (0, 0.85)]
  else:
    half = [(0, -0.9), (0.5, -0.84), (0.88, -0.35), (0.82, 0.25), (0.5, 0.75),
            (0, 0.88)]
  skull = _tufted(mirrored(half) * (animal.head_width, 1), animal, rng)
  blaze = mirrored([(0, -0.7), (0.1, -0.5), (0.14, 0), (0.8, 0.6), (0, 1.2)])
  marks = _marks(animal, skull, blaze, rng)
  shift, apart = 0.2 * animal.turn, 0.43 * animal.head_width
  if animal.pattern == 'points':
    marks = [(ellipse(shift, 0.3 + 0.06 * dark, 0.84 - 0.36 * dark, 0.5),
              mix(animal.fur, animal.marking, dark)) for dark in (0.5, 1)]
  if animal.ears != 'pricked':  # These hang in front of the head.
    canvas.mould(skull, animal.fur, marks)
  for side in sides:
    _ear(side, animal)
  if animal.ears == 'pricked':
    canvas.mould(skull, animal.fur, marks)
  for side, sign in zip(sides, (1, -1)):
    _eye(side.moved(apart + sign * shift, -0.12), animal)
  muzzle = _cat_muzzle if animal.kind == 'cat' else _dog_muzzle
  muzzle(canvas.moved(shift, 0), animal)


def _tail(canvas: Canvas, animal: Animal, rng: Generator) -> None:
  """Paints a tail from the origin to the right, held high or low."""
  canvas = canvas.moved(0, 0, degrees=rng.uniform(-10, 55))
  tip = animal.tail_width * (0.75 if animal.kind == 'cat' else 0.5)
  tail = limb(TAILS[animal.tail], animal.tail_width * 1.2, tip)
  canvas.mould(tail, animal.fur, _rings(animal, tail), 0.06, closed=False)


def _leg(canvas: Canvas, animal: Animal, path: Sequence, far: bool = False
         ) -> None:
  """Paints a leg down a path, and its paw; the far ones are in the shade."""
  shade = 0.3 if far else 0.0
  leg = limb(path, animal.legs * 1.25, animal.legs * 0.75)
  marks = _rings(animal, leg) if animal.pattern == 'stripes' and not far else ()
  canvas.mould(leg, mix(animal.fur, INK, shade), marks, 0.07, closed=False)
  (x, _), (toes, y) = path[-2:]
  toes += 0.1 * np.sign(toes - x)  # A paw points where its leg goes.
  _paw(canvas, mix(animal.trim, INK, shade), toes, y, 0.58 * animal.legs)


def _paw(canvas: Canvas, colour: Colour, x: float, y: float, length: float
         ) -> None:
  """Paints a paw, twice as long as that."""
  canvas.mould(ellipse(x, y, length, 0.19), colour, (), 0.05)


def _shadow(canvas: Canvas, x: float, y: float, half_width: float) -> None:
  """Paints the shadow on the ground, which keeps the animal from floating."""
  canvas.fill(ellipse(x, y, half_width, 0.2), INK, 0.22)


def _body(canvas: Canvas, animal: Animal, body: Shape, bib: Shape,
          rng: Generator) -> None:
  """Paints a body: its outline with the coat's tufts and marks."""
  marks = _marks(animal, body, bib, rng)
  canvas.mould(_tufted(body, animal, rng), animal.fur, marks)


def _portrait(canvas: Canvas, animal: Animal, rng: Generator) -> None:
  """The head and the shoulders, which leave the picture below."""
  bust = mirrored([(0, 0.3), (0.6, 0.6), (1.1, 1.4), (1.3, 4), (0, 4)])
  _body(canvas, animal, bust, ellipse(0, 1.5, 0.5, 0.8), rng)
  _head(canvas, animal, rng)


def _sitting(canvas: Canvas, animal: Animal, rng: Generator) -> None:
  """Sits and looks at us."""
  wide = rng.uniform(0.9, 1.15)
  _shadow(canvas, 0.2, 3.3, 1.7)
  _tail(canvas.moved(0.7, 2.9, degrees=-25), animal, rng)
  body = mirrored([(0, 0.4), (0.6 * wide, 0.8), (0.85 * wide, 1.6),
                   (1.2 * wide, 2.6), (wide, 3.2), (0, 3.3)])
  _body(canvas, animal, body, ellipse(0, 1.5, 0.5, 0.8), rng)
  for side in (canvas, canvas.moved(0, 0, flip=True)):
    side.mould(ellipse(0.95 * wide, 2.8, 0.42, 0.55), animal.fur)
    _paw(side, animal.trim, wide + 0.06, 3.22, 0.36)
    _leg(side, animal, [(0.34, 2.0), (0.33, 2.6), (0.36, 3.2)])
  if animal.pattern == 'bicolour':  # The bib again, over the legs.
    canvas.fill(mirrored([(0, 0.9), (0.5, 1.2), (0.42, 1.9), (0, 2.5)]),
                animal.trim)
  _head(canvas, animal, rng)


def _standing(canvas: Canvas, animal: Animal, rng: Generator) -> None:
  """Stands or walks, seen from the side, and turns its head to us."""
  ground, long = rng.uniform(3.0, 3.7), rng.uniform(2.6, 3.4)
  strides = rng.uniform(-0.4, 0.4, 2)
  _shadow(canvas, long / 2 + 0.2, ground + 0.1, long / 2 + 0.7)
  _tail(canvas.moved(long + 0.2, 1.0), animal, rng)

  def legs(x, sign, far):
    """A fore leg, straight, and a hind leg, with its knee and its heel."""
    fore, hind = sign * strides + (x, x)
    down = ground - (0.12 if far else 0)
    _leg(canvas, animal, [(0.55 + x, 1.6), (0.6 + (x + fore) / 2, 2.4),
                          (0.5 + fore, down)], far)
    heel = (long + 0.1 + hind, 1.7 + 0.55 * (ground - 1.7))
    _leg(canvas, animal, [(long + x / 2, 1.5), (long - 0.2 + hind / 2, 2.1),
                          heel, (long - 0.12 + hind, down)], far)

  legs(0.3, -1, far=True)
  body = curve([(-0.1, 0.6), (0.6, 0.45), (1.6, 0.6), (long, 0.5),
                (long + 0.45, 1.1), (long + 0.1, 1.9), (1.8, 1.85),
                (0.6, 2.15), (0, 1.6)])
  _body(canvas, animal, body, ellipse(0.6, 2.0, 1.0, 0.6), rng)
  legs(0, 1, far=False)
  canvas.mould(curve([(long - 0.4, 0.95), (long + 0.15, 0.85),
                      (long + 0.4, 1.5), (long + 0.02, 2.25),
                      (long - 0.45, 1.9)]), animal.fur, (), 0.1)
  _head(canvas, animal, rng)


def _lying(canvas: Canvas, animal: Animal, rng: Generator) -> None:
  """Lies on its belly, paws in front."""
  long = rng.uniform(2.3, 3.0)
  _shadow(canvas, long / 2 - 0.1, 1.6, long / 2 + 1)
  _tail(canvas.moved(long + 0.2, 1.2), animal, rng)
  body = curve([(-0.5, 0.4), (0.7, 0.0), (long - 0.6, -0.1), (long + 0.4, 0.6),
                (long + 0.3, 1.5), (1.2, 1.6), (-0.5, 1.5)])
  _body(canvas, animal, body, ellipse(-0.2, 1.0, 0.8, 0.6), rng)
  canvas.mould(ellipse(long - 0.35, 1.0, 0.7, 0.55), animal.fur)
  _paw(canvas, animal.trim, long - 0.7, 1.48, 0.5)
  for x in (0.2, -0.5):
    _leg(canvas, animal, [(x + 0.5, 1.1), (x, 1.4), (x - 0.5, 1.5)])
  _head(canvas, animal, rng)


Pose = Callable[[Canvas, Animal, Generator], None]
# Each pose with the box that it fills: left, top, right, bottom.
POSES: tuple[tuple[Pose, tuple[float, float, float, float]], ...] = (
    (_portrait, (-1.3, -1.5, 1.3, 1.4)), (_sitting, (-1.4, -1.4, 1.8, 3.4)),
    (_standing, (-1.1, -1.3, 4.0, 3.5)), (_lying, (-1.3, -1.3, 3.6, 1.6)))
