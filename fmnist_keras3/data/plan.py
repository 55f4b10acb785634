"""The epoch plan: which examples make which batch, and every random draw of their augmentation.

A pure function of (seed, epoch, sizes, augmentation). Any epoch, and so any step, can be made
alone; that is what makes resuming exact and every backend see the same batches.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import product

import numpy as np

from fmnist_keras3.data.augment import Augmentation, Epoch


@dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch.

    ``indices [steps, batch]`` int32: positions in the training split. The last batch may have
    fewer examples; it is filled up by repeating its own.
    ``valid [steps]`` int32: how many of a batch's examples count.
    ``draws``: per augmentation an int32 array ``[steps, batch, ...]``; see `name_in_view`.
    """

    indices: np.ndarray
    valid: np.ndarray
    draws: dict[str, np.ndarray]

    @property
    def steps(self) -> int:
        return len(self.valid)

    def is_partial(self, steps: slice) -> bool:
        """Tell whether ``steps`` begin with a batch that has fewer examples than the others."""
        return steps.start < self.steps and self.valid[steps.start] < self.indices.shape[1]

    def steps_before_partial(self, step: int) -> int:
        """Return how far steps from ``step`` on have whole batches, or one past a partial one."""
        partial = self.is_partial(slice(self.steps - 1, self.steps))
        return self.steps - 1 if partial and step < self.steps - 1 else self.steps


def generator(seed: int, epoch: int, purpose: str) -> np.random.Generator:
    """Return the counter-based generator of one purpose and epoch, independent of all others."""
    key = np.random.SeedSequence((seed, epoch, zlib.crc32(purpose.encode())))
    return np.random.Generator(np.random.Philox(key))


def epoch_plan(
    seed: int,
    epoch: int,
    *,
    examples: int,
    batch_size: int,
    image_shape: tuple[int, ...] = (),
    augment: tuple[tuple[str, Augmentation], ...] = (),
    views: int = 1,
    limit: int | None = None,
    first: int | None = None,
    classes: np.ndarray | None = None,
) -> EpochPlan:
    """Make the plan of one epoch (0-based): each of the ``examples`` exactly once.

    Each of ``views`` has draws of its own. ``limit`` keeps the first so many batches. ``first`` is
    the number of the first example where they come in an order of their own. With the ``classes
    [N]`` of the examples, each class comes equally often instead, see `balanced`.
    """
    if classes is not None:
        order = balanced(classes, generator(seed, epoch, "order")).astype(np.int32)
    elif first is None:
        order = generator(seed, epoch, "order").permutation(examples).astype(np.int32)
    else:
        order = np.arange(first, first + examples)
    draws = {}
    for (name, augmentation), view in product(augment, range(views)):
        name = name_in_view(name, view)
        drawn = draws_of(name, augmentation, seed, epoch, order % examples, image_shape)
        draws[name] = _batches(drawn, batch_size)[:limit]
    valid = _valid(examples, batch_size)
    return EpochPlan(_batches(order, batch_size)[:limit], valid[:limit], draws)


def balanced(classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return as many examples as ``classes [N]`` are of, of each class equally many.

    Or one more, where that cannot be. Within a class, none comes again before all others have.
    """
    labels = rng.permutation(np.unique(classes))
    share, rest = divmod(len(classes), len(labels))
    chosen = []
    for place, label in enumerate(labels):
        members = np.flatnonzero(classes == label)
        count = share + (place < rest)
        turns = [rng.permutation(members) for _ in range(-(-count // len(members)))]
        chosen.append(np.concatenate(turns)[:count] if turns else members[:0])
    return rng.permutation(np.concatenate(chosen))


def name_in_view(name: str, view: int) -> str:
    """Return the name of an augmentation's draws for the images of a view, from 0."""
    return f"{name} view {view + 1}" if view else name


def draws_of(
    name: str,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    order: np.ndarray,
    image_shape: tuple[int, ...],
) -> np.ndarray:
    """Return what an augmentation draws for the examples ``order [n]`` of an epoch, in turn."""
    height, width = image_shape[:2]
    rngs = (generator(seed, of, name) for of in (epoch, 0))
    return augmentation.draw(Epoch(order, height, width, epoch, *rngs))


def evaluation_plan(examples: int, batch_size: int) -> EpochPlan:
    """Make the plan that runs through a split once, in its own order, without augmentation."""
    order = np.arange(examples, dtype=np.int32)
    return EpochPlan(_batches(order, batch_size), _valid(examples, batch_size), {})


def held_out(groups: np.ndarray, fraction: float, seed: int, purpose: str) -> np.ndarray:
    """Return which examples are held out, by ``groups [N]``: of each the ``fraction``."""
    rng = generator(seed, 0, purpose)
    held = np.zeros(len(groups), bool)
    for label in np.unique(groups):
        members = np.flatnonzero(groups == label)
        held[rng.permutation(members)[: round(fraction * len(members))]] = True
    return held


def _valid(examples: int, batch_size: int) -> np.ndarray:
    starts = np.arange(0, examples, batch_size)
    return np.minimum(batch_size, examples - starts).astype(np.int32)


def _batches(values: np.ndarray, batch_size: int) -> np.ndarray:
    """Cut ``values [n, ...]`` into ``[steps, batch_size, ...]``; the last batch repeats its own."""
    tail = values[len(values) - 1 - (len(values) - 1) % batch_size :]
    filler = np.resize(tail, (batch_size - len(tail), *values.shape[1:]))
    return np.concatenate([values, filler]).reshape(-1, batch_size, *values.shape[1:])
