"""When the optimizer makes an update: after every so many batches, and at the end of each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Accumulation:
    """Groups of ``batches`` batches make one update each; an epoch's last group may be smaller.

    An epoch has ``steps_in_epoch`` batches. Nothing is carried into the next one, so its updates do
    not depend on what was left over before.
    """

    batches: int
    steps_in_epoch: int

    def updates(self, steps: np.ndarray) -> np.ndarray:
        """Return how many updates there are within the first ``steps`` batches."""
        epochs, past = np.divmod(steps, self.steps_in_epoch)
        return epochs * -(-self.steps_in_epoch // self.batches) + past // self.batches

    def means(self, steps: np.ndarray, skipped: Sequence[int] = ()) -> np.ndarray | None:
        """Return over how many batches the update after each of ``steps`` takes the mean gradient.

        ``steps`` count from 0; float32, 0 where no update follows; None if each batch is one. The
        ``skipped`` ones, from 1, do not count, and a group that ends with one ends before it.
        """
        if self.batches == 1:
            return None
        epoch, place = np.divmod(steps, self.steps_in_epoch)
        first = place - place % self.batches
        last = np.minimum(first + self.batches, self.steps_in_epoch) - 1
        first, last = first + epoch * self.steps_in_epoch, last + epoch * self.steps_in_epoch
        count = last - first + 1
        for step in sorted((step - 1 for step in skipped), reverse=True):  # so that ends move on
            count = count - ((first <= step) & (step <= last))
            last = np.where(last == step, last - 1, last)
        return np.where(steps == last, count, 0).astype(np.float32)
