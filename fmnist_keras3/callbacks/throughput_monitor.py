"""Records how fast training goes."""

from __future__ import annotations

from collections import deque

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.lightning import explained
from fmnist_keras3.models import macs
from fmnist_keras3.training.callback import Callback
from fmnist_keras3.training.view import SessionView

FLOPS = 6  # of a step for each multiply-accumulate: two forward, twice as many backward


class ThroughputMonitor(Callback):
    """Log records of event "throughput": images, batches and FLOPs a second, of training alone.

    Averaged over the last ``window_size`` batches, or the last chunk of steps where that is longer;
    compilation, validation and checkpoints are not counted. A record comes with the first chunk
    that ends ``log_every_n_steps`` steps after the one before, and with each epoch's end.
    ``flops_per_second`` is there where the model's multiply-accumulates are known (see
    `fmnist_keras3.models.macs`); ``mfu`` is its share of ``available_flops``, what the device could
    do a second. Raises UserError for values that are not above 0.

    Example: ``Trainer(callbacks=[ThroughputMonitor(available_flops=989e12)])  # H100, bf16``
    """

    section = "logging"

    @explained
    def __init__(self, window_size: int = 100, available_flops: float | None = None) -> None:
        for name, value in (("window_size", window_size), ("available_flops", available_flops)):
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}; it must be more than 0.")
        self.window_size, self.available_flops = window_size, available_flops

    def setup(self, fit):
        self._flops = FLOPS * macs(fit.model)
        self._chunks: deque[tuple[float, ...]] = deque()  # batches, images, seconds of each
        self._logged = 0  # the step of the latest record

    def on_train_epoch_start(self, fit):
        self._seen = _totals(fit)

    def on_chunk_end(self, fit):
        seen, self._seen = self._seen, _totals(fit)
        self._chunks.append(tuple(now - then for now, then in zip(self._seen, seen, strict=True)))
        while sum(b for b, *_ in self._chunks) - self._chunks[0][0] >= self.window_size:
            self._chunks.popleft()
        if every_n_steps(fit, self._logged):
            self._logged = fit.position.step
            fit.log("throughput", fit.position.epoch + 1, self._logged, self._values())

    def _values(self) -> dict[str, float]:
        batches, images, seconds = (sum(column) for column in zip(*self._chunks, strict=True))
        seconds = max(seconds, 1e-9)
        values = {"images_per_second": images / seconds, "batches_per_second": batches / seconds}
        if self._flops:
            values["flops_per_second"] = images * self._flops / seconds
            if self.available_flops:
                values["mfu"] = values["flops_per_second"] / self.available_flops
        return values


def _totals(fit: SessionView) -> tuple[float, ...]:
    """Return batches, images and seconds of training of this epoch so far."""
    position = fit.position
    return position.step_in_epoch, position.examples, position.seconds


def every_n_steps(fit, logged: int) -> bool:
    """Tell whether a record is due `log_every_n_steps` after that of step ``logged``, or now.

    For callbacks that come at the ends of chunks. Each epoch's end is due.
    """
    position, every = fit.position, fit.log_every_n_steps
    at_end = position.step_in_epoch == fit.steps_in_epoch
    return at_end or bool(every and position.step - logged >= every)
