"""What the Trainer's arguments may be, and their checks."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.settings import SETTINGS, check_arguments

_TIME = re.compile(r"(?:(\d+):)?(\d+):(\d{1,2}):(\d{1,2})")

Amount = int | float


def check(trainer: Callable[..., Any], given: dict[str, Any]) -> None:
    """Check what is ``given`` to the class ``trainer``; raises UserError that says what may be."""
    check_arguments(trainer, given | {"precision": check_precision(given["precision"])})
    if given["max_epochs"] is not None and given["min_epochs"] > given["max_epochs"]:
        raise UserError(
            f"min_epochs is {given['min_epochs']}, more than max_epochs {given['max_epochs']}."
        )
    if given["on_nonfinite"] == "rollback" and not given["enable_checkpointing"]:
        raise UserError("on_nonfinite 'rollback' goes back to checkpoints: leave them enabled.")
    if given["barebones"] and (given["callbacks"] or given["logger"] or given["profiler"]):
        raise UserError("barebones goes without callbacks, loggers and profilers.")


def seconds(value: str | float | timedelta | dict[str, float]) -> float:
    """Return ``max_time`` in seconds.

    Takes seconds, a timedelta, its arguments ({"minutes": 10}), or "[DD:]HH:MM:SS". Raises
    UserError for anything else.
    """
    try:
        if isinstance(value, dict):
            value = timedelta(**value)
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if isinstance(value, str) and (match := _TIME.fullmatch(value)):
            days, hours, minutes, rest = (int(part or 0) for part in match.groups())
            value = ((days * 24 + hours) * 60 + minutes) * 60 + rest
        found = float(value)
        if not 0 < found < float("inf"):
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"max_time is {value!r}; it must be a time above 0. Type --max_time 00:10:00 (hours, "
            "minutes, seconds), or a number of seconds."
        ) from None
    return found


def devices(value: str | int | None) -> int | str | None:
    """Return how many devices are asked for, or "auto"; raises UserError for anything else."""
    if value in (None, "auto"):
        return value
    text = str(value)
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f"devices is {value!r}; it must be a number, at least 1, or auto for all there are. "
            "Type --devices 2"
        )
    return int(text)


def batches(value: Amount | None, total: int) -> int:
    """Return how many of ``total`` batches ``value`` means; a fraction is at least one."""
    if value is None:
        return total
    return min(total, value) if isinstance(value, int) else max(1, int(value * total))


def batches_in_epoch(examples: int, batch_size: int, last_batch: str) -> int:
    """Return how many batches of the training an epoch has, at least one."""
    return max(1, examples // batch_size) if last_batch == "drop" else -(-examples // batch_size)


def check_precision(value: str | int | None) -> str | None:
    """Return the precision's name; raises UserError where there is none."""
    if value is None:
        return None
    name = {"32-true": "32", "bf16": "bf16-mixed", "16": "16-mixed"}.get(str(value), str(value))
    SETTINGS["precision"].in_python("Trainer").check(name)
    return name
