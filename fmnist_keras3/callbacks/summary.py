"""Keeps ``summary.json`` up to date."""

from __future__ import annotations

import math
import statistics
import time

from fmnist_keras3 import runtime
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.view import SessionView


class Summary(Callback):
    """Write speed, times and the latest validation into the run's summary at each epoch's end."""

    section, order = "logging", -1

    def setup(self, fit):
        self._started, self._before = time.perf_counter(), 0.0
        self._seconds: list[float] = []  # of each epoch
        self._rates: list[float] = []
        self._validation: dict[str, float | None] = {}  # of the latest epoch that has one

    def on_chunk_end(self, fit):
        if "time_to_first_step" not in fit.run.summary:
            fit.run.summary["time_to_first_step"] = round(runtime.process_seconds(), 2)

    def on_train_epoch_end(self, fit):
        record = fit.records["train"]
        self._seconds.append(round(record["seconds"], 4))
        self._rates.append(round(record["images_per_second"], 1))
        averages = [n for n in ("averaged_loss", "averaged_accuracy") if f"val_{n}" in fit.logs]
        for name in ("loss", "accuracy", *averages):
            value = fit.logs.get(f"val_{name}", math.nan)
            self._validation[f"validation_{name}"] = value if math.isfinite(value) else None
        self._write(fit)

    def on_fit_end(self, fit):
        self._write(fit)

    def _write(self, fit: SessionView) -> None:
        rate = round(statistics.median(self._rates), 1) if self._rates else None
        devices = fit.engine.device.count
        each = round(rate / devices, 1) if rate is not None and devices > 1 else None
        if each is None:
            fit.run.summary.pop("images_per_second_per_device", None)  # of a run on more devices
        fit.run.update(
            epochs=fit.position.epoch,
            steps=fit.position.step,
            **self._validation,
            epoch_seconds=self._seconds,
            epoch_images_per_second=self._rates,
            images_per_second=rate,
            **({"images_per_second_per_device": each} if each else {}),
            total_seconds=self._total(),
            peak_memory_mb=fit.engine.peak_memory_mb() or runtime.peak_memory_mb(),
        )

    def _total(self) -> float:
        return round(self._before + time.perf_counter() - self._started, 2)

    def state_dict(self):
        return {
            "seconds": self._seconds,
            "rates": self._rates,
            "validation": self._validation,
            "total": self._total(),
        }

    def load_state_dict(self, state):
        self._seconds, self._rates = list(state["seconds"]), list(state["rates"])
        self._validation = dict(state["validation"])
        self._started, self._before = time.perf_counter(), state["total"]
