"""Test-time augmentation: the mean of a model's outputs over several views of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmnist_keras3.data.dataset import Split
from fmnist_keras3.data.source import Rows
from fmnist_keras3.ground.errors import UserError, nearest

VIEWS = ("mirror", "shift")
LARGEST_SHIFT = 8


@dataclass(frozen=True)
class TTA:
    """The views of airbench (Jordan 2024, 94% on CIFAR-10 in 3.29 Seconds).

    ``mirror`` adds the image mirrored left to right. ``shift`` adds it moved by so many pixels up
    and left, and down and right, with black in their place; both together weigh as much as the one
    that is not moved.
    """

    mirror: bool = False
    shift: int = 0

    def views(self, x: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """Give views of the images ``x [N, H, W, C]`` with their shares; the first is ``x``."""
        moved = [(0.5, 0), (0.25, -self.shift), (0.25, self.shift)] if self.shift else [(1.0, 0)]
        for share, pixels in moved:
            view = _shifted(x, pixels)
            if not self.mirror:
                yield share, view
                continue
            yield share / 2, view
            yield share / 2, np.ascontiguousarray(view[:, :, ::-1])

    def mean(
        self, x: np.ndarray, outputs: np.ndarray, outputs_of: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Return the mean over the views of ``x``, in the shape and dtype of ``outputs``.

        ``outputs``: those of ``x`` itself; ``outputs_of`` makes those of the other views. Of
        logits it is the mean of the logits, as in airbench. Raises UserError for anything but
        images and one row of outputs for each.
        """
        if isinstance(x, Rows):
            raise UserError(
                f"tta needs the images in memory; these, {x.nbytes / 2**30:.1f} GB, are read as "
                "they are needed. Leave tta out."
            )
        rows = isinstance(outputs, np.ndarray) and outputs.ndim == 2
        if not (rows and isinstance(x, np.ndarray) and x.ndim == 4):
            raise UserError(
                "tta is for images [N, H, W, C] and models that return one row of logits for each. "
                "Leave tta out."
            )
        views = self.views(x)
        share, _ = next(views)
        total = share * outputs.astype(np.float64)
        for share, view in views:
            total += share * outputs_of(view)
        return total.astype(outputs.dtype)


def parse_tta(text: str | None) -> TTA | None:
    """Read ``"mirror,shift:1"``, or None for None and "none"; raises UserError."""
    parts = [part.strip() for part in (text or "none").split(",")]
    if parts == ["none"]:
        return None
    chosen: dict[str, int] = {}
    for part in parts:
        name, _, value = part.partition(":")
        if name not in VIEWS:
            raise UserError(
                f"tta has {name!r}.{nearest(name, VIEWS)} It must be none, or a list of mirror and "
                "shift[:PIXELS]. Type --tta mirror,shift:1"
            )
        if name in chosen:
            raise UserError(f"tta names {name!r} twice: {text!r}.")
        most = {"mirror": 0, "shift": LARGEST_SHIFT}[name]
        if value and not (value.isdecimal() and 1 <= int(value) <= most):
            allowed = f"1 to {most} whole pixels" if most else "no value"
            raise UserError(f"tta has {part!r}; {name} takes {allowed}. Type --tta mirror,shift:1")
        chosen[name] = int(value or 1)
    return TTA(mirror="mirror" in chosen, shift=chosen.get("shift", 0))


def scores(model: Any, split: Split, outputs: np.ndarray) -> dict[str, float]:
    """Return "loss_tta" and "accuracy_tta" of the mean ``outputs [N, K]`` for ``split``.

    The loss is the model's, without penalty. Raises UserError where the labels are no classes, or
    the loss is not a mean over the examples.
    """
    from keras import ops

    from fmnist_keras3.engines.filling import loss_obstacles

    classes = isinstance(split.y, np.ndarray) and split.y.ndim == 1 and split.y.dtype.kind in "iu"
    if not classes or any(loss_obstacles(model)):
        raise UserError(
            "The scores of tta are for labels that are classes [N], and a loss that is the mean "
            "over the examples. Leave tta out, or use predict(..., tta=...)."
        )
    y, rows = ops.convert_to_tensor(split.y), ops.convert_to_tensor(outputs)
    total = model.compute_loss(None, y, rows, split.weight, training=False)
    loss = float(ops.convert_to_numpy(total - sum(model.losses, ops.zeros(()))))
    return {"loss_tta": loss, "accuracy_tta": float(np.mean(outputs.argmax(1) == split.y))}


def _shifted(x: np.ndarray, pixels: int) -> np.ndarray:
    """Return ``x [N, H, W, C]`` moved down and right by ``pixels``, which may be negative."""
    if not pixels:
        return x
    moved, (height, width) = np.zeros_like(x), x.shape[1:3]
    to, of = max(pixels, 0), max(-pixels, 0)
    rows, columns = height - abs(pixels), width - abs(pixels)
    if rows > 0 and columns > 0:
        moved[:, to : to + rows, to : to + columns] = x[:, of : of + rows, of : of + columns]
    return moved
