"""Records what the backend's own profiler sees: `fmnist train --profile trace`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from fmnist_keras3.training.callback import Callback


class Trace(Callback):
    """Trace one chunk of steps, the second of the fit, into the run directory's ``profile``.

    The first chunk is a single step. On JAX there is a file for https://ui.perfetto.dev beside the
    one for XProf and TensorBoard. ``folder`` is None until something was traced.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._running = ExitStack()

    def on_chunk_end(self, fit):
        if self.folder is None:
            self.folder = fit.run.path / "profile"
            self._running.enter_context(fit.engine.trace(self.folder))
        else:
            self._running.close()

    def on_fit_end(self, fit):
        self._running.close()

    def on_exception(self, fit, exception):
        self._running.close()
