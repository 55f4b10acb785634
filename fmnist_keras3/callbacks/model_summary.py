"""Prints the model's layers before training: shapes, parameters, multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.models import macs, output_shape
from fmnist_keras3.training.callback import Callback


class ModelSummary(Callback):
    """Print a table of the layers to ``console`` (a `rich.console.Console`; stdout by default).

    ``max_depth`` counts the levels of layers inside layers: 1 the model's own, 0 none (no table),
    -1 all. What is not known, such as the shapes inside some subclassed models, is left blank.
    The Trainer adds one by itself (``enable_model_summary``) on a terminal and in a notebook; one
    that is given prints anywhere. Raises UserError for another depth.

    Example: ``Trainer(callbacks=[ModelSummary(max_depth=-1)])``
    """

    role, order = "model summary", -3

    def __init__(self, max_depth: int = 1, *, console: Any = None) -> None:
        if max_depth < -1:
            raise UserError(f"max_depth is {max_depth}; it must be at least -1 (all levels).")
        self.max_depth, self._console = max_depth, console

    def on_fit_start(self, fit):
        if self.max_depth:
            (self._console or screen.console()).print(model_table(fit.model, self.max_depth))


def model_table(model: Any, max_depth: int = 1) -> Any:
    """Return a `rich.table.Table` of the layers of a Keras model, with totals below."""
    from rich.table import Table

    table = Table(title=model.name, caption=totals(model), caption_style="", caption_justify="left")
    table.add_column("layer")
    table.add_column("type")
    for name in ("output", "parameters", "MACs"):
        table.add_column(name, justify="right")
    for depth, layer in _layers(model, max_depth):
        shape, work = output_shape(layer), macs(layer)
        table.add_row(
            "  " * depth + layer.name,
            type(layer).__name__,
            " x ".join("?" if n is None else str(n) for n in shape[1:]) if shape else "",
            f"{layer.count_params():,}" if layer.built else "",
            f"{work:,}" if work else "",
        )
    return table


def totals(model: Any) -> str:
    """Return parameters (trainable or not), size and work of a model in one line."""
    from fmnist_keras3.layers import keras_private

    trainable = _count(model.trainable_weights)
    fixed = _count(model.weights) - trainable
    text = f"{trainable + fixed:,} parameters"
    if fixed:
        text += f" ({trainable:,} trainable, {fixed:,} not)"
    text += f", {keras_private.weight_bytes(model.weights) / 1e6:.2f} MB"
    work = macs(model)
    return text + f", {work:,} MACs an image" * bool(work)


def _count(weights: list[Any]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def _layers(layer: Any, max_depth: int, depth: int = 0) -> Iterator[tuple[int, Any]]:
    """Yield the layers inside ``layer``, each with its depth, but for the inputs."""
    import keras

    from fmnist_keras3.layers import keras_private

    if depth == max_depth:
        return
    for inner in keras_private.all_layers(layer, itself=False, nested=False):
        if not isinstance(inner, keras.layers.InputLayer):
            yield depth, inner
            yield from _layers(inner, max_depth, depth + 1)
