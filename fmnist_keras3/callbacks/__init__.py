"""Callbacks: one file each, with Lightning's hook names."""

from __future__ import annotations

from collections.abc import Callable

from fmnist_keras3.callbacks.averaging import (
    EMAWeightAveraging,
    Lookahead,
    StochasticWeightAveraging,
    WeightAveraging,
)
from fmnist_keras3.callbacks.backbone_finetuning import BackboneFinetuning
from fmnist_keras3.callbacks.device_stats_monitor import DeviceStatsMonitor
from fmnist_keras3.callbacks.early_stopping import EarlyStopping
from fmnist_keras3.callbacks.gradient_norm import GradientNorm
from fmnist_keras3.callbacks.learning_rate_monitor import LearningRateMonitor
from fmnist_keras3.callbacks.model_checkpoint import ModelCheckpoint
from fmnist_keras3.callbacks.model_summary import ModelSummary
from fmnist_keras3.callbacks.optuna_pruning import OptunaPruning
from fmnist_keras3.callbacks.progress import RichProgressBar
from fmnist_keras3.callbacks.summary import Summary
from fmnist_keras3.callbacks.throughput_monitor import ThroughputMonitor
from fmnist_keras3.callbacks.timer import Timer
from fmnist_keras3.callbacks.trace import Trace
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.training.callback import Callback

MONITORS = {  # of --monitor
    "lr": "callbacks.learning_rate_monitor:LearningRateMonitor",
    "gradients": "callbacks.gradient_norm:GradientNorm",
    "throughput": "callbacks.throughput_monitor:ThroughputMonitor",
    "device": "callbacks.device_stats_monitor:DeviceStatsMonitor",
}

__all__ = [
    "MONITORS",
    "BackboneFinetuning",
    "Callback",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "GradientNorm",
    "LearningRateMonitor",
    "Lookahead",
    "ModelCheckpoint",
    "ModelSummary",
    "OptunaPruning",
    "RichProgressBar",
    "StochasticWeightAveraging",
    "Summary",
    "ThroughputMonitor",
    "Timer",
    "Trace",
    "WeightAveraging",
]


def monitors(text: str | None) -> list[Callable[[], Callback]]:
    """Return the classes in ``text``, names in `MONITORS`; raises UserError for another name."""
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in MONITORS:
            raise UserError(
                f"monitor has {name!r}.{nearest(name, MONITORS)} It must be one or a list of "
                f"{', '.join(MONITORS)}. Type --monitor lr,device"
            )
    return [named(MONITORS[name]) for name in dict.fromkeys(names)]
