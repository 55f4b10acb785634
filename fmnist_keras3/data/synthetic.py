"""Generated garments: pictures in the manner of Fashion-MNIST, for when no data can be had.

Shapes are drawn with Pillow from random parameters, three times too large, and shrunk; texture,
light, blur and noise are added with NumPy, a class at a time. Coordinates are in pixels of the
finished picture, x from the middle (-14..14), y downwards (0..28); shoes point to the left.

Curves, waves and noise are made with ``+ - * /`` alone, never with sin, exp or a matrix product,
whose last bit depends on the processor: with the same releases of NumPy and Pillow, one seed
means the same pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData, Split

SIDE = 28
OVERSAMPLING = 3

Number = np.ndarray | float  # [n], one value for each garment, or one value for all
Shown = np.ndarray | bool
Shape = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Dice:
    """Draws parameters for ``n`` garments at a time; every method returns an array ``[n]``."""

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self.rng, self.n = rng, n

    def uniform(self, low: Number, high: Number) -> np.ndarray:
        return low + (high - low) * self.rng.random(self.n)

    def chance(self, probability: float) -> np.ndarray:
        return self.rng.random(self.n) < probability


class Part(NamedTuple):
    """A polygon (or, with a width, a line) that is drawn over the parts before it."""

    points: np.ndarray  # [n, k, 2], or [1, k, 2] where all garments share it
    tone: Number  # 0 (background) .. 1 (brightest), before light and texture
    width: float = 0.0  # of a line, in pixels; 0 fills the polygon
    shown: Shown = True  # [n] bool: which of the garments have this part


def points(*pairs: tuple[Number, Number]) -> np.ndarray:
    """Stack ``(x, y)`` pairs of numbers or arrays ``[n]`` into ``[n, k, 2]``."""
    flat = np.broadcast_arrays(*(coordinate for pair in pairs for coordinate in pair))
    return np.stack(flat, axis=-1).reshape(-1, len(pairs), 2)


def mirrored(*half: tuple[Number, Number]) -> np.ndarray:
    """Close the right half of an outline, given from top to bottom, with its mirror image."""
    return points(*half, *((-x, y) for x, y in reversed(half)))


def direction(half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sine and cosine of an angle, given the tangent of half of it."""
    return 2 * half / (1 + half**2), (1 - half**2) / (1 + half**2)


def rounded(outline: np.ndarray, rounds: int = 2, closed: bool = True) -> np.ndarray:
    """Cut the corners of ``[n, k, 2]`` (Chaikin 1974); an open line keeps its two ends."""
    for _ in range(rounds):
        after = np.roll(outline, -1, axis=1)
        cut = np.stack([0.75 * outline + 0.25 * after, 0.25 * outline + 0.75 * after], axis=2)
        cut = cut.reshape(len(outline), -1, 2)
        if not closed:
            cut = np.concatenate([outline[:, :1], cut[:, :-2], outline[:, -1:]], axis=1)
        outline = cut
    return outline


def both(right: np.ndarray, tone: Number, width: float = 0, shown: Shown = True) -> list[Part]:
    """Return a part on the right and its mirror image on the left."""
    return [Part(right * (side, 1), tone, width, shown) for side in (1, -1)]


# --- clothes ----------------------------------------------------------------------------------


class Torso(NamedTuple):
    """What the garments of the upper body share, and where to sew on the rest."""

    parts: list[Part]
    top: np.ndarray
    neck: np.ndarray  # half its width, like chest
    chest: np.ndarray
    bottom: np.ndarray
    cuff: np.ndarray  # the end of the right sleeve, a line [n, 2, 2]


