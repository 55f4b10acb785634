"""What the core uses of the leaves: by name, so that it imports none of them.

The core (plan, engines, loop, session, checkpoints) runs without any of these. A leaf that takes
another's place is one line here.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

LEAVES = {
    "progress bar": "callbacks.progress:RichProgressBar",
    "model summary": "callbacks.model_summary:ModelSummary",
    "checkpoints": "callbacks.model_checkpoint:ModelCheckpoint",
    "summary": "callbacks.summary:Summary",
    "timer": "callbacks.timer:Timer",
    "trace": "callbacks.trace:Trace",
    "Keras' callbacks": "callbacks.keras_callback:as_callbacks",
    "loggers": "loggers:make_loggers",
    "test results": "evaluation.results:write_test",
    "report": "evaluation.report:build",
    "settings": "config:TrainConfig",
    "plots": "evaluation.plots",
}


def named(place: str) -> Any:
    """Return what lies at ``place`` ("callbacks.timer:Timer") in this package, imported now."""
    return resolve_name(f"fmnist_keras3.{place}")


def leaf(name: str) -> Any:
    """Return the class, function or module that `LEAVES` has under ``name``."""
    return named(LEAVES[name])
