"""Loggers: each takes records, dicts of plain numbers with the keys event, epoch and step."""

from __future__ import annotations

from fmnist_keras3.errors import UserError, nearest
from fmnist_keras3.training.loggers.csv import CSVLogger
from fmnist_keras3.training.loggers.jsonl import JSONLLogger

LOGGERS = {"csv": CSVLogger}

__all__ = ["LOGGERS", "CSVLogger", "JSONLLogger", "check_logger"]


def check_logger(name: str) -> str:
    """Return ``name`` if there is such a logger; raises UserError otherwise."""
    if name not in LOGGERS:
        raise UserError(
            f"There is no logger {name!r}.{nearest(name, LOGGERS)} Loggers: {', '.join(LOGGERS)} "
            "(metrics.jsonl is always written)."
        )
    return name