def torso(dice: Dice, shape: Shape, depth: np.ndarray, waist_y: Number = 17.0) -> Torso:
    """Draw sleeves, body, seams and neck.

    ``shape``: half the width of the shoulders, the length of the sleeves (none below a pixel),
    waist and hem as fractions of the chest, and the lower end; ``depth`` is that of the neck.
    """
    u = dice.uniform
    build, sleeve, waist, hem, bottom = shape
    top, drop, neck = u(0.6, 1.6), u(1.0, 2.4), u(0.36, 0.5) * build
    shoulder, armpit, chest = top + drop, top + drop + u(5.0, 7.0), build * u(0.84, 0.94)
    sine, cosine = direction(np.where(sleeve < 12, u(0.17, 0.4), u(0.02, 0.1)))
    wide = np.where(sleeve < 12, u(3.6, 5.2), u(2.6, 3.8))
    x, y = build + sleeve * sine + 0.3, shoulder + sleeve * cosine
    inner = np.maximum(x - wide * cosine, chest + 0.3), y + wide * sine  # outside the body
    elbow = (build + x + 0.8) / 2, (shoulder + y) / 2 - 0.3
    upper, lower = (build * 0.94, shoulder), (chest, armpit)
    arm = points((build - 2, top + drop / 2), (build, shoulder), elbow, (x, y), inner, lower)
    body = mirrored((neck, top), upper, lower, (chest * waist, waist_y), (chest * hem, bottom))
    hole = mirrored((neck, top - 2), (neck * 0.95, top + depth * 0.3), (neck * 0.3, top + depth))
    rim = mirrored((neck, top), (neck * 0.8, top + depth * 0.6), (neck * 0.2, top + depth))
    parts = [
        *both(arm, u(0.66, 0.86), shown=sleeve >= 1),
        Part(body, u(0.74, 0.86)),
        *both(points(upper, lower), u(0.4, 0.7), 0.7, sleeve >= 1),
        Part(rounded(hole, 1), np.where(dice.chance(0.5), 0.0, u(0.2, 0.5))),
        Part(rim, u(0.6, 1.0), 0.7, dice.chance(0.7)),
    ]
    cuff = points((x, y - 0.3), inner) - (0, 0.3)
    return Torso(parts, top, neck, chest, bottom, cuff)


def collar(dice: Dice, t: Torso, shown: np.ndarray) -> list[Part]:
    """Two turned-down leaves at the neck."""
    size, tip = dice.uniform(2.2, 4.2), t.neck * 0.5
    outer = (t.neck + 0.3, t.top - 0.6), (t.neck + 0.6, t.top + size * 0.7)
    leaf = points(*outer, (tip, t.top + size + 0.6), (0.0, t.top + 1.4))
    tone = np.where(dice.chance(0.5), dice.uniform(0.3, 0.6), dice.uniform(0.93, 1.0))
    return both(leaf, tone, shown=shown)


def opening(dice: Dice, t: Torso, shown: np.ndarray, end: np.ndarray) -> list[Part]:
    """A line down the front, with buttons on some."""
    start, tone, buttoned = t.top + 2.6, dice.uniform(0.1, 1.0), shown & dice.chance(0.5)
    parts = [Part(points((0.0, start), (0.0, end)), dice.uniform(0.2, 0.6), 1.0, shown)]
    for step in (0.15, 0.4, 0.65, 0.9):
        y = start + (end - start) * step
        parts.append(Part(points((0.0, y), (0.0, y + 1)), tone, 1.2, buttoned))
    return parts


def bands(dice: Dice, t: Torso, shown: np.ndarray) -> list[Part]:
    """Ribbing at the hem and at both cuffs."""
    tone, hem, y = dice.uniform(0.5, 0.95), t.chest * 0.97, t.bottom - 0.7
    return [Part(points((-hem, y), (hem, y)), tone, 1.3, shown), *both(t.cuff, tone, 1.3, shown)]


def emblem(dice: Dice, t: Torso, shown: np.ndarray) -> list[Part]:
    """A print in the middle of the chest, or a pocket on one side."""
    u = dice.uniform
    wide, high, y = u(1.0, 4.2), u(0.6, 3.6), t.top + u(6.5, 10.0)
    tone = np.where(dice.chance(0.5), u(0.2, 0.6), u(0.9, 1.0))
    aside = np.stack([np.where(wide < 2.2, u(1.5, 3.2), 0.0), np.zeros(dice.n)], axis=-1)
    return [Part(mirrored((wide, y - high), (wide, y + high)) + aside[:, None], tone, shown=shown)]


