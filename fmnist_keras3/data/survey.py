"""A look at a data set: how many, how bright, what each class looks like, and what comes twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmnist_keras3.data.dataset import ImageData, Split
from fmnist_keras3.data.duplicates import digests, exact_pairs, near_pairs
from fmnist_keras3.data.pixels import colored, resized

# Images that are looked at, of all splits together: in memory, and where they are read for it.
MOST, MOST_READ = 100_000, 10_000
SIDE, SMALL = 64, 32  # pixels of a picture that is shown, and of one that is compared
AT_ONCE = 512


@dataclass(frozen=True)
class Copies:
    """Examples of ``split`` that are like an earlier one of split ``of``, counted.

    ``conflicts``: how many of them have another label than that one.
    """

    split: str
    of: str
    exact: int
    exact_conflicts: int
    near: int
    near_conflicts: int


@dataclass(frozen=True)
class Survey:
    """What was found; the images that were looked at are numbered, over all splits.

    ``looked [n]``: their number in each split; ``split`` and ``row``: where each stands, and
    ``label`` its class; ``mean``: of all, and of each class (None without an example), small
    pictures ``[h, w, C]`` uint8; ``center`` and ``spread``: mean and standard deviation of the
    pixels of each channel; ``exact`` and ``near``: pairs ``[n, 2]``, those first that matter most;
    ``compared``: whether all near ones were found, or too many images are alike.
    """

    splits: dict[str, Split]
    looked: dict[str, int]
    split: np.ndarray
    row: np.ndarray
    label: np.ndarray
    mean: np.ndarray
    means: list[np.ndarray | None]
    center: list[float]
    spread: list[float]
    exact: np.ndarray
    near: np.ndarray
    copies: list[Copies]
    compared: bool

    @property
    def complete(self) -> bool:
        """Whether all images were looked at."""
        return all(self.looked[name] == len(split) for name, split in self.splits.items())

    def where(self, number: int) -> tuple[str, int]:
        """Return split and row of an image that was looked at."""
        return [*self.splits][self.split[number]], int(self.row[number])

    def picture(self, number: int) -> np.ndarray:
        """Return it as a small picture ``[h, w, C]`` uint8."""
        name, row = self.where(number)
        return shrunk(self.splits[name].x[[row]][0], SIDE)

    def of_class(self, label: int, count: int) -> list[int]:
        """Return the first ``count`` training images of a class that were looked at."""
        return np.flatnonzero((self.label == label) & (self.split == 0))[:count].tolist()


def survey(data: ImageData) -> Survey:
    """Look at the images of a set, at random at some of them where they are too many to read."""
    named = {"train": data.train, "validation": data.validation, "test": data.test}
    splits = {name: split for name, split in named.items() if split is not None and len(split)}
    total = sum(map(len, splits.values()))
    in_memory = all(split.in_memory for split in splits.values())
    share = min(1.0, (MOST if in_memory else MOST_READ) / total)
    rng = np.random.default_rng(0)
    rows = [_chosen(len(split), share, rng) for split in splits.values()]
    places = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    labels = np.concatenate([s.y[r] for s, r in zip(splits.values(), rows, strict=True)])

    number, names, greys, marks = 0, data.class_names, [], []
    sums, counts = [0] * len(names), np.zeros(len(names), np.int64)
    levels = np.zeros((data.train.x.shape[-1], 256), np.int64)
    for images in _blocks(splits, rows):
        marks.append(digests(images))
        for channel, found in enumerate(levels):
            found += np.bincount(images[..., channel].reshape(-1), minlength=256)
        of_block = labels[number : number + len(images)]
        small = np.stack([shrunk(image, SIDE) for image in images])
        for label in np.unique(of_block).tolist():
            sums[label] = sums[label] + small[of_block == label].sum(axis=0, dtype=np.int64)
            counts[label] += np.count_nonzero(of_block == label)
        greys.append(np.stack([_grey(image) for image in small]))
        number += len(images)

    values = np.arange(256)
    center = (levels @ values) / levels.sum(axis=1)
    spread = np.sqrt((levels @ values**2) / levels.sum(axis=1) - center**2)
    sight, mark = np.concatenate(greys), np.concatenate(marks)
    exact = exact_pairs(mark, places, labels)
    near, likeness, compared = near_pairs(sight, mark, places, labels)
    rank_exact, rank_near = (_rank(pairs, places, labels) for pairs in (exact, near))
    return Survey(
        splits,
        dict(zip(splits, map(len, rows), strict=True)),
        places,
        np.concatenate(rows),
        labels,
        _mean(sum(sums), counts.sum()),
        [_mean(total, count) if count else None for total, count in zip(sums, counts, strict=True)],
        center.tolist(),
        spread.tolist(),
        exact[np.argsort(rank_exact, kind="stable")],
        near[np.lexsort((-likeness, rank_near))],
        _copies([*splits], places, labels, exact, near),
        compared,
    )


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image ``[H, W, C]`` uint8 with sides of at most ``side`` pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    return resized(image, (max(1, round(scale * height)), max(1, round(scale * width))), "stretch")


def _grey(image: np.ndarray) -> np.ndarray:
    image = colored(image, 1)
    sides = [min(SMALL, side) for side in image.shape[:2]]
    return resized(image, (sides[0], sides[1]), "stretch")[..., 0]


def _chosen(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    if share == 1:
        return np.arange(count)
    return np.sort(rng.choice(count, max(1, round(share * count)), replace=False))


def _blocks(splits: dict[str, Split], rows: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the images in ``rows`` of each split, some at a time."""
    for split, places in zip(splits.values(), rows, strict=True):
        for start in range(0, len(places), AT_ONCE):
            yield split.x[places[start : start + AT_ONCE]]


def _mean(total: Any, count: Any) -> np.ndarray:
    return np.rint(total / count).astype(np.uint8)


def _rank(pairs: np.ndarray, splits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return 0 for pairs over two splits with two labels, 1 over two splits, 2 two labels, 3."""
    first, second = pairs.T
    return 2 * (splits[first] == splits[second]) + (labels[first] == labels[second])


def _copies(
    names: list[str], splits: np.ndarray, labels: np.ndarray, exact: np.ndarray, near: np.ndarray
) -> list[Copies]:
    """Return what is found of each split within itself and within each before it."""

    def counted(pairs: np.ndarray, of: int, split: int) -> tuple[int, int]:
        earlier, later = pairs.T
        here = (splits[earlier] == of) & (splits[later] == split)
        apart = here & (labels[earlier] != labels[later])
        return len(np.unique(later[here])), len(np.unique(later[apart]))

    return [
        Copies(name, names[of], *counted(exact, of, split), *counted(near, of, split))
        for split, name in enumerate(names)
        for of in range(split + 1)
    ]
