"""Two models on the same images: is one better, or is it chance?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MINUS = "\N{MINUS SIGN}"
RESAMPLES = 20_000
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Paired:
    """What two models did on the same ``images``.

    ``difference`` is the second's accuracy less the first's, ``low`` and ``high`` its 95 % interval
    by the paired bootstrap, ``p`` the exact McNemar test's. ``first_only`` and ``second_only``:
    how many images one of them alone got right; ``differing``: how many got different labels.
    """

    images: int
    difference: float
    low: float
    high: float
    p: float
    first_only: int
    second_only: int
    differing: int


def paired(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> Paired:
    """Compare the classes that two models predict, ``first [N]`` and ``second [N]``.

    All are integers, in the same order of images. Raises ValueError where lengths differ.
    """
    from scipy.stats import binomtest

    if not len(labels) == len(first) == len(second) > 0:
        raise ValueError(f"{len(labels)} labels, {len(first)} and {len(second)} predictions")
    right, other = first == labels, second == labels
    n, lost, won = len(labels), int((right & ~other).sum()), int((other & ~right).sum())
    # Resampled images are counts of three kinds: won, lost and even.
    kinds = np.array([won, lost, n - won - lost]) / n
    drawn = np.random.default_rng(0).multinomial(n, kinds, RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, INTERVAL)
    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    differing = int((first != second).sum())
    return Paired(n, (won - lost) / n, float(low), float(high), p, lost, won, differing)


def sentence(first: str, second: str, found: Paired) -> str:
    """Say what a comparison found."""
    if not found.differing:
        return f"{second} and {first} give each of the {found.images:,} test images the same label."
    alone = (
        f"Of {found.images:,} test images {second} alone is right on {found.second_only:,}, "
        f"{first} alone on {found.first_only:,}; {found.differing:,} get different labels."
    )
    ends = (found.low, found.high)
    if found.difference < 0:
        first, second, ends = second, first, (-found.high, -found.low)
    low, high = (f"{100 * end:.2f}".replace("-", MINUS) for end in ends)
    interval = (
        f"95 % interval {low} to {high} points by the paired bootstrap, McNemar's test "
        f"p {_p(found.p)}"
    )
    points = f"{abs(100 * found.difference):.2f} points"
    if not found.difference:
        verdict = f"{second} and {first} are equally often right"
    elif ends[0] <= 0:
        verdict = f"{second} is right more often than {first} by {points}, which may be chance"
    else:
        verdict = f"{second} is better than {first} by {points}"
    return f"{verdict} ({interval}). {alone}"


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"