def t_shirt(dice: Dice) -> list[Part]:
    u = dice.uniform
    sleeve = np.where(dice.chance(0.07), u(10, 21), u(2.5, 8.5))
    shape = u(6.6, 8.8), sleeve, u(0.86, 1.02), u(0.9, 1.12), u(25.5, 27.8)
    t = torso(dice, shape, u(1.5, 6))
    return [*t.parts, *emblem(dice, t, dice.chance(0.4)), *collar(dice, t, dice.chance(0.08))]


def trouser(dice: Dice) -> list[Part]:
    u = dice.uniform
    top, waist, hip, crotch = u(0.2, 1.2), u(3.4, 5.2), u(4.4, 6.2), u(7.5, 11.5)
    ankle, bend, bottom = u(4.2, 7.2), u(-0.7, 0.7), u(26.5, 28)
    bottom = np.where(dice.chance(0.06), u(19, 25), bottom)
    inner = np.maximum(ankle - u(2.2, 3.8), 0.3)
    outside = (0.0, top), (waist, top), (hip, crotch * 0.75), ((hip + ankle) / 2 + bend, 17.0)
    inside = (inner, bottom), (inner * 0.7 + bend, 17.0), (0.15, crotch)
    leg = points(*outside, (ankle, bottom), *inside)
    worn = points((ankle * 0.72, 9.0), (ankle * 0.72, 19.0))
    pocket = points((waist * 0.6, top + 1.6), (waist, top + 4))
    belt, fly = (
        points((-waist, top + 0.7), (waist, top + 0.7)),
        points((0.0, top + 1), (0.0, crotch)),
    )
    return [
        *both(leg, u(0.7, 0.9)),
        *both(worn, 1.0, 1.0, dice.chance(0.3)),
        *both(pocket, 0.5, 0.7, dice.chance(0.4)),
        Part(belt, u(0.4, 1.0), 1.3, dice.chance(0.6)),
        Part(fly, u(0.3, 0.6), 0.7),
    ]


def pullover(dice: Dice) -> list[Part]:
    u = dice.uniform
    shape = u(6.8, 9.0), u(18.5, 23.5), u(0.9, 1.04), u(0.9, 1.08), u(23.5, 27.5)
    t = torso(dice, shape, u(1.2, 4))
    parts = [*t.parts, *bands(dice, t, dice.chance(0.75)), *emblem(dice, t, dice.chance(0.2))]
    zipped, collared = dice.chance(0.12), dice.chance(0.15)
    return [*parts, *opening(dice, t, zipped, t.top + 10), *collar(dice, t, collared)]


def dress(dice: Dice) -> list[Part]:
    u = dice.uniform
    kind, flare, waist_y = u(0, 1), u(0.95, 1.9), u(9.5, 14)
    sleeve = np.where(kind < 0.5, 0.0, np.where(kind < 0.8, u(2, 8), u(12, 20)))
    shape = u(3.9, 6.2), sleeve, u(0.74, 0.95), flare, u(26.5, 28)
    t = torso(dice, shape, u(1.5, 6), waist_y)
    belt = points((-t.chest * 0.8, waist_y), (t.chest * 0.8, waist_y))
    pleat = points((t.chest * 0.35, waist_y + 2), (t.chest * flare * 0.5, t.bottom))
    parts = [*t.parts, Part(belt, u(0.3, 1.0), 1.0, dice.chance(0.45))]
    parts += both(pleat, u(0.45, 0.7), 0.7, dice.chance(0.35))
    return [*parts, *opening(dice, t, dice.chance(0.12), t.bottom)]


