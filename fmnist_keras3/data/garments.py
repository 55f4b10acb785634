"""The shapes of the ten generated garments, drawn from random parameters; see synthetic.py.

Coordinates are in pixels of the finished picture, x from the middle (-14..14), y downwards (0..28);
shoes point to the left.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Number = np.ndarray | float  # [n], one value for each garment, or one value for all
Points = np.ndarray  # [n, k, 2], or [1, k, 2] where all garments share them


class Dice:
    """Draws parameters for ``n`` garments at a time; every method returns an array ``[n]``."""

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self.rng, self.n = rng, n

    def __call__(self, low: Number, high: Number) -> np.ndarray:
        """Return numbers from ``low`` to ``high``, all as likely."""
        return low + (high - low) * self.rng.random(self.n)

    def chance(self, probability: float) -> np.ndarray:
        """Return truth values."""
        return self.rng.random(self.n) < probability

    def either(self, probability: float, one: tuple, other: tuple) -> np.ndarray:
        """Return numbers from the range ``one`` with ``probability``, else from the ``other``."""
        return np.where(self.chance(probability), self(*one), self(*other))


class Part(NamedTuple):
    """A polygon (or, with a width, a line) that is drawn over the parts before it."""

    points: Points
    tone: Number  # 0 (background) .. 1 (brightest), before light and texture
    width: float = 0.0  # of a line, in pixels; 0 fills the polygon
    shown: np.ndarray | bool = True  # [n] bool: which of the garments have this part


def points(*pairs: tuple[Number, Number]) -> Points:
    """Stack ``(x, y)`` pairs of numbers or arrays ``[n]`` into ``[n, k, 2]``."""
    flat = np.broadcast_arrays(*(coordinate for pair in pairs for coordinate in pair))
    return np.stack(flat, axis=-1).reshape(-1, len(pairs), 2)


def mirrored(*half: tuple[Number, Number]) -> Points:
    """Close the right half of an outline, given from top to bottom, with its mirror image."""
    return points(*half, *((-x, y) for x, y in reversed(half)))


def level(x: Number, y: Number) -> Points:
    """Return the two ends of a level line through the middle."""
    return points((-x, y), (x, y))


def direction(half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sine and cosine of an angle, given the tangent of half of it."""
    return 2 * half / (1 + half**2), (1 - half**2) / (1 + half**2)


def rounded(outline: Points, rounds: int = 2, closed: bool = True) -> Points:
    """Cut the corners of ``[n, k, 2]`` (Chaikin 1974); an open line keeps its two ends."""
    for _ in range(rounds):
        after = np.roll(outline, -1, axis=1)
        cut = np.stack([0.75 * outline + 0.25 * after, 0.25 * outline + 0.75 * after], axis=2)
        cut = cut.reshape(len(outline), -1, 2)
        if not closed:
            cut = np.concatenate([outline[:, :1], cut[:, :-2], outline[:, -1:]], axis=1)
        outline = cut
    return outline


def both(
    right: Points, tone: Number, width: float = 0, shown: np.ndarray | bool = True
) -> list[Part]:
    """Return a part on the right and its mirror image on the left."""
    return [Part(right * (side, 1), tone, width, shown) for side in (1, -1)]


# --- clothes ----------------------------------------------------------------------------------


