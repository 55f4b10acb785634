"""The two pipelines: both turn the same epoch plan into the same chunks on the device.

`ResidentFeed` keeps the split on the device and gathers there; where the device is the CPU, NumPy
gathers, which copies whole images (10,000 of 28x28 in 3 ms; XLA:CPU's gather, byte by byte, takes
50). `StreamFeed` gathers on the host with tf.data, in parallel and ahead of the device, for splits
that do not fit. Augmentation runs on the device in both; the training program sees equal arrays and
so gives equal bits.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from fmnist_keras3.data.augment import Augmentation, augmented, is_mixing, ops, partners
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.data.plan import EpochPlan, name_in_view
from fmnist_keras3.data.source import Rows, read, threads_of
from fmnist_keras3.engines.base import Engine
from fmnist_keras3.engines.chunk import Chunk
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import leaves, mapped, packed
from fmnist_keras3.training.check_data import check_split
from fmnist_keras3.training.pace import Pace

# Steps that tf.data gathers at once: a call for each would cost 0.6 ms a step.
GROUP_STEPS = 16
# What is read from a source: a group's size, and that of all groups that are read at once.
GROUP_BYTES, AHEAD_BYTES = 2**24, 2**27


class Feed(ABC):
    """Gives chunks of a split in the order of a plan.

    A short last batch comes filled up by repeats where that gives the same numbers ``training`` (or
    evaluating) the engine's model, else at its true size, as a chunk of its own.
    """

    name: str  # of the pipeline

    def __init__(
        self,
        split: Split,
        engine: Engine,
        augment: tuple[tuple[str, Augmentation], ...] = (),
        *,
        chunk_steps: int | None = None,
        training: bool = False,
    ) -> None:
        self.split, self.engine = split, engine
        self.chunk_steps = chunk_steps or engine.chunk_steps  # programs know chunks of one length
        self._fills = engine.step.fills_training if training else engine.step.fills_evaluation
        self._arrays = (split.x, split.y, split.weight)
        self._augment = None
        self._mixing: Any = next((pair for pair in augment if is_mixing(pair[1])), None)
        if self._mixing is not None and engine.step.loss_obstacles:
            raise UserError(
                f"{self._mixing[0]} mixes labels, for a loss that is the mean over the examples. "
                f"The model's may be something else (by {engine.step.loss_obstacles[0]}); leave "
                f"{self._mixing[0]} out of augment."
            )
        if augment:
            apart = engine.device.count > 1
            function = partial(_augment, dict(augment), split.views, apart)
            self._augment = engine.program((augment, split.views), function)
        self._plan: EpochPlan

    @abstractmethod
    def open(self, plan: EpochPlan, start: int = 0) -> None:
        """Begin at step ``start`` of ``plan``."""

    @abstractmethod
    def take(self, count: int) -> Chunk:
        """Return the next ``count`` batches (at most ``chunk_steps``)."""

    def chunks(
        self,
        plan: EpochPlan,
        pace: Pace | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Chunk]:
        """Yield the batches of ``plan`` in chunks as ``pace`` wants them, until ``stop``.

        Without ``pace``, in the fewest chunks.
        """
        pace = pace or Pace(self.chunk_steps, first=self.chunk_steps)
        self.open(plan)
        done = 0
        while done < plan.steps and not stop():
            wanted, started = pace.steps(self.ends_at(plan, done) - done), time.perf_counter()
            count = self.engine.world.agree(wanted)
            yield self.take(count)
            pace.measured(count, time.perf_counter() - started)
            done += count

    def ends_at(self, plan: EpochPlan, step: int) -> int:
        """Return the step of ``plan`` before which a chunk from ``step`` on must end."""
        return plan.steps if self._fills else plan.steps_before_partial(step)

    def close(self) -> None:  # noqa: B027 - a feed may have nothing to close
        """Let go of threads."""

    def _pad(self, array: np.ndarray) -> np.ndarray:
        # Programs are compiled for one chunk length; the tail beyond `count` is never looked at.
        missing = self.chunk_steps - len(array)
        return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array

    def _mine(self, steps: slice) -> np.ndarray:
        """Return the examples of ``steps`` that this process, of many, has to read ``[k, b]``."""
        return self._plan.indices[steps][:, self.engine.part(self._plan.indices.shape[1])]

    def _placed(self, rows: Any) -> Any:
        """Copy examples as `_mine` names them to the devices."""
        return self.engine.place(rows, batch_axis=1, size=self._plan.indices.shape[1])

    def _empty_like(self, array: np.ndarray, size: int) -> np.ndarray:
        """Return an array for a whole chunk of batches of ``array``'s rows, ``[K, size, ...]``."""
        return np.empty((self.chunk_steps, size, *array.shape[1:]), array.dtype)

    def _chunk(self, batches: tuple[Any, Any, Any], steps: slice) -> Chunk:
        """Return ``batches`` of ``steps``, x, y and weights ``[K, B, ...]``, with augmented x."""
        x, y, weight = batches
        valid, mix = self._pad(self._plan.valid[steps]), None
        if self._augment is not None:
            draws = {name: self._pad(d[steps]) for name, d in self._plan.draws.items()}
            on_device = self.engine.place(draws, batch_axis=1)
            x, partner = self._augment(x, y if self._mixing else None, on_device)
            if self._mixing is not None:
                name, mixing = self._mixing
                share = mixing.share(draws[name], *self.split.image_shape[:2])
                mix = partner, self.engine.place(share, batch_axis=1)
        if not self._fills and self._plan.is_partial(steps):
            x, y, weight, mix = self.engine.first((x, y, weight, mix), int(valid[0]))
            valid = valid[:1]
        return Chunk(x, y, valid, steps.stop - steps.start, weight, mix)