def coat(dice: Dice) -> list[Part]:
    u = dice.uniform
    shape = u(7.0, 9.2), u(18.5, 24), u(0.88, 1.05), u(0.92, 1.18), u(24, 28)
    t = torso(dice, shape, u(1, 4))
    lapels, y = dice.chance(0.55), u(16, 20)
    parts = [*t.parts, *opening(dice, t, dice.chance(0.92), t.bottom), *collar(dice, t, lapels)]
    hood = mirrored((t.neck * 0.5, -0.5), (t.neck + 1.2, t.top), (t.neck * 0.6, t.top + 2.5))
    parts.append(Part(rounded(hood, 1), u(0.5, 0.95), shown=~lapels & dice.chance(0.6)))
    pocket = points((t.chest * 0.3, y + 1.5), (t.chest * 0.8, y))
    parts += both(pocket, u(0.2, 0.6), 1.0, dice.chance(0.7))
    return [*parts, *bands(dice, t, dice.chance(0.2))]


def shirt(dice: Dice) -> list[Part]:
    u = dice.uniform
    kind = u(0, 1)
    sleeve = np.where(kind < 0.22, u(3, 9), np.where(kind < 0.45, u(11, 17), u(18, 23.5)))
    shape = u(6.6, 8.8), sleeve, u(0.84, 1.02), u(0.9, 1.14), u(25, 28)
    t = torso(dice, shape, u(1.5, 5.5))
    parts = [*t.parts, *opening(dice, t, dice.chance(0.85), t.bottom)]
    parts += collar(dice, t, dice.chance(0.85))
    # The hem is cut away at the sides.
    side, end = t.chest + 0.5, t.bottom + 0.7
    cut = points((side, end - u(2.5, 4.5)), (t.chest * 0.5, end), (side, end))
    parts += both(cut, 0.0, shown=dice.chance(0.6))
    return [*parts, *emblem(dice, t, dice.chance(0.1)), *bands(dice, t, dice.chance(0.1))]


# --- shoes and bag ----------------------------------------------------------------------------


def sandal(dice: Dice) -> list[Part]:
    u = dice.uniform
    heeled, thick = dice.chance(0.35), u(0.9, 2.4)
    lift = np.where(heeled, u(4, 11), u(0, 1.5))
    floor = np.where(heeled, u(22, 25), u(18.5, 20.5))
    heel, arch = floor - lift, floor - lift * 2 / 3
    above = (-13.2, floor - thick), (-6.0, floor - thick), (4.0, arch - thick), (12.5, heel - thick)
    sole = points(*above, (12.8, heel), (4.5, arch), (-5.0, floor), (-12.6, floor))
    spike = points((9.5, heel - 0.5), (12.7, heel - 0.5), (12.4, floor), (u(5, 11.5), floor))
    back = points((12.6, heel), (12.8, heel - u(4, 6.5)), (9.5, heel - 4.5), (8.0, heel - 0.5))
    shoe = points((-13, floor - 1), (-9, floor - 4), (3, heel - 8), (11, heel - 8), (12, heel))
    tone, contrast = u(0.65, 1.0), u(0.35, 0.9)
    parts = [
        Part(rounded(shoe), u(0.3, 0.7), shown=~heeled & dice.chance(0.25)),
        Part(sole, tone),
        Part(spike, contrast, shown=heeled),
        Part(back, contrast, shown=dice.chance(0.5)),
    ]
    for x, chance in ((-10.5, 0.6), (-6.5, 0.8), (-1.5, 0.45), (3.5, 0.35)):
        foot, lean = floor - lift * max(0.0, x + 6) / 19 - thick, u(-1.0, 6.0)
        over = u(2.5, 5.5) + (x + 10) * 0.15
        crest = (x + lean * 0.3, foot - over), (x + lean + 2, foot - over * u(0.5, 1.2))
        strap = rounded(points((x, foot), *crest), 1, closed=False)
        parts.append(Part(strap, tone, 1.6, dice.chance(chance)))
    ankle = heel - u(5, 8)
    loop = points((12.2, heel - 3), (11.5, ankle - 0.5), (5.0, ankle + 0.5), (-1.0, floor - thick))
    return [*parts, Part(rounded(loop, 1, closed=False), contrast, 1.2, dice.chance(0.6))]


