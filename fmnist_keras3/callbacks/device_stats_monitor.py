"""Records memory and load while training goes."""

from __future__ import annotations

import time
from typing import Any

import psutil

from fmnist_keras3 import runtime
from fmnist_keras3.callbacks.throughput_monitor import every_n_steps
from fmnist_keras3.training.callback import Callback


class DeviceStatsMonitor(Callback):
    """Log records of event "device_stats": memory in MB (10^6 bytes), load in per cent.

    ``peak_memory_mb`` is the process's highest, ``memory_mb`` what it has now,
    ``device_peak_memory_mb`` the device's highest, where it has memory of its own.
    ``cpu_percent`` is this process's share of its cores since the record before (100: all of them
    busy), ``memory_percent`` the share of the machine's memory that is taken. ``cpu_stats`` adds
    these two; None: where the CPU is the device. A record comes with the first chunk that ends
    ``log_every_n_steps`` steps after the one before, and with each epoch's end.

    Example: ``Trainer(callbacks=[DeviceStatsMonitor(cpu_stats=True)])``
    """

    section = "logging"

    def __init__(self, cpu_stats: bool | None = None) -> None:
        self.cpu_stats = cpu_stats

    def setup(self, fit):
        self._cpu = fit.engine.device.is_host if self.cpu_stats is None else self.cpu_stats
        self._cores: Any = runtime.hardware()["cores"] or 1
        self._logged = 0  # the step of the latest record

    def on_fit_start(self, fit):
        self._busy, self._clock = time.process_time(), time.perf_counter()

    def on_chunk_end(self, fit):
        if not every_n_steps(fit, self._logged):
            return
        self._logged = fit.position.step
        now = round(psutil.Process().memory_info().rss / 1e6, 1)
        values = {"memory_mb": now, "peak_memory_mb": max(runtime.peak_memory_mb(), now)}
        if (device := fit.engine.peak_memory_mb()) is not None:
            values["device_peak_memory_mb"] = device
        if self._cpu:
            values["cpu_percent"] = self._load()
            values["memory_percent"] = psutil.virtual_memory().percent
        fit.log("device_stats", fit.position.epoch + 1, self._logged, values)

    def _load(self) -> float:
        busy, clock = time.process_time(), time.perf_counter()
        share = (busy - self._busy) / max(clock - self._clock, 1e-9)
        self._busy, self._clock = busy, clock
        return round(100 * share / self._cores, 1)