def _augment(
    augment: dict[str, Augmentation],
    views: int,
    apart: bool,
    x: Any,
    y: Any,
    draws: dict[str, Any],
) -> tuple[Any, Any]:
    """Return the images of each view, and the labels that are mixed in.

    The batches of a chunk are augmented in one go, or ``apart``, so that examples stay on the
    device that has them; to the same bits, because augmentation counts in whole numbers.
    """

    def seen(view: int) -> Any:
        drawn = {name: draws[name_in_view(name, view)] for name in augment}
        if not apart:
            return augmented(augment, x, drawn)

        def one(batch: Any) -> Any:
            image, numbers = mapped(lambda array: array[None], batch)
            return augmented(augment, image, numbers)[0]

        return ops.vectorized_map(one, (x, drawn))

    return seen(0) if views == 1 else tuple(map(seen, range(views))), mapped(partners, y)


class ResidentFeed(Feed):
    """Keeps the whole split on the device, which gets only indices and draws (or is the host)."""

    name = "resident"

    def __init__(self, split: Split, engine: Engine, augment=(), **options: Any) -> None:
        super().__init__(split.read(), engine, augment, **options)
        if not engine.device.is_host:
            self._arrays = engine.place(self._arrays)
            self._gather = engine.program("gather", _gather)

    def open(self, plan, start=0):
        self._plan, self._at = plan, start

    def take(self, count):
        steps = slice(self._at, self._at + count)
        self._at += count
        indices = self._mine(steps)
        if self.engine.device.is_host:
            rows = mapped(lambda array: self._placed(self._rows(array, indices)), self._arrays)
        else:
            rows = self._gather(self._arrays, self._placed(self._pad(indices)))
        return self._chunk(rows, steps)

    def _rows(self, array: np.ndarray, indices: np.ndarray) -> np.ndarray:
        rows = self._empty_like(array, indices.shape[1])
        np.take(array, indices, axis=0, out=rows[: len(indices)], mode="clip")
        rows[len(indices) :] = 0
        return rows


def _gather(arrays: Any, indices: Any) -> Any:
    from keras import ops

    return mapped(lambda array: ops.take(array, indices, 0), arrays)