def laces(dice: Dice, x: Number, y: Number, slope: Number, shown: np.ndarray) -> list[Part]:
    """Four short strokes across the instep, which falls to the left from ``(x, y)``."""
    tone, parts = np.where(dice.chance(0.5), 1.0, 0.3), []
    for left in (0, 1.9, 3.8, 5.7):
        start, end = (x - left, y + left * slope), (x - left + 1.5, y + left * slope + 2)
        parts.append(Part(points(start, end), tone, 0.8, shown))
    return parts


def sneaker(dice: Dice) -> list[Part]:
    u = dice.uniform
    ankle = np.where(dice.chance(0.15), u(5, 8), u(8.2, 11))
    floor, toe, heel = u(18.5, 20.5), u(14.2, 16.6), u(12, 13.4)
    x, y = u(3, 6), ankle + u(-0.8, 1.0)  # the tongue
    behind = (heel, floor), (heel, 14.0), (heel - u(0, 1), ankle), (heel - 3, ankle + u(0.3, 1.5))
    before = (-4.0, toe - 2), (-10.0, toe - 0.6), (-13.6, toe + 0.2), (-13.8, floor)
    upper = rounded(points(*behind, (x, y), (x - 2, y + 0.8), *before))
    mouth = points((heel - 0.8, ankle), (heel - 3, ankle + 2), (x + 0.5, y + 0.6))
    sole = points(
        (-13.5, floor - 1), (heel + 0.3, floor - 1), (heel, floor + 1), (-12.6, floor + 1)
    )
    swoosh = points((-5.0, floor - 2), (1.0, floor - 2), (9.0, ankle + 3.5), (2.0, floor - 4))
    cap = points((-13.3, floor - 1), (-13, toe + 1.4), (-9.5, toe + 0.4), (-8, floor - 1))
    back = points(
        (heel, floor - 1), (heel - 0.3, ankle + 2), (heel - 2.5, ankle + 3), (9, floor - 1)
    )
    contrast = np.where(dice.chance(0.5), u(0.2, 0.5), u(0.95, 1.0))
    return [
        Part(upper, u(0.62, 0.88)),
        Part(mouth, u(0.1, 0.5), shown=dice.chance(0.7)),
        Part(sole, np.where(dice.chance(0.65), u(0.85, 1.0), u(0.15, 0.5))),
        *laces(dice, x - 2, y + 1, (toe - 2 - y) / (x + 4), dice.chance(0.65)),
        *(Part(part, contrast, shown=dice.chance(0.4)) for part in (swoosh, cap, back)),
    ]


def bag(dice: Dice) -> list[Part]:
    u = dice.uniform
    kind, upper, lower = u(0, 1), u(7.5, 13), u(9, 13.3)  # a handle, a strap, or neither
    top, bottom = np.where(kind < 0.75, u(8.5, 14), u(3, 9.5)), u(21.5, 27)
    grip, rise = u(2.5, 6.5), np.minimum(u(5.5, 11), top + 1)
    handle = mirrored((grip, top + 1), (grip, top - rise))
    strap = points((-upper * 0.9, top + 1), (u(-3, 3), 0.5), (upper * 0.9, top + 1))
    body = mirrored((upper - 0.8, top), (upper, top + 1), (lower, bottom - 1), (lower - 1, bottom))
    fold = top + (bottom - top) * u(0.3, 0.65)
    flap = mirrored((upper, top + 0.5), (upper * 0.95, fold - 1.5), (upper * 0.6, fold))
    edge = points((upper * 0.7, top), (lower * 0.7, bottom))
    trim = np.where(dice.chance(0.5), u(0.25, 0.6), u(0.92, 1.0))
    flapped = dice.chance(0.25)
    return [
        Part(rounded(handle, closed=False), u(0.6, 0.95), 1.3, kind < 0.5),
        Part(rounded(strap, closed=False), u(0.5, 0.9), 0.9, (kind >= 0.5) & (kind < 0.75)),
        Part(body, u(0.68, 0.88)),
        Part(flap, trim, shown=flapped),
        Part(points((-upper, fold), (upper, fold)), trim * 0.7, 0.8, ~flapped & dice.chance(0.5)),
        *both(edge, trim * 0.8, 0.8, dice.chance(0.4)),
        Part(mirrored((1.2, fold - 1), (1.2, fold + 1.2)), 1.25 - trim, shown=dice.chance(0.45)),
    ]


