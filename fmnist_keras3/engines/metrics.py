"""The metrics of a compiled model, updated with the weights that a padded batch needs."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from fmnist_keras3.data.dataset import Split
from fmnist_keras3.ground.tree import leaves, mapped
from fmnist_keras3.layers import keras_private


class Metrics:
    """What ``compile(metrics=..., weighted_metrics=...)`` asked for, and the model's own.

    Keras makes the first, ``compiled``, when it sees labels and outputs: those of ``example``, else
    zeros of the kind that the loss takes; ``known`` is False where nothing tells. ``own`` ones
    (trackers in `compute_loss`, the losses of several outputs) update themselves.
    """

    def __init__(self, model: keras.Model, example: Split | None) -> None:
        self._container = keras_private.compiled_metrics(model)
        self.known = False
        if example is not None and example.y is not None:
            self.known = True
            zeros = mapped(_zeros, output_spec(model, example.x))
            self._build(model, example.y, zeros)
        elif isinstance(shape := getattr(model, "output_shape", None), tuple):
            outputs = np.zeros((1, *shape[1:]), np.float32)
            self._build(model, _labels_like(model.loss, outputs), outputs)
        self.own = [
            m
            for m in model.metrics
            if m not in (self._container, keras_private.loss_tracker(model))
        ]
        self.compiled = self._container.metrics if self._container else []
        self.variables = [v for metric in (*self.compiled, *self.own) for v in metric.variables]

    def _build(self, model: keras.Model, y: Any, outputs: Any) -> None:
        loss = keras_private.compiled_loss(model)
        if len(leaves(outputs)) > 1 and loss is not None:
            loss(y, outputs)  # makes the trackers of the outputs' losses
        if self._container is not None and not self._container.built:
            self._container.build(y, outputs)
        self.update(y, outputs, None, None)  # some make their variables only now
        model.reset_metrics()

    def update(self, y: Any, outputs: Any, weight: Any, mask: Any) -> None:
        """Count a batch with its sample weights.

        ``mask [B]``, of a batch that is filled up, is 0 for the repeats; ``weight`` has it already.
        """
        compiled = self._container
        if compiled is None or not compiled.built or y is None:
            return
        y, outputs = keras_private.flat(compiled, y), keras_private.flat(compiled, outputs)
        weights = [None] if weight is None else keras_private.flat(compiled, weight)
        if len(weights) < len(y):
            weights = weights[:1] * len(y)
        kinds = keras_private.metrics_of_outputs(compiled)
        for kind, counted in zip(kinds, ([mask] * len(y), weights), strict=True):
            for metrics, true, predicted, count in zip(kind, y, outputs, counted, strict=False):
                for metric in metrics.metrics if metrics else ():
                    # One of a user's may not know the argument, if it is not needed.
                    counts = {} if count is None else {"sample_weight": count}
                    metric.update_state(true, predicted, **counts)

    def results(self) -> dict[str, float]:
        """Return the values by Keras' names; one of a vector is ``name_0`` and so on."""
        found = dict(self._container.result()) if self.compiled else {}
        found |= {metric.name: metric.result() for metric in self.own if metric.name != "loss"}
        return numbers(found)

    def reset(self) -> None:
        """Begin the sums anew."""
        for metric in (*self.compiled, *self.own):
            metric.reset_state()


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """Return the results of metrics as numbers; of a vector as ``name_0`` and so on."""
    found: dict[str, float] = {}
    for name, value in results.items():
        parts = value if isinstance(value, dict) else {name: value}
        for key, part in parts.items():
            array = np.asarray(keras.ops.convert_to_numpy(part))
            flat = array.ravel().tolist()
            named = {f"{key}_{i}": v for i, v in enumerate(flat)} if array.ndim else {key: flat[0]}
            found |= {k: float(v) for k, v in named.items()}
    return found


def output_spec(model: keras.Model, x: Any) -> Any:
    """Return the model's outputs for ``x [B, ...]`` as KerasTensors, with shape and dtype."""
    inputs = mapped(lambda a: keras.KerasTensor(a.shape, a.dtype.name), x)
    return keras_private.spec_of(model, inputs, training=False)


def _zeros(tensor: keras.KerasTensor) -> np.ndarray:
    return np.zeros(tensor.shape, np.float32 if tensor.dtype == "bfloat16" else tensor.dtype)


def _labels_like(loss: Any, outputs: np.ndarray) -> np.ndarray:
    """Return zero labels for one output, of the kind that the loss's name tells."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return np.zeros(len(outputs), np.int32) if name.lower().startswith("sparse") else outputs
