"""What a training's curves say, in sentences made from their numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fmnist_keras3.evaluation.curves import panels

LEVEL = 0.002  # of accuracy: less than this is no progress
RISE = 0.02  # of the lowest validation loss: less than this is no rise
DEGREES = ((0.1, "mild"), (0.5, "clear"), (math.inf, "strong"))
FEWEST = 3  # epochs that make a curve


def findings(records: Sequence[Mapping[str, Any]], validation_images: Any = None) -> list[str]:
    """Return sentences on the best epoch, the plateau, and over-fitting.

    ``records``: the objects of ``metrics.jsonl``; ``validation_images``: how many there were, for
    the uncertainty. Nothing is said of what was not recorded.
    """
    sources = {at: (records, at, "") for at in ("train", "validation")}
    curves = {
        (key, at): {epoch: value for epoch, value in points.items() if math.isfinite(value)}
        for key, lines in panels(sources).items()
        for at, points in lines.items()
    }
    accuracy, loss = (curves.get((key, "validation"), {}) for key in ("accuracy", "loss"))
    if not accuracy and not loss:
        return []
    if len(accuracy or loss) < FEWEST:
        return [f"{len(accuracy or loss)} validated epochs are too few to read a curve."]
    said = _best(accuracy, validation_images) if accuracy else []
    if loss:
        said += _overfitting(loss, curves.get(("loss", "train"), {}))
    if accuracy and (training := curves.get(("accuracy", "train"))):
        said += _gap(training, accuracy)
    return said


def _best(accuracy: Mapping[int, float], images: Any) -> list[str]:
    best, last = max(accuracy, key=accuracy.__getitem__), max(accuracy)
    top = accuracy[best]
    said = [f"The best validation accuracy, {_percent(top)}, came in epoch {best} of {last}."]
    level = min(e for e in accuracy if top - max(_until(accuracy, e)) <= LEVEL)
    late = [e for e in accuracy if e > 0.75 * last]
    gain = top - max(_until(accuracy, min(late) - 1), default=top)
    if level <= 0.75 * last:
        added = top - max(_until(accuracy, level))
        after = "epoch" if last - level == 1 else f"{last - level} epochs"
        adds = "adds" if last - level == 1 else "add"
        said.append(
            f"It levels off in epoch {level}: the {after} after it {adds} {_points(added)}."
        )
    elif gain > LEVEL:
        late_ones = "epoch" if len(late) == 1 else f"{len(late)} epochs"
        said.append(
            f"It has not levelled off: the last {late_ones} still added {_points(gain)}. "
            "More epochs may help."
        )
    if isinstance(images, int) and images > 0:
        unsure = 1.96 * math.sqrt(top * (1 - top) / images)
        said.append(
            f"With {images:,} validation images such a figure is uncertain by about "
            f"{_points(unsure)} either way (95 %)."
        )
    return said


def _overfitting(loss: Mapping[int, float], training: Mapping[int, float]) -> list[str]:
    lowest, last = min(loss, key=loss.__getitem__), max(loss)
    rise = loss[last] / loss[lowest] - 1 if loss[lowest] > 0 else 0
    if rise <= RISE:
        end = "ends at its lowest" if lowest == last else "ends within 2 % of its lowest"
        return [f"No over-fitting can be seen: the validation loss {end}, {loss[lowest]:.4f}."]
    degree = next(name for most, name in DEGREES if rise < most)
    moved = (
        f"the validation loss is lowest in epoch {lowest} ({loss[lowest]:.4f}) and "
        f"{100 * rise:.0f} % higher at the end ({loss[last]:.4f})"
    )
    if not training.get(last, math.inf) < training.get(lowest, -math.inf):
        return [f"{moved[0].upper()}{moved[1:]}; the training loss has not fallen meanwhile."]
    return [
        f"Over-fitting, {degree}: {moved}, while the training loss fell from "
        f"{training[lowest]:.4f} to {training[last]:.4f}. Early stopping, more augmentation, "
        "dropout or L2 work against it."
    ]


def _gap(training: Mapping[int, float], accuracy: Mapping[int, float]) -> list[str]:
    last = max(training.keys() & accuracy.keys(), default=None)
    if last is None:
        return []
    gap = training[last] - accuracy[last]
    if gap > 5 * LEVEL:
        return [
            f"At the end the training accuracy, {_percent(training[last])}, is {_points(gap)} "
            "above the validation accuracy."
        ]
    if gap < -LEVEL:
        return [
            f"At the end the training accuracy, {_percent(training[last])}, is {_points(-gap)} "
            "below the validation accuracy: it is measured while the weights still move, and with "
            "dropout and augmentation where there are any."
        ]
    return ["At the end training and validation accuracy are about equal."]


def _until(values: Mapping[int, float], epoch: int) -> list[float]:
    return [value for e, value in values.items() if e <= epoch]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _points(share: float) -> str:
    return f"{100 * share:.2f} points"
