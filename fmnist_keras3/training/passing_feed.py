"""The pipeline of a dataset that is streamed in its own order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fmnist_keras3.data.dataset import Split
from fmnist_keras3.data.stream import stream_of
from fmnist_keras3.engines.base import Engine
from fmnist_keras3.ground.tree import leaves, packed
from fmnist_keras3.training.check_data import check_split
from fmnist_keras3.training.feeds import Feed


class PassingFeed(Feed):
    """Takes the examples of a `tf.data.Dataset` as they come, from any place of it on."""

    name = "dataset"

    def __init__(self, split: Split, engine: Engine, augment=(), **options: Any) -> None:
        super().__init__(split, engine, augment, **options)
        self.close()

    def open(self, plan, start=0):
        self._plan, self._at = plan, start
        if start == plan.steps:
            return
        place = int(plan.indices[start, 0])
        stream = stream_of(self.split)
        if stream is not None and place != self._place:
            self._place, self._ready = place, []
            self._batches = stream.batches(skip=place)

    def take(self, count):
        steps = slice(self._at, self._at + count)
        self._at += count
        size = self._plan.indices.shape[1]
        rows = [self._empty_like(array, size) for array in leaves(self._arrays)]
        flat = [row.reshape(-1, *row.shape[2:]) for row in rows]
        valid = self._plan.valid[steps]
        need, done = int(valid.sum()), 0
        while done < need:
            if not self._ready or not len(self._ready[0]):
                self._ready = next(self._batches)
            part = slice(done, done + min(need - done, len(self._ready[0])))
            used = part.stop - part.start
            for row, array in zip(flat, self._ready, strict=True):
                row[part] = array[:used]
            self._ready = [array[used:] for array in self._ready]
            done = part.stop
        self._place += need
        for row in flat:
            if need < count * size:  # the last batch, filled up with its own
                own = row[(count - 1) * size : need]
                row[need : count * size] = np.resize(own, (count * size - need, *own.shape[1:]))
            row[count * size :] = 0
        name = f"streamed (from step {steps.start + 1} of the epoch on)"
        seen = packed(self._arrays, [row[: count * size] for row in flat])
        check_split(self.engine.model, Split(*seen), name)
        mine = self.engine.part(size)
        if len(mine) < size:  # a stream is passed through whole, by each process
            rows = [row[:, mine] for row in rows]
        return self._chunk(packed(self._arrays, self._placed(rows)), steps)

    def close(self):
        self._batches: Iterator[Any] = iter(())
        self._ready: list[Any] = []
        self._place = -1