def ankle_boot(dice: Dice) -> list[Part]:
    u = dice.uniform
    low = dice.chance(0.15)
    top, floor = np.where(low, u(7.5, 10), u(1.5, 7)), np.where(low, u(19, 21), u(20.5, 23))
    heel, front, lift = u(10.5, 13), u(1.0, 4.5), np.where(dice.chance(0.3), u(2.5, 4.5), u(0.6, 2))
    back, slant, instep, toe = heel - u(0, 1.5), u(-0.8, 0.8), u(12.0, 14.5), floor - u(3.5, 5.5)
    behind = (heel - 0.5, floor), (heel, floor - 5), (back, top + 1.5), (back - 1.5, top)
    shin = (front + 1.5, top + slant), (front, top + slant + 1.5), (front - 0.5, instep - 2)
    before = (front - 4, instep + 1), (-9.0, toe), (-13.2, floor - 2.5), (-13.3, floor)
    above, x = floor - 0.8, u(3.5, 8.5)
    sole = points((-13.4, above), (heel, above), (heel, floor + 0.6), (-12.8, floor + 0.6))
    block = points((x, floor), (heel, floor), (heel - 0.4, floor + lift), (x + 1, floor + lift))
    gore = points((5.5, top + 0.6), (8.5, top + 0.6), (8.0, instep + 1), (6.5, instep + 1))
    cuff = points((front, top + 0.6), (heel - 0.6, top + 0.6))
    seam = points((front - 3, instep + 1.5), (2.0, floor - 3), (6.0, floor - 1))
    dark = u(0.2, 0.6)
    return [
        Part(rounded(points(*behind, *shin, *before)), u(0.62, 0.88)),
        Part(sole, np.where(dice.chance(0.5), u(0.85, 1.0), dark)),
        Part(block, u(0.3, 0.9)),
        Part(gore, dark, shown=dice.chance(0.3)),
        Part(cuff, np.where(dice.chance(0.5), dark, 1.0), 1.5, dice.chance(0.4)),
        Part(rounded(seam, 1, closed=False), u(0.4, 1.0), 0.8, dice.chance(0.5)),
        *laces(dice, front - 0.5, instep - 4, u(0.7, 1.0), dice.chance(0.35)),
    ]


# --- from parts to pictures -------------------------------------------------------------------

PLAIN, STRIPES, PINSTRIPES, CHECKS, KNIT, PRINT = range(6)

# In the order of FASHION_CLASSES: who draws it, and the odds of the six textures.
GARMENTS: tuple[tuple[Callable[[Dice], list[Part]], Sequence[float]], ...] = (
    (t_shirt, (0.58, 0.18, 0.03, 0.02, 0.09, 0.10)),
    (trouser, (0.60, 0.02, 0.10, 0.06, 0.12, 0.10)),
    (pullover, (0.38, 0.20, 0.02, 0.03, 0.30, 0.07)),
    (dress, (0.40, 0.12, 0.06, 0.07, 0.10, 0.25)),
    (coat, (0.52, 0.03, 0.06, 0.12, 0.20, 0.07)),
    (sandal, (0.74, 0.02, 0.04, 0.02, 0.12, 0.06)),
    (shirt, (0.32, 0.06, 0.17, 0.24, 0.06, 0.15)),
    (sneaker, (0.74, 0.02, 0.02, 0.02, 0.14, 0.06)),
    (bag, (0.55, 0.05, 0.05, 0.10, 0.15, 0.10)),
    (ankle_boot, (0.74, 0.02, 0.02, 0.02, 0.14, 0.06)),
)


