"""Makes of a picture what the data set's images are: a bright garment on black, trimmed, centred.

After the steps of Fashion-MNIST's authors (Xiao et al. 2017, arXiv:1708.07747, figure 1: trim,
longest edge to 28, sharpen, extend, negate, grey), with one before them: the garment is separated
from its background, which need not be white.

All arithmetic is in integers, // rounds down, and nothing depends on the order of sums, so that a
page in JavaScript gives the same bits from the same decoded pixels. The steps:

1. `shrunk`: transparent pixels over white, c' = (c a + 255 (255 - a) + 127) // 255; then, where a
   side has more than 192 pixels, means over blocks, to 192 on the longer side.
2. `_distance`: how far each pixel is from the background, 0..255: the sum of the differences of
   red, green and blue to a quadratic surface through the border (a lamp's light); where that does
   not explain the border, to the nearest of its three colours, if that is less. Colours that fill
   the middle are those of a garment which touches the border, and left out.
3. `_garment`: where that is above a threshold (a third of Otsu's, and more than the border's own
   noise); opened by 3 x 3 pixels, without small parts; then what is enclosed, or nearly (closed by
   5 x 5 pixels), belongs to it, too. Of a transparent picture, what is opaque.
4. `prepared`: grey (19595 R + 38470 G + 7471 B + 32768) // 65536, negated unless the border is
   dark; 0 outside of the garment; pale garments lifted; the outermost pixels, which the background
   shines into, halved, where they are a small part; trimmed to what is within, scaled, centred.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

EDGE = 192  # of the longer side of a picture that is looked at
DARK = 64  # a border darker than this is black: the picture is a negative already
CLUSTERS, ROUNDS = 3, 4  # of the border's colours
MEDIAN = 60  # to which very pale garments are lifted
TOUCHING = 24  # of the background's noise, above three times its median: the rest is garment
NEAR = 24  # as far as pixels are from a colour that they have, beside its noise
APART = 60  # colours of the background and of the garment
OWN = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2))  # of the colours, which may be a garment's
SPECK = 3  # what is smaller than this many per cent of the largest part is no part of a garment


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A picture of at most 192 x 192 pixels over white: ``pixels [h, w, 3]``, ``alpha [h, w]``.

    Both uint8; ``alpha`` is None where nothing is transparent.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None


def shrunk(image: Any, edge: int = EDGE) -> Shrunk:
    """Return a `PIL.Image.Image` of mode RGB or RGBA with at most ``edge`` pixels on a side.

    Of a side of N pixels made n, pixel i is the mean over those from i N // n to before
    (i + 1) N // n, (2 sum + count) // (2 count). Needs memory for a strip only.
    """
    width, height = image.size
    longest = max(width, height)
    w, h = (
        n if longest <= edge else max(1, (2 * n * edge + longest) // (2 * longest))
        for n in (width, height)
    )
    rows, columns = (np.arange(n + 1) * full // n for n, full in ((h, height), (w, width)))
    means = np.empty((h, w, 4), np.uint8)
    step = max(1, h * 2_000_000 // (width * height))
    for i in range(0, h, step):
        j = min(i + step, h)
        strip = np.asarray(image.crop((0, rows[i], width, rows[j])))
        if strip.shape[2] == 4:
            colour, alpha = strip[..., :3].astype(np.uint32), strip[..., 3:].astype(np.uint32)
            strip = np.concatenate([(colour * alpha + 255 * (255 - alpha) + 127) // 255, alpha], 2)
        sums = np.add.reduceat(strip, columns[:-1], axis=1, dtype=np.int64)
        sums = np.add.reduceat(sums, rows[i:j] - rows[i], axis=0)
        counts = (np.diff(rows[i : j + 1])[:, None] * np.diff(columns))[..., None]
        means[i:j, :, : strip.shape[2]] = (2 * sums + counts) // (2 * counts)
    alpha = means[..., 3] if image.mode == "RGBA" else None
    return Shrunk(means[..., :3], None if alpha is None or alpha.min() == 255 else alpha)


def prepared(picture: Shrunk, size: tuple[int, int], invert: str = "auto") -> np.ndarray:
    """Return the garment of ``picture`` as an image of the data set, uint8 ``[H, W]`` of ``size``.

    ``invert``: whether dark becomes bright: "yes", "no", or "auto": unless the border is dark.
    """
    values = grey(picture.pixels)
    edge = _border(values)
    if invert == "yes" or (invert == "auto" and np.sort(values[edge])[edge.sum() // 2] >= DARK):
        values = 255 - values
    if values.shape == size and invert != "yes" and np.median(values[edge]) == 0:
        return values.astype(np.uint8)  # it is one of the data set's own
    garment = _garment(picture, edge)
    inner = _without_rim(garment, size)
    shown = np.sort(values[garment])
    lift = max(0, MEDIAN - int(shown[len(shown) // 2]))
    values = np.where(garment, np.minimum(values + lift, 255), 0)
    values = np.where(inner, values, values // 2)
    top, bottom = np.flatnonzero(inner.any(axis=1))[[0, -1]]
    left, right = np.flatnonzero(inner.any(axis=0))[[0, -1]]
    small = _scaled(values[top : bottom + 1, left : right + 1, None], size, 1)
    return _centred(small, np.zeros((*size, 1), np.int64))[..., 0].astype(np.uint8)


def grey(pixels: np.ndarray) -> np.ndarray:
    """Return the brightness of ``pixels [h, w, 3]``, as int64 ``[h, w]`` (ITU-R BT.601)."""
    return (pixels.astype(np.int64) @ np.array([19595, 38470, 7471]) + 32768) >> 16


def _border(values: np.ndarray) -> np.ndarray:
    """Return where the border is: a frame of a 24th of the shorter side, bool ``[h, w]``."""
    h, w = values.shape
    thick = max(1, min(h, w) // 24)
    inside = np.zeros((h, w), bool)
    inside[thick : h - thick, thick : w - thick] = True
    return ~inside


def _garment(picture: Shrunk, edge: np.ndarray) -> np.ndarray:
    """Return where the garment is, bool ``[h, w]``; everywhere if it cannot be told."""
    from scipy import ndimage

    square = np.ones((3, 3), bool)
    if picture.alpha is not None and np.mean(picture.alpha < 128) > 0.02:
        found = picture.alpha >= 128
    else:
        distance, edge = _distance(picture.pixels.astype(np.int64), edge)
        order = np.sort(distance[edge])
        noise = min(order[len(order) * 9 // 10], 3 * order[len(order) // 2] + TOUCHING)
        found = distance > max(_otsu(distance) // 3, noise + 6)
        found = ndimage.binary_opening(found, square)
        parts, count = ndimage.label(found, square)
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        sizes[0] = 0
        found &= (100 * sizes >= SPECK * sizes.max())[parts]
        # What has the background's grey is seen by its outline, which may have gaps.
        closed = ndimage.binary_closing(np.pad(found, 2), square, 2)[2:-2, 2:-2] | found
        found |= ndimage.binary_fill_holes(closed) & ~closed
    return found if found.mean() > 0.002 else np.ones_like(found)


def _without_rim(garment: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the garment without pixels at its outline, but for parts that are nothing else.

    All of it where less than two of its pixels make one of an image of ``size``.
    """
    from scipy import ndimage

    extent = [np.ptp(np.flatnonzero(garment.any(axis=axis))) + 1 for axis in (1, 0)]
    if all(n < 2 * most for n, most in zip(extent, size, strict=True)):
        return garment
    square = np.ones((3, 3), bool)
    inner = ndimage.binary_erosion(garment, square, border_value=1)
    return inner | (garment & ~ndimage.binary_dilation(inner, square))


