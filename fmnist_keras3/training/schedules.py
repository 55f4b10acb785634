"""Learning-rate schedules as functions of the step, computed on the host.

The compiled step takes the rate as an argument: another schedule or rate is no new program, and
every backend gets the same float32 numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fmnist_keras3.ground.errors import UserError, nearest

Schedule = Callable[[np.ndarray], np.ndarray]


def _constant(t: np.ndarray) -> np.ndarray:
    return np.ones_like(t)


def _cosine(t: np.ndarray) -> np.ndarray:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter 2016, SGDR, without restarts)."""
    return 0.5 * (1 + np.cos(np.pi * t))


def _linear(t: np.ndarray) -> np.ndarray:
    return 1 - t


def _step(t: np.ndarray) -> np.ndarray:
    """A tenth at half of the training, a hundredth at three quarters (He et al. 2015)."""
    return np.where(t < 0.5, 1.0, np.where(t < 0.75, 0.1, 0.01))


def _wsd(t: np.ndarray) -> np.ndarray:
    """Stable, then linear to zero over the last fifth (Hu et al. 2024, MiniCPM)."""
    return np.minimum(1.0, (1 - t) / 0.2)


def _one_cycle(t: np.ndarray) -> np.ndarray:
    """Half a cosine to 4e-6, after a rise over 30 % (Smith & Topin 2017, shares of PyTorch's)."""
    return 4e-6 + (1 - 4e-6) * _cosine(t)


def _triangular(t: np.ndarray) -> np.ndarray:
    """Back to zero in a line, after a rise over the first half (Smith 2015)."""
    return 1 - t


SCHEDULES = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "one_cycle": _one_cycle,
    "step": _step,
    "triangular": _triangular,
    "wsd": _wsd,
}
RISING = {"one_cycle": 0.3, "triangular": 0.5}  # the share of the training, without a warm-up


def check_schedule(name: str) -> None:
    """Raise UserError, with the nearest name, where there is no such schedule."""
    if name not in SCHEDULES:
        raise UserError(
            f"There is no schedule {name!r}.{nearest(name, SCHEDULES)} "
            f"Schedules: {', '.join(SCHEDULES)}."
        )


def make_schedule(name: str, peak: float, total: int, warmup: int = 0) -> Schedule:
    """Return a function from steps (int array, 0-based) to learning rates (float32 array).

    Rises linearly to ``peak`` over ``warmup`` steps (0: the schedule's own share, see `RISING`),
    then follows ``name`` down until step ``total``. Raises UserError for an unknown name.
    """
    check_schedule(name)
    warmup = warmup or round(RISING.get(name, 0) * total)

    def schedule(steps: np.ndarray) -> np.ndarray:
        steps = np.asarray(steps, np.float64)
        after = np.clip((steps - warmup) / max(1, total - warmup), 0.0, 1.0)
        rise = np.minimum(1.0, (steps + 1) / (warmup + 1))
        return (peak * np.where(steps < warmup, rise, SCHEDULES[name](after))).astype(np.float32)

    return schedule