def posed(dice: Dice, parts: list[Part]) -> list[Part]:
    """Turn, scale and shift each garment a little; points become ``[n, k, 2]`` from the corner."""
    u = dice.uniform
    sine, cosine = direction(u(-0.03, 0.03))  # up to 3.4 degrees
    size, shift_x, shift_y = u(0.94, 1.06), u(-0.8, 0.8), u(-0.7, 0.7)
    stretch = size * u(0.94, 1.06)

    def move(outline: np.ndarray) -> np.ndarray:
        x, y = outline[..., 0].T, outline[..., 1].T - SIDE / 2  # [k, n]
        right = (x * cosine - y * sine) * stretch + shift_x
        down = (x * sine + y * cosine) * size + shift_y
        return np.stack([right.T, down.T], axis=-1) + SIDE / 2

    return [part._replace(points=move(part.points)) for part in parts]


def rasterise(parts: list[Part], n: int) -> np.ndarray:
    """Draw the parts over each other with smooth edges; returns uint8 ``[n, 28, 28]``."""
    large = SIDE * OVERSAMPLING
    layers = []
    for part in parts:
        # Pillow counts from the middle of the first pixel, the garments from its edge.
        outline = (part.points * OVERSAMPLING - 0.5).reshape(n, -1).tolist()
        tone = np.where(part.shown, np.clip(part.tone, 0, 1) * 255, -1)
        tone = np.broadcast_to(tone, n).astype(int).tolist()
        layers.append((outline, tone, round(part.width * OVERSAMPLING)))
    # A canvas of its own keeps a garment from reaching into the next one on the sheet.
    canvas, sheet = Image.new("L", (large, large)), Image.new("L", (large, large * n))
    draw = ImageDraw.Draw(canvas)
    for i in range(n):
        canvas.paste(0, (0, 0, large, large))
        for outline, tone, width in layers:
            if tone[i] < 0:
                continue
            if width:
                draw.line(outline[i], tone[i], width)
            else:
                draw.polygon(outline[i], tone[i])
        sheet.paste(canvas, (0, large * i))
    return np.asarray(sheet.reduce(OVERSAMPLING)).reshape(n, SIDE, SIDE)