class Torso:
    """Sleeves, body, seams and neck of a garment of the upper body, and what is sewn on to them.

    ``sizes``: half the width of the shoulders, the length of the sleeves (none below a pixel),
    waist and hem as fractions of the chest, the lower end, and the depth of the neck.
    The methods return more parts, for the garments on which they are ``shown``.
    """

    def __init__(self, u: Dice, sizes: tuple[np.ndarray, ...], waist_y: Number = 17.0) -> None:
        build, sleeve, waist, hem, bottom, depth = sizes
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
        low = top + depth
        hole = mirrored((neck, top - 2), (neck * 0.95, top + depth * 0.3), (neck * 0.3, low))
        rim = mirrored((neck, top), (neck * 0.8, top + depth * 0.6), (neck * 0.2, low))
        # Where to sew on the rest; neck and chest are half their widths.
        self.u, self.top, self.neck, self.chest, self.bottom = u, top, neck, chest, bottom
        self.cuff = points((x, y - 0.3), inner) - (0, 0.3)  # the end of the right sleeve
        self.parts = [
            *both(arm, u(0.66, 0.86), shown=sleeve >= 1),
            Part(body, u(0.74, 0.86)),
            *both(points(upper, lower), u(0.4, 0.7), 0.7, sleeve >= 1),
            Part(rounded(hole, 1), np.where(u.chance(0.5), 0.0, u(0.2, 0.5))),
            Part(rim, u(0.6, 1.0), 0.7, u.chance(0.7)),
        ]

    def collar(self, shown: np.ndarray) -> list[Part]:
        """Return two turned-down leaves at the neck."""
        size, neck, top = self.u(2.2, 4.2), self.neck, self.top
        outer = (neck + 0.3, top - 0.6), (neck + 0.6, top + size * 0.7)
        leaf = points(*outer, (neck * 0.5, top + size + 0.6), (0.0, top + 1.4))
        return both(leaf, self.u.either(0.5, (0.3, 0.6), (0.93, 1.0)), shown=shown)

    def opening(self, shown: np.ndarray, end: np.ndarray) -> list[Part]:
        """Return a line down the front, with buttons on some."""
        start, tone, buttoned = self.top + 2.6, self.u(0.1, 1.0), shown & self.u.chance(0.5)
        line = Part(points((0.0, start), (0.0, end)), self.u(0.2, 0.6), 1.0, shown)
        places = [start + (end - start) * step for step in (0.15, 0.4, 0.65, 0.9)]
        buttons = [points((0.0, y), (0.0, y + 1)) for y in places]
        return [line, *(Part(button, tone, 1.2, buttoned) for button in buttons)]

    def bands(self, shown: np.ndarray) -> list[Part]:
        """Return the ribbing at the hem and at both cuffs."""
        tone, hem = self.u(0.5, 0.95), level(self.chest * 0.97, self.bottom - 0.7)
        return [Part(hem, tone, 1.3, shown), *both(self.cuff, tone, 1.3, shown)]

    def emblem(self, shown: np.ndarray) -> list[Part]:
        """Return a print in the middle of the chest, or a pocket on one side."""
        u = self.u
        wide, high, y = u(1.0, 4.2), u(0.6, 3.6), self.top + u(6.5, 10.0)
        tone = u.either(0.5, (0.2, 0.6), (0.9, 1.0))
        aside = points((np.where(wide < 2.2, u(1.5, 3.2), 0.0), 0.0))
        return [Part(mirrored((wide, y - high), (wide, y + high)) + aside, tone, shown=shown)]


def t_shirt(u: Dice) -> list[Part]:
    sleeve = u.either(0.07, (10, 21), (2.5, 8.5))
    t = Torso(u, (u(6.6, 8.8), sleeve, u(0.86, 1.02), u(0.9, 1.12), u(25.5, 27.8), u(1.5, 6)))
    return [*t.parts, *t.emblem(u.chance(0.4)), *t.collar(u.chance(0.08))]


def trouser(u: Dice) -> list[Part]:
    top, waist, hip, crotch = u(0.2, 1.2), u(3.4, 5.2), u(4.4, 6.2), u(7.5, 11.5)
    ankle, bend, bottom = u(4.2, 7.2), u(-0.7, 0.7), u(26.5, 28)
    bottom = np.where(u.chance(0.06), u(19, 25), bottom)
    inner = np.maximum(ankle - u(2.2, 3.8), 0.3)
    outside = (0.0, top), (waist, top), (hip, crotch * 0.75), ((hip + ankle) / 2 + bend, 17.0)
    inside = (inner, bottom), (inner * 0.7 + bend, 17.0), (0.15, crotch)
    worn = points((ankle * 0.72, 9.0), (ankle * 0.72, 19.0))
    pocket = points((waist * 0.6, top + 1.6), (waist, top + 4))
    return [
        *both(points(*outside, (ankle, bottom), *inside), u(0.7, 0.9)),
        *both(worn, 1.0, 1.0, u.chance(0.3)),
        *both(pocket, 0.5, 0.7, u.chance(0.4)),
        Part(level(waist, top + 0.7), u(0.4, 1.0), 1.3, u.chance(0.6)),  # the belt
        Part(points((0.0, top + 1), (0.0, crotch)), u(0.3, 0.6), 0.7),  # the fly
    ]


def pullover(u: Dice) -> list[Part]:
    sizes = u(6.8, 9.0), u(18.5, 23.5), u(0.9, 1.04), u(0.9, 1.08), u(23.5, 27.5), u(1.2, 4)
    t = Torso(u, sizes)
    parts = [*t.parts, *t.bands(u.chance(0.75)), *t.emblem(u.chance(0.2))]
    zipped, collared = u.chance(0.12), u.chance(0.15)
    return [*parts, *t.opening(zipped, t.top + 10), *t.collar(collared)]


