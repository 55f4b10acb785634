"""What a Trainer tells of the fit that is under way, or of the last one, in Lightning's words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from fmnist_keras3.training.fit import Fit


class Latest(NamedTuple):
    """What is remembered of a fit: the latest values and records, and how far it came."""

    logs: dict[str, float]
    records: dict[str, dict[str, Any]]
    epoch: int
    step: int


class Progress:
    """The properties of a Trainer that tell how far it came."""

    def __init__(self) -> None:
        self._fit: Fit | None = None  # the one that is under way
        self._kept = Latest({}, {}, 0, 0)

    @contextlib.contextmanager
    def _watched(self, fit: Fit) -> Iterator[None]:
        """Tell of ``fit`` from now on; of what it came to, when it is over."""
        self._fit = fit
        try:
            yield
        finally:
            self._remember(fit)
            self._fit = None

    @property
    def callback_metrics(self) -> dict[str, float]:
        """The latest values, by the names that ``monitor`` takes: loss, val_loss, lr, ..."""
        return dict(self._latest.logs)

    @property
    def logged_metrics(self) -> dict[str, float]:
        """The numbers of the latest record of steps, or else of an epoch."""
        records = self._latest.records
        record = records.get("step") or records.get("train") or {}
        return {k: v for k, v in record.items() if isinstance(v, float)}

    @property
    def current_epoch(self) -> int:
        """How many epochs of the fit that is under way, or of the last, were completed."""
        return self._latest.epoch

    @property
    def global_step(self) -> int:
        """How many steps of the fit that is under way, or of the last, were taken."""
        return self._latest.step

    @property
    def _latest(self) -> Latest:
        if self._fit is not None:
            self._remember(self._fit)
        return self._kept

    def _remember(self, fit: Fit) -> None:
        self._kept = Latest(fit.logs, fit.records, fit.position.epoch, fit.position.step)
