"""Fewer examples than there are."""

from __future__ import annotations

import copy

from fmnist_keras3.data.datamodule import DataModule
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.data.stream import stream_of
from fmnist_keras3.ground.errors import UserError


def overfitted(data: DataModule, amount: int | float) -> DataModule:
    """Return ``data`` with so many training batches (or that fraction), validated on the same."""
    if stream_of(data.train) is not None:
        raise UserError(
            "overfit_batches takes the same examples again and again, and the dataset is streamed "
            "in its own order. Leave it out, and give dataset.take(N)."
        )
    total = -(-len(data.train) // data.batch_size)
    count = amount if isinstance(amount, int) else max(1, int(amount * total))
    fewer = copy.copy(data)
    fewer.train = fewer.validation = limited(data.train, count, data.batch_size)
    return fewer


def limited(split: Split, batches: int, batch_size: int) -> Split:
    """Return the first ``batches`` batches of ``split``."""
    return split.take(slice(batches * batch_size))