def dress(u: Dice) -> list[Part]:
    kind, flare, waist_y = u(0, 1), u(0.95, 1.9), u(9.5, 14)
    sleeve = np.where(kind < 0.5, 0.0, np.where(kind < 0.8, u(2, 8), u(12, 20)))
    sizes = u(3.9, 6.2), sleeve, u(0.74, 0.95), flare, u(26.5, 28), u(1.5, 6)
    t = Torso(u, sizes, waist_y)
    belt, end = level(t.chest * 0.8, waist_y), (t.chest * flare * 0.5, t.bottom)
    return [
        *t.parts,
        Part(belt, u(0.3, 1.0), 1.0, u.chance(0.45)),
        *both(points((t.chest * 0.35, waist_y + 2), end), u(0.45, 0.7), 0.7, u.chance(0.35)),
        *t.opening(u.chance(0.12), t.bottom),
    ]


def coat(u: Dice) -> list[Part]:
    t = Torso(u, (u(7.0, 9.2), u(18.5, 24), u(0.88, 1.05), u(0.92, 1.18), u(24, 28), u(1, 4)))
    lapels, y = u.chance(0.55), u(16, 20)
    hood = mirrored((t.neck * 0.5, -0.5), (t.neck + 1.2, t.top), (t.neck * 0.6, t.top + 2.5))
    pocket = points((t.chest * 0.3, y + 1.5), (t.chest * 0.8, y))
    return [
        *t.parts,
        *t.opening(u.chance(0.92), t.bottom),
        *t.collar(lapels),
        Part(rounded(hood, 1), u(0.5, 0.95), shown=~lapels & u.chance(0.6)),
        *both(pocket, u(0.2, 0.6), 1.0, u.chance(0.7)),
        *t.bands(u.chance(0.2)),
    ]


def shirt(u: Dice) -> list[Part]:
    kind = u(0, 1)
    sleeve = np.where(kind < 0.22, u(3, 9), np.where(kind < 0.45, u(11, 17), u(18, 23.5)))
    t = Torso(u, (u(6.6, 8.8), sleeve, u(0.84, 1.02), u(0.9, 1.14), u(25, 28), u(1.5, 5.5)))
    front = [*t.opening(u.chance(0.85), t.bottom), *t.collar(u.chance(0.85))]
    side, end = t.chest + 0.5, t.bottom + 0.7
    cut = points((side, end - u(2.5, 4.5)), (t.chest * 0.5, end), (side, end))
    sides = both(cut, 0.0, shown=u.chance(0.6))  # the hem is cut away there
    return [*t.parts, *front, *sides, *t.emblem(u.chance(0.1)), *t.bands(u.chance(0.1))]


# --- shoes and bag ----------------------------------------------------------------------------


def sandal(u: Dice) -> list[Part]:
    heeled, thick = u.chance(0.35), u(0.9, 2.4)
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
        Part(rounded(shoe), u(0.3, 0.7), shown=~heeled & u.chance(0.25)),
        Part(sole, tone),
        Part(spike, contrast, shown=heeled),
        Part(back, contrast, shown=u.chance(0.5)),
    ]
    for x, chance in ((-10.5, 0.6), (-6.5, 0.8), (-1.5, 0.45), (3.5, 0.35)):
        foot, lean = floor - lift * max(0.0, x + 6) / 19 - thick, u(-1.0, 6.0)
        over = u(2.5, 5.5) + (x + 10) * 0.15
        crest = (x + lean * 0.3, foot - over), (x + lean + 2, foot - over * u(0.5, 1.2))
        strap = rounded(points((x, foot), *crest), 1, closed=False)
        parts.append(Part(strap, tone, 1.6, u.chance(chance)))
    ankle = heel - u(5, 8)
    loop = points((12.2, heel - 3), (11.5, ankle - 0.5), (5.0, ankle + 0.5), (-1.0, floor - thick))
    return [*parts, Part(rounded(loop, 1, closed=False), contrast, 1.2, u.chance(0.6))]


def laces(u: Dice, x: Number, y: Number, slope: Number, shown: np.ndarray) -> list[Part]:
    """Four short strokes across the instep, which falls to the left from ``(x, y)``."""
    tone, stroke = np.where(u.chance(0.5), 1.0, 0.3), points((0.0, 0.0), (1.5, 2.0))
    steps = [points((x - left, y + left * slope)) for left in (0, 1.9, 3.8, 5.7)]
    return [Part(step + stroke, tone, 0.8, shown) for step in steps]


