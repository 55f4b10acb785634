"""The processes of one training: what they agree upon, and who writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class World:
    """One process, which agrees with itself; `processes.Processes` are many.

    ``rank`` is this process's number, from 0, of ``size``. Whatever a clock or a signal decides
    goes through `agree` or `highest`, which all processes call at the same places: one that took
    another way than the others would wait for them for ever.
    """

    rank, size = 0, 1

    def agree(self, value: int) -> int:
        """Return the whole number ``value`` of the first process."""
        return value

    def highest(self, *values: int) -> tuple[int, ...]:
        """Return of each of the whole numbers ``values`` the highest of all processes."""
        return values

    def barrier(self) -> None:
        """Wait until all processes are here."""


def part_of(size: int, owners: Sequence[int], rank: int) -> np.ndarray:
    """Return which examples of a batch of ``size`` the process ``rank`` has to have.

    ``owners`` are the processes of the devices, in the order in which these share the batch. What
    they cannot share equally each has whole.
    """
    if size % len(owners):
        return np.arange(size)
    return np.flatnonzero(np.repeat(np.array(owners) == rank, size // len(owners)))
