"""What goes into an engine's programs and what comes out, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fmnist_keras3.ground.errors import UserError


@dataclass(frozen=True)
class Device:
    """What the programs run on.

    ``kind`` is "cpu" or "gpu", ``name`` what a person calls it, ``compiler`` "xla", or "eager"
    where the backend runs its own kernels one by one. ``count``: how many share each batch.
    """

    kind: str
    name: str
    compiler: str = "xla"
    count: int = 1

    def check_batch(self, size: int) -> None:
        """Raise UserError unless the devices can share batches of ``size`` equally."""
        if size % self.count:
            below = size // self.count * self.count
            nearest = max(below + round((size - below) / self.count) * self.count, self.count)
            share = max(n for n in range(1, self.count) if size % n == 0)
            raise UserError(
                f"batch_size is {size}, which {self.count} devices cannot share equally. Type "
                f"--batch_size {nearest}, or --devices {share}."
            )

    @property
    def is_host(self) -> bool:
        """Whether its memory is the host's."""
        return self.kind == "cpu"


class Batch(NamedTuple):
    """A batch, or those of a chunk, as `Chunk` has them, and what their steps take.

    The fields after ``mix`` are those of a `StepPlan`.
    """

    x: Any
    y: Any
    weight: Any
    valid: Any
    mix: Any = None
    rate: Any = None
    number: Any = None
    share: Any = None
    pull: Any = None
    accumulated: Any = None


@dataclass(frozen=True)
class Chunk:
    """Batches on the device: ``x [K, B, ...]``, ``y [K, B, ...]``; on the host ``valid [K]``.

    The first ``count`` batches are to be used, and of batch ``i`` the first ``valid[i]`` examples.
    ``weight [K, B]`` are sample weights, or None. ``x``, ``y`` and ``weight`` may be structures of
    such arrays; without ``y`` there are outputs, but no losses. ``mix``, of batches whose images
    are mixed: the labels of the other image of each, like ``y``, and the share of the own one,
    float32 ``[K, B]``.
    """

    x: Any
    y: Any
    valid: np.ndarray
    count: int
    weight: Any = None
    mix: tuple[Any, Any] | None = None

    def batches(self, plan: StepPlan | None = None) -> Batch:
        """Return the arrays of all batches, with what ``plan`` gives to the steps."""
        arrays = (self.x, self.y, self.weight, self.valid, self.mix)
        if plan is None:
            return Batch(*arrays)
        return Batch(*arrays, plan.rates, plan.numbers, plan.shares, plan.pulls, plan.accumulated)


@dataclass(frozen=True)
class StepPlan:
    """What the steps of a chunk take, arrays ``[K]``, float32; the device waits for none of it.

    ``rates`` are learning rates, and ``numbers`` (int32) those of the steps, from 0. ``shares``, in
    0..1, are those of the new weights in their averages (None: the averages stay), ``pulls`` those
    of the averages in the weights after that.
    ``accumulated`` says after which steps the optimizer makes an update: over how many batches it
    takes the mean of the gradients, 0 where it waits for more. None: after each, over one.
    """

    rates: np.ndarray
    numbers: np.ndarray | None = None
    shares: np.ndarray | None = None
    pulls: np.ndarray | None = None
    accumulated: np.ndarray | None = None


@dataclass(frozen=True)
class StepLogs:
    """Per step of a chunk, float32 ``[count]``: loss without penalty, and the penalty.

    ``finite``: after the last step, all weights and values of the optimizer are.
    ``gradient_norms``: ``[count, V]``, the L2 norm of the gradient of each trainable variable,
    before clipping; None unless the engine was asked for it. ``logged``: what a `Module` logs of
    single steps, by name.
    """

    loss: np.ndarray
    penalty: np.ndarray
    finite: bool
    gradient_norms: np.ndarray | None = None
    logged: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Any, count: int, finite: Any, names: Sequence[str] = ()) -> StepLogs:
        """Make it of what the programs return, ``values [K, 2 + names + V]``."""
        loss, penalty, *more = np.asarray(values)[:count].T
        norms = more[len(names) :]
        logged = dict(zip(names, more, strict=False))
        return cls(loss, penalty, bool(finite), np.stack(norms, 1) if norms else None, logged)

    def first_bad(self) -> int | None:
        """Return the first step, from 0, whose loss or (seen after the last) update is not."""
        bad = np.flatnonzero(~np.isfinite(self.loss))
        if len(bad):
            return int(bad[0])
        return None if self.finite else len(self.loss) - 1