def sneaker(u: Dice) -> list[Part]:
    ankle = u.either(0.15, (5, 8), (8.2, 11))
    floor, toe, heel = u(18.5, 20.5), u(14.2, 16.6), u(12, 13.4)
    x, y = u(3, 6), ankle + u(-0.8, 1.0)  # the tongue
    behind = (heel, floor), (heel, 14.0), (heel - u(0, 1), ankle), (heel - 3, ankle + u(0.3, 1.5))
    before = (-4.0, toe - 2), (-10.0, toe - 0.6), (-13.6, toe + 0.2), (-13.8, floor)
    upper = rounded(points(*behind, (x, y), (x - 2, y + 0.8), *before))
    mouth = points((heel - 0.8, ankle), (heel - 3, ankle + 2), (x + 0.5, y + 0.6))
    above, below = floor - 1, floor + 1
    sole = points((-13.5, above), (heel + 0.3, above), (heel, below), (-12.6, below))
    swoosh = points((-5.0, floor - 2), (1.0, floor - 2), (9.0, ankle + 3.5), (2.0, floor - 4))
    cap = points((-13.3, above), (-13, toe + 1.4), (-9.5, toe + 0.4), (-8, above))
    back = points((heel, above), (heel - 0.3, ankle + 2), (heel - 2.5, ankle + 3), (9, above))
    contrast = u.either(0.5, (0.2, 0.5), (0.95, 1.0))
    return [
        Part(upper, u(0.62, 0.88)),
        Part(mouth, u(0.1, 0.5), shown=u.chance(0.7)),
        Part(sole, u.either(0.65, (0.85, 1.0), (0.15, 0.5))),
        *laces(u, x - 2, y + 1, (toe - 2 - y) / (x + 4), u.chance(0.65)),
        *(Part(part, contrast, shown=u.chance(0.4)) for part in (swoosh, cap, back)),
    ]


def bag(u: Dice) -> list[Part]:
    kind, upper, lower = u(0, 1), u(7.5, 13), u(9, 13.3)  # a handle, a strap, or neither
    top, bottom = np.where(kind < 0.75, u(8.5, 14), u(3, 9.5)), u(21.5, 27)
    grip, rise = u(2.5, 6.5), np.minimum(u(5.5, 11), top + 1)
    handle = mirrored((grip, top + 1), (grip, top - rise))
    strap = points((-upper * 0.9, top + 1), (u(-3, 3), 0.5), (upper * 0.9, top + 1))
    body = mirrored((upper - 0.8, top), (upper, top + 1), (lower, bottom - 1), (lower - 1, bottom))
    fold = top + (bottom - top) * u(0.3, 0.65)
    flap = mirrored((upper, top + 0.5), (upper * 0.95, fold - 1.5), (upper * 0.6, fold))
    edge = points((upper * 0.7, top), (lower * 0.7, bottom))
    trim, flapped = u.either(0.5, (0.25, 0.6), (0.92, 1.0)), u.chance(0.25)
    return [
        Part(rounded(handle, closed=False), u(0.6, 0.95), 1.3, kind < 0.5),
        Part(rounded(strap, closed=False), u(0.5, 0.9), 0.9, (kind >= 0.5) & (kind < 0.75)),
        Part(body, u(0.68, 0.88)),
        Part(flap, trim, shown=flapped),
        Part(level(upper, fold), trim * 0.7, 0.8, ~flapped & u.chance(0.5)),
        *both(edge, trim * 0.8, 0.8, u.chance(0.4)),
        Part(mirrored((1.2, fold - 1), (1.2, fold + 1.2)), 1.25 - trim, shown=u.chance(0.45)),
    ]


def ankle_boot(u: Dice) -> list[Part]:
    low = u.chance(0.15)
    top, floor = np.where(low, u(7.5, 10), u(1.5, 7)), np.where(low, u(19, 21), u(20.5, 23))
    heel, front, lift = u(10.5, 13), u(1.0, 4.5), u.either(0.3, (2.5, 4.5), (0.6, 2))
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
        Part(sole, np.where(u.chance(0.5), u(0.85, 1.0), dark)),
        Part(block, u(0.3, 0.9)),
        Part(gore, dark, shown=u.chance(0.3)),
        Part(cuff, np.where(u.chance(0.5), dark, 1.0), 1.5, u.chance(0.4)),
        Part(rounded(seam, 1, closed=False), u(0.4, 1.0), 0.8, u.chance(0.5)),
        *laces(u, front - 0.5, instep - 4, u(0.7, 1.0), u.chance(0.35)),
    ]