class StreamFeed(Feed):
    """Gathers on the host with tf.data, prefetching while the device computes.

    What is not in memory is read, decoded and resized there, in parallel and ahead; it is looked at
    as it comes, as arrays are before a training.
    """

    name = "stream"

    def __init__(self, split: Split, engine: Engine, augment=(), **options: Any) -> None:
        super().__init__(split, engine, augment, **options)
        from fmnist_keras3.runtime import import_tensorflow_for_data

        self._tf = import_tensorflow_for_data()
        self.close()

    def open(self, plan, start=0):
        self._groups, self._ready = iter(()), ()
        self._failed: list[Exception] = []
        self._plan, self._at = plan, start
        group, calls, ahead = GROUP_STEPS, self._tf.data.AUTOTUNE, self._tf.data.AUTOTUNE
        if not self.split.in_memory:
            size = self.split.nbytes // len(self.split) * self._mine(slice(1)).shape[1]
            group = max(1, min(GROUP_STEPS, GROUP_BYTES // size))
            # As much as a chunk is read while the one before is trained on.
            most, chunk = AHEAD_BYTES // (group * size), -(-self.chunk_steps // group)
            sources = [array.source for array in leaves(self._arrays) if isinstance(array, Rows)]
            calls = max(1, min(most, *map(threads_of, sources)))
            ahead = max(2, min(chunk, most - calls))
        firsts = range(start, plan.steps, group)
        self._rows = [self._mine(slice(at, at + group)) for at in firsts]
        with self._tf.device("CPU"):
            self._groups = self._dataset(calls, ahead).as_numpy_iterator()

    def _dataset(self, calls: int, ahead: int) -> Any:
        """Return what gives the rows of each group; made once, as TensorFlow takes 13 ms for it."""
        key = calls, ahead
        if key in self._datasets:
            return self._datasets[key]
        tf, arrays = self._tf, leaves(self._arrays)

        def gather(number):
            # NumPy's own indexing: the images need not be copied into a TensorFlow constant.
            def take(n):
                rows = self._rows
                if n >= len(rows):  # tf.data asks ahead
                    return [np.zeros(0, array.dtype) for array in arrays]
                try:
                    return read(arrays, rows[n])
                except Exception as error:
                    self._failed.append(error)  # TensorFlow makes another error of it
                    raise

            return tuple(tf.numpy_function(take, [number], [array.dtype for array in arrays]))

        numbers = tf.data.Dataset.range(2**62)
        groups = numbers.map(gather, num_parallel_calls=calls, deterministic=True)
        self._datasets[key] = groups.prefetch(ahead)
        return self._datasets[key]

    def take(self, count):
        steps = slice(self._at, self._at + count)
        self._at += count
        size = self._mine(steps).shape[1]
        rows = [self._empty_like(array, size) for array in leaves(self._arrays)]
        done = 0
        while done < count:
            if not self._ready or not len(self._ready[0]):
                self._ready = self._next_group()
            part = slice(done, done + min(count - done, len(self._ready[0])))
            used = part.stop - part.start
            for row, array in zip(rows, self._ready, strict=True):
                row[part] = array[:used]
            self._ready = tuple(array[used:] for array in self._ready)
            done = part.stop
        if not self.split.in_memory:
            seen = [row[:count].reshape(-1, *row.shape[2:]) for row in rows]
            name = f"streamed (from step {steps.start + 1} of the epoch on)"
            check_split(self.engine.model, Split(*packed(self._arrays, seen)), name)
        for row in rows:
            row[count:] = 0
        return self._chunk(packed(self._arrays, self._placed(rows)), steps)

    def _next_group(self) -> tuple[np.ndarray, ...]:
        try:
            return next(self._groups)
        except self._tf.errors.OpError:
            if self._failed:
                raise self._failed[0] from None
            raise

    def close(self):
        self._groups: Iterator[Any] = iter(())
        self._ready: tuple[Any, ...] = ()  # batches of a group that were not taken yet
        self._datasets: dict[tuple[int, ...], Any] = {}