def blurred(x: np.ndarray) -> np.ndarray:
    """Smooth ``[n, h, w]`` with the kernel 1 2 1 along both axes."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    x = (x[:, :-2] + x[:, 2:]) * 0.25 + x[:, 1:-1] * 0.5
    return (x[:, :, :-2] + x[:, :, 2:]) * 0.25 + x[:, :, 1:-1] * 0.5


def textures(dice: Dice, odds: Sequence[float]) -> np.ndarray:
    """Cloth for each garment: float32 ``[n, 28, 28]`` in -1..1, 0 where it is plain."""
    kinds = np.searchsorted(np.cumsum(odds)[:-1], dice.uniform(0, 1), side="right")
    step = (1 / dice.uniform(2.2, 6.5)).astype(np.float32)[:, None]
    phase = dice.uniform(0, 1).astype(np.float32)[:, None]
    turns = np.arange(SIDE, dtype=np.float32) * step + phase  # [n, 28]
    wave = np.clip(8 * np.abs(turns - np.floor(turns) - 0.5) - 2, -1, 1)
    out = np.zeros((dice.n, SIDE, SIDE), np.float32)
    out[kinds == STRIPES] = wave[kinds == STRIPES][:, :, None]
    out[kinds == PINSTRIPES] = wave[kinds == PINSTRIPES][:, None, :]
    checked = wave[kinds == CHECKS]
    out[kinds == CHECKS] = (checked[:, :, None] + checked[:, None, :]) / 2
    grain = dice.rng.random((int((kinds == KNIT).sum()), SIDE, SIDE), np.float32)
    out[kinds == KNIT] = 0.7 * grain - 0.35 + np.where(np.arange(SIDE) % 2, 0.15, -0.15)[:, None]
    spots = dice.rng.random((int((kinds == PRINT).sum()), SIDE // 2, SIDE // 2), np.float32)
    spots = blurred(spots.repeat(2, axis=1).repeat(2, axis=2))
    out[kinds == PRINT] = np.clip(7 * (spots - 0.5), -1, 1)
    return out


def finished(dice: Dice, flat: np.ndarray, odds: Sequence[float]) -> np.ndarray:
    """Add cloth, light, blur and noise to flat pictures uint8 ``[n, 28, 28]``; same in return."""

    def each(low: float, high: float) -> np.ndarray:
        return dice.uniform(low, high).astype(np.float32)[:, None, None]

    across = np.linspace(-1, 1, SIDE, dtype=np.float32)
    x = flat.astype(np.float32)
    x *= 1 + each(0.08, 0.45) * textures(dice, odds)
    folds = dice.rng.random((dice.n, SIDE // 4, SIDE // 2), np.float32) - 0.5
    x *= 1 + each(0, 0.35) * blurred(folds.repeat(4, axis=1).repeat(2, axis=2))
    # Most are bright; folds and light from one side darken the rest of the cloth.
    x *= np.maximum(each(0.35, 1.15), each(0.35, 1.15))
    x *= 1 + each(-0.15, 0.15) * across - each(0.0, 0.15) * across**2
    x *= 1 + each(-0.12, 0.12) * across[:, None]
    x += each(-0.5, 0.4) * (blurred(x) - x)  # below 0 sharpens, as the originals were
    noise = dice.rng.random(x.shape, np.float32) + dice.rng.random(x.shape, np.float32) - 1
    x += each(4, 22) * noise * (flat > 24)  # the background stays black
    return np.clip(x + 0.5, 0, 255).astype(np.uint8)


def draw_split(seeds: np.random.SeedSequence, n: int) -> Split:
    """Draw ``n`` garments in random order, as many of each class as of the others, or one more."""
    rng = np.random.Generator(np.random.Philox(seeds))
    labels = rng.permutation(np.arange(n, dtype=np.int32) % len(GARMENTS))
    x = np.empty((n, SIDE, SIDE), np.uint8)
    for label, (garment, odds) in enumerate(GARMENTS):
        dice = Dice(rng, int((labels == label).sum()))
        flat = rasterise(posed(dice, garment(dice)), dice.n)
        x[labels == label] = finished(dice, flat, odds)
    return Split(x[..., None], labels)


def generate(seed: int = 0, train: int = 12_000, test: int = 2_000) -> ImageData:
    """Draw the ten classes of Fashion-MNIST from random parameters.

    Images are uint8 ``[N, 28, 28, 1]``, 0..255 on black; labels int32 ``[N]``, balanced to within
    one example and shuffled. ``seed`` (0 or more) decides every byte; the two splits have
    streams of their own, so the size of one does not change the other. Raises ``ValueError``
    for a split of fewer than 10 examples.
    """
    for name, size in (("train", train), ("test", test)):
        if size < len(GARMENTS):
            raise ValueError(f"{name}={size}: give at least {len(GARMENTS)}, one of each class")
    train_seeds, test_seeds = np.random.SeedSequence(seed).spawn(2)
    splits = draw_split(train_seeds, train), draw_split(test_seeds, test)
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.x.tobytes())
        digest.update(split.y.tobytes())
    return ImageData(
        name="synthetic",
        source=f"generated garments, seed {seed}",
        train=splits[0],
        test=splits[1],
        class_names=FASHION_CLASSES,
        sha256=digest.hexdigest(),
        note="Generated pictures: accuracy on them says nothing of accuracy on Fashion-MNIST.",
    )
