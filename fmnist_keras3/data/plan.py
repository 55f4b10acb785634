"""The epoch plan: which examples make which batch, and every random draw of their augmentation.

A pure function of (seed, epoch, sizes, augmentation). Any epoch, and so any step, can be made
alone; that is what makes resuming exact and every backend see the same batches.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from fmnist_keras3.data.augment import Augmentation


@dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch.

    ``indices [steps, batch]`` int32: positions in the training split. The last batch may have
    fewer examples; it is filled up by repeating its own.
    ``valid [steps]`` int32: how many of a batch's examples count.
    ``draws``: per augmentation an int32 array ``[steps, batch, ...]``.
    """

    indices: np.ndarray
    valid: np.ndarray
    draws: dict[str, np.ndarray]

    @property
    def steps(self) -> int:
        return len(self.valid)


def generator(seed: int, epoch: int, purpose: str) -> np.random.Generator:
    """Return the counter-based generator for one purpose in one epoch, independent of all others."""
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
    limit: int | None = None,
    shuffle: bool = True,
) -> EpochPlan:
    """Make the plan of one epoch (0-based): each of the ``examples`` exactly once.

    ``limit`` keeps the first so many batches. ``shuffle=False`` gives every epoch the order of
    the split, as evaluation wants it.
    """
    if shuffle:
        order = generator(seed, epoch, "order").permutation(examples).astype(np.int32)
    else:
        order = np.arange(examples, dtype=np.int32)
    steps = -(-examples // batch_size)
    valid = np.full(steps, batch_size, np.int32)
    valid[-1] = examples - (steps - 1) * batch_size
    tail = order[(steps - 1) * batch_size :]
    indices = np.concatenate([order, np.resize(tail, batch_size - len(tail))])
    draws = {}
    for name, augmentation in augment:
        drawn = augmentation.draw(generator(seed, epoch, name), examples, *image_shape[:2])
        drawn = np.concatenate(
            [drawn, np.resize(drawn[-len(tail) :], (batch_size - len(tail), *drawn.shape[1:]))]
        )
        draws[name] = drawn.reshape(steps, batch_size, *drawn.shape[1:])[:limit]
    return EpochPlan(indices.reshape(steps, batch_size)[:limit], valid[:limit], draws)