def _distance(pixels: np.ndarray, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far ``pixels`` are from the background at the border, int64 0..255 ``[h, w]``.

    And where of the border that is: without the colours of a garment which touches it.
    """
    for own_known in (False, True):
        light = _apart(pixels, _surface(pixels, edge))
        colours, nearest = _colours(pixels[edge])
        counts = np.bincount(nearest, minlength=CLUSTERS)
        # What less than a tenth of the border has is of a garment that reaches it.
        common = colours[(counts * 10 >= len(nearest)) | (counts == counts.max())]
        flat = np.min([_apart(pixels, colour) for colour in common], axis=0)
        place = len(nearest) * 3 // 4
        # Colours of a border that light explains as well would be those of many a garment, too.
        explained = np.sort(light[edge])[place] <= np.sort(flat[edge])[place]
        own = () if explained or own_known else _own(pixels, pixels[edge], colours, nearest)
        if not own:
            break
        background = ~np.isin(nearest, own)
        edge = edge.copy()
        edge[edge] = background
    return np.minimum(light if explained else np.minimum(light, flat), 255), edge


def _own(
    pixels: np.ndarray, border: np.ndarray, colours: np.ndarray, nearest: np.ndarray
) -> tuple[int, ...]:
    """Return which of the ``colours`` of the ``border [n, 3]`` are the garment's, if any.

    Those, apart from the others, that leave of the picture's middle less than half of the share
    which they leave of the border. ``nearest [n]`` is which colour each pixel has.
    """
    h, w = pixels.shape[:2]
    middle = pixels[h // 4 : h - h // 4, w // 4 : w - w // 4].reshape(-1, 3)
    far = np.array([_apart(middle, colour) for colour in colours])
    counts = np.bincount(nearest, minlength=CLUSTERS)
    inside = np.zeros(CLUSTERS, np.int64)
    for k in np.flatnonzero(counts):
        noise = np.sort(_apart(border[nearest == k], colours[k]))[counts[k] // 2]
        inside[k] = ((far.argmin(axis=0) == k) & (far[k] <= 2 * noise + NEAR)).sum()
    best, found = 0, ()
    for mine in OWN:
        others = [k for k in range(CLUSTERS) if k not in mine and counts[k]]
        if not others or not all(counts[k] for k in mine):
            continue
        apart = min(_apart(colours[a], colours[b]) for a in mine for b in others)
        there, here = (int(sum(n[k] for k in mine)) for n in (counts, inside))
        gain = 2 * here * len(border) - (len(border) + there) * len(middle)
        if apart >= APART and 10 * there <= 9 * len(border) and gain > best:
            best, found = gain, mine
    return found


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(np.abs(a - b), -1, 0)
    return red + green + blue


def _colours(border: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return three colours of the ``border [n, 3]``, by k-means from quantiles of the grey.

    And for each pixel which of them is nearest, ``[n]``.
    """
    shade = border @ np.array([19595, 38470, 7471])
    start = np.argsort(shade, kind="stable")[(2 * np.arange(CLUSTERS) + 1) * len(border) // 6]
    colours = border[start]
    nearest = np.zeros(len(border), np.int64)
    for _ in range(ROUNDS):
        nearest = np.argmin([_apart(border, colour) for colour in colours], axis=0)
        counts = np.bincount(nearest, minlength=CLUSTERS)
        for k in np.flatnonzero(counts):
            colours[k] = border[nearest == k].sum(axis=0) // counts[k]
    return colours, nearest


def _surface(pixels: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Return the quadratic surface through the border, int64 ``[h, w, 3]``.

    Least squares, solved exactly; three times, each time without the pixels of the border that are
    further from it than twice the median and 6 more.
    """
    h, w = edge.shape
    y, x = np.mgrid[0:h, 0:w].astype(np.int64)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=2)
    used, known, colours = np.ones(int(edge.sum()), bool), terms[edge], pixels[edge]
    found = np.zeros((terms.shape[2], 3), np.int64)
    for _ in range(3):
        basis = known[used]
        solved = _solve(basis.T @ basis, basis.T @ colours[used])
        if solved is None:  # a picture of a few pixels
            break
        found = solved
        off = _apart((known @ found) >> BITS, colours)
        used = off <= 2 * np.sort(off)[len(off) // 2] + 6
    return (terms @ found) >> BITS


BITS = 24  # after the point of the surface's coefficients


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    """Return the solution of ``matrix @ x = right`` times 2 ** BITS, rounded down.

    None where it has none. Bareiss' elimination: whole numbers of any length, no fractions.
    """
    rows = [[int(v) for v in (*a, *b)] for a, b in zip(matrix, right, strict=True)]
    n, last = len(rows), 1
    for k in range(n):
        if rows[k][k] == 0:
            return None
        for i in range(n):
            if i != k:
                factor = rows[i][k]
                rows[i] = [
                    (rows[k][k] * a - factor * b) // last
                    for a, b in zip(rows[i], rows[k], strict=True)
                ]
        last = rows[k][k]
    return np.array([[(v << BITS) // rows[i][i] for v in rows[i][n:]] for i in range(n)])


def _otsu(values: np.ndarray) -> int:
    """Return the threshold in 0..255 that separates ``values`` best (Otsu 1979).

    The first at which n0 n1 (m1 - m0)^2 is largest, as whole numbers of any length.
    """
    counts = np.bincount(values.ravel(), minlength=256).tolist()
    total, weighted = sum(counts), sum(v * c for v, c in enumerate(counts))
    best, threshold, n, s = (0, 1), 0, 0, 0
    for value, count in enumerate(counts):
        n, s = n + count, s + value * count
        if 0 < n < total:
            # (m1 - m0)^2 n0 n1, times total^2, over a denominator
            score = (weighted * n - total * s) ** 2, n * (total - n)
            if score[0] * best[1] > best[0] * score[1]:
                best, threshold = score, value
    return threshold


def fitted(picture: Shrunk, size: tuple[int, int], invert: bool = False) -> np.ndarray:
    """Return the whole ``picture`` fitted into ``size``, uint8 ``[H, W, 3]``, for colour models.

    Each pixel is the mean over its cell; what is left over has the border's median colour.
    """
    pixels = picture.pixels.astype(np.int64)
    pixels = 255 - pixels if invert else pixels
    border = np.sort(pixels[_border(pixels[..., 0])], axis=0)
    canvas = np.tile(border[len(border) // 2], (*size, 1))
    return _centred(_scaled(pixels, size, 0), canvas).astype(np.uint8)


def _scaled(values: np.ndarray, size: tuple[int, int], margin: int) -> np.ndarray:
    """Return ``values [h, w, c]`` as large as ``size`` allows: means over a part of each cell.

    ``margin`` quarters of a cell are left out on each side. With 1 the picture is as sharp as the
    data set's, which sharpening made so. Of a side of N pixels made n, pixel i is the mean from
    (4 i + margin) N // (4 n) to before (4 i + 4 - margin) N / (4 n), rounded up.
    """
    h, w = values.shape[:2]
    part, whole = (size[0], h) if h * size[1] >= w * size[0] else (size[1], w)
    high, wide = (
        min(most, max(1, (2 * n * part + whole) // (2 * whole)))
        for n, most in zip((h, w), size, strict=True)
    )
    sums = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0), (0, 0)))
    (y0, y1), (x0, x1) = (
        ((4 * i + margin) * full // (4 * n), -((4 * i + 4 - margin) * full // (-4 * n)))
        for i, full, n in ((np.arange(high), h, high), (np.arange(wide), w, wide))
    )
    y0, y1 = y0[:, None], y1[:, None]
    counts = ((y1 - y0) * (x1 - x0))[..., None]
    total = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return (2 * total + counts) // (2 * counts)


def _centred(values: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    (h, w), (height, width) = values.shape[:2], canvas.shape[:2]
    top, left = (height - h) // 2, (width - w) // 2
    canvas[top : top + h, left : left + w] = values
    return canvas
