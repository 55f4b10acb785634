"""What the Trainer's arguments may be, and their checks."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.training.schedules import make_schedule

# Lightning's names, and Keras' policies for them.
PRECISIONS = {"32": "float32", "bf16-mixed": "mixed_bfloat16", "16-mixed": "mixed_float16"}
PROFILERS = ("simple", "trace")
LAST_BATCH = ("keep", "fill", "drop")  # what becomes of an epoch's last batch, if it is short
_TIME = re.compile(r"(?:(\d+):)?(\d+):(\d{1,2}):(\d{1,2})")

Amount = int | float


_LEAST = {
    "max_epochs": 1,
    "min_epochs": 0,
    "max_steps": 1,
    "accumulate_grad_batches": 1,
    "num_sanity_val_steps": -1,
    "check_val_every_n_epoch": 1,
    "fast_dev_run": 0,
    "log_every_n_steps": 0,
    "warmup": 0,
    "seed": 0,
}
_AMOUNTS = {  # and how many batches at least
    "limit_train_batches": 1,
    "limit_val_batches": 0,
    "limit_test_batches": 0,
    "overfit_batches": 0,
    "val_check_interval": 1,
}
_CHOICES = {
    "gradient_clip_algorithm": ("norm", "value"),
    "last_batch": LAST_BATCH,
    "pipeline": ("auto", "resident", "stream"),
    "deterministic": (None, True, False, "warn"),
    "on_nonfinite": ("stop", "rollback"),
    "profiler": (None, *PROFILERS),
}


def check(given: dict[str, Any]) -> None:
    """Check the arguments of a Trainer, by name; raises UserError that says what is allowed."""
    for name, least in _LEAST.items():
        if given[name] is not None and not given[name] >= least:
            raise UserError(f"{name} is {given[name]}; it must be at least {least}.")
    for name, least in _AMOUNTS.items():
        check_amount(name, given[name], least)
    for name, allowed in _CHOICES.items():
        if given[name] not in allowed:
            raise UserError(
                f"{name} is {given[name]!r}.{nearest(str(given[name]), map(str, allowed))} "
                f"It must be one of {', '.join(map(str, allowed))}."
            )
    if given["max_epochs"] is not None and given["min_epochs"] > given["max_epochs"]:
        raise UserError(
            f"min_epochs is {given['min_epochs']}, more than max_epochs {given['max_epochs']}."
        )
    clip, smoothing = given["gradient_clip_val"], given["label_smoothing"]
    if clip is not None and not clip > 0:
        raise UserError(f"gradient_clip_val is {clip}; it must be more than 0.")
    if not 0 <= smoothing < 1:
        raise UserError(f"label_smoothing is {smoothing}; it must be in 0..1, below 1.")
    if given["on_nonfinite"] == "rollback" and not given["enable_checkpointing"]:
        raise UserError("on_nonfinite 'rollback' goes back to checkpoints: leave them enabled.")
    if given["schedule"] is not None:
        make_schedule(given["schedule"], 1.0, 1)
    if given["max_time"] is not None:
        seconds(given["max_time"])
    check_precision(given["precision"])
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


def check_amount(name: str, value: Amount | None, least: int = 1) -> None:
    """Raise UserError unless ``value`` is a number of batches, a fraction in 0..1, or None."""
    if value is None or value == least == 0 or (isinstance(value, int) and value >= least):
        return
    if isinstance(value, float) and 0 < value <= 1:
        return
    raise UserError(
        f"{name} is {value!r}; it must be a number of batches (at least {least}) or a fraction "
        "above 0, at most 1.0. Type 10 for ten batches, 0.1 for a tenth."
    )


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
    name = {"32-true": "32", "bf16": "bf16-mixed", "16": "16-mixed"}.get(str(value), str(value))
    if value is not None and name not in PRECISIONS:
        raise UserError(
            f"precision is {value!r}.{nearest(name, PRECISIONS)} It must be one of "
            f"{', '.join(PRECISIONS)}."
        )
    return None if value is None else name
