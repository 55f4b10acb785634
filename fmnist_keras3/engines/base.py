"""What an engine does, and the arithmetic of a step that all engines share.

An engine compiles three kinds of program: `train` runs up to `chunk_steps` optimizer steps over a
chunk of batches that is on the device already, `infer` runs the forward pass over such a chunk, and
`jit` compiles what prepares a chunk (gathering, augmentation). The number of steps to run is an
argument of the program, not a constant in it: a short chunk, or a chunk of no steps by which a
program is compiled before the clock starts, is no second compilation.

The engine owns the state while it trains. `export_state` and `import_state` move it as a list of
named NumPy arrays; `sync_model` brings the Keras model up to date.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from fmnist_keras3.errors import UserError
from fmnist_keras3.models.layers import pooled_convolutions, traced_for_xla_cpu
from fmnist_keras3.models.losses import log_softmax, picked


@dataclass(frozen=True)
class Chunk:
    """Batches on the device: ``x [K, B, ...]``, ``y [K, B, ...]``; on the host ``valid [K]``.

    The first ``count`` batches are to be used, and of batch ``i`` the first ``valid[i]`` examples.
    """

    x: Any
    y: Any
    valid: np.ndarray
    count: int


@dataclass(frozen=True)
class StepLogs:
    """Per step of a chunk, float32 ``[count]``: loss without penalty, and the penalty.

    ``finite``: after the last step, all weights and values of the optimizer are.
    """

    loss: np.ndarray
    penalty: np.ndarray
    finite: bool

    def first_bad(self) -> int | None:
        """Return the first step, from 0, whose loss or (seen after the last) update is not."""
        bad = np.flatnonzero(~np.isfinite(self.loss))
        if len(bad):
            return int(bad[0])
        return None if self.finite else len(self.loss) - 1


class Engine(ABC):
    """Trains one compiled Keras model on one backend.

    ``label_smoothing`` (0 <= rate < 1) applies to training only; reported losses are without it.
    ``labels [1, ...]`` is an example of what the model is trained on, by which Keras chooses its
    metrics; without it, the name of the loss tells. ``deterministic`` asks for programs that give
    the same bits each time, see `determinism`.
    """

    device: str  # what the programs run on, as a person would name it
    platform: str  # "cpu" or "gpu"
    determinism_by: str  # what makes programs for a GPU deterministic

    def __init__(
        self,
        model: keras.Model,
        *,
        chunk_steps: int = 128,
        label_smoothing: float = 0.0,
        labels: np.ndarray | None = None,
        deterministic: bool | str | None = None,
    ):
        _check_trainable(model, label_smoothing)
        self.model = model
        self.chunk_steps = chunk_steps
        self._labels = labels
        self.deterministic = deterministic
        self.label_smoothing = label_smoothing
        self.optimizer = model.optimizer
        self.optimizer.build(model.trainable_variables)
        self.metrics = _built_metrics(model, self.placeholder_labels(1))
        self.metric_variables = [v for metric in self.metrics for v in metric.variables]
        self._programs: dict[Hashable, Callable] = {}  # those that prepare chunks
        self._pooled = pooled_convolutions(model)
        lr = self.optimizer.learning_rate
        # A Keras schedule inside the optimizer is the user's own, and stays in charge.
        self.sets_learning_rate = any(lr is v for v in self.optimizer.variables)

    def program(self, key: Hashable, function: Callable) -> Callable:
        """Return ``function``, of arrays, compiled; the same one again for the same ``key``."""
        if key not in self._programs:
            self._programs[key] = self.jit(function)
        return self._programs[key]

    def tracing(self) -> AbstractContextManager[None]:
        """Return the context in which the programs are traced: the layers take their fast form."""
        return traced_for_xla_cpu(self.platform == "cpu", self._pooled)

    @abstractmethod
    def jit(self, function: Callable) -> Callable:
        """Compile a function of arrays, written with `keras.ops`."""

    @abstractmethod
    def trace(self, folder: Path) -> AbstractContextManager[Any]:
        """Return the context in which the backend's own profiler writes into ``folder``."""

    @abstractmethod
    def put(self, array: np.ndarray) -> Any:
        """Copy an array to the device."""

    @abstractmethod
    def train(self, chunk: Chunk, lr: np.ndarray) -> StepLogs:
        """Take ``chunk.count`` steps with learning rates ``lr [K]``; waits for the device."""

    def infer(self, chunks: Iterable[Chunk]) -> tuple[dict[str, float], np.ndarray]:
        """Return mean loss and metrics over all chunks, and the outputs ``[N, ...]``."""
        loss, examples = 0.0, 0
        outputs = [np.empty((0, *self.model.output_shape[1:]), np.float32)]
        metrics = self._begin_inference()
        try:
            for chunk in chunks:
                losses, predicted, metrics = self._infer_batches(chunk, metrics)
                loss += float(losses[: chunk.count].sum(dtype=np.float64))
                for batch, valid in zip(predicted, chunk.valid[: chunk.count], strict=False):
                    outputs.append(batch[:valid])
                    examples += int(valid)
            results = self._inference_results(metrics)
        finally:
            self._end_inference()
        logs = {"loss": loss / max(examples, 1), **results}
        return logs, np.concatenate(outputs)

    @abstractmethod
    def _begin_inference(self) -> Any:
        """Return fresh metric sums; those of the training are kept."""

    @abstractmethod
    def _infer_batches(self, chunk: Chunk, metrics: Any) -> tuple[np.ndarray, np.ndarray, Any]:
        """Return summed losses ``[K]``, outputs ``[K, B, ...]`` and the metric sums after them."""

    @abstractmethod
    def _inference_results(self, metrics: Any) -> dict[str, float]:
        """Return the results of the metric sums."""

    def _end_inference(self) -> None:  # noqa: B027 - an engine may keep them apart
        """Bring back the metric sums of the training, also after an exception."""

    @abstractmethod
    def metric_results(self) -> dict[str, float]:
        """Return the training metrics since `reset_metrics`."""

    @abstractmethod
    def reset_metrics(self) -> None:
        """Start the training metrics anew, as at the beginning of an epoch."""

    @abstractmethod
    def sync_model(self) -> None:
        """Copy the state into the Keras model and its optimizer."""

    @abstractmethod
    def read_model(self) -> None:
        """Take the state from the Keras model and its optimizer, the reverse of `sync_model`."""

    def determinism(self) -> tuple[bool, str]:
        """Tell whether equal runs give equal bits on this device with these versions, and why."""
        if self.platform == "cpu":
            return True, "XLA's programs for CPUs always are"
        if self.platform != "gpu":
            return False, f"nothing is known of the platform {self.platform!r}"
        if self.deterministic:
            return True, self.determinism_by
        return False, "not asked for: programs for GPUs may add in any order"

    @staticmethod
    @abstractmethod
    def out_of_memory(error: BaseException) -> bool:
        """Tell whether ``error`` is the backend's, for a device whose memory is too small."""

    @abstractmethod
    def peak_memory_mb(self) -> float | None:
        """Return the device's peak memory in MB, or None where the host's memory is its."""

    def placeholder_labels(self, n: int) -> np.ndarray:
        """Return ``n`` labels of the kind that the model's loss takes, all zero."""
        if self._labels is not None:
            return np.zeros((n, *self._labels.shape[1:]), self._labels.dtype)
        loss = self.model.loss
        name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        if name.lower().startswith("sparse"):
            return np.zeros(n, np.int32)
        return np.zeros((n, *self.model.output_shape[1:]), np.float32)

    @property
    def variables(self) -> list[tuple[str, keras.Variable]]:
        """All state in a fixed order: weights, seed generators, optimizer, metric sums."""
        groups = {
            "model": self.model.trainable_variables + self.model.non_trainable_variables,
            "optimizer": self.optimizer.variables,
            "metrics": self.metric_variables,
        }
        return [(f"{group}/{v.path}", v) for group, vs in groups.items() for v in vs]

    def learning_rate(self) -> float:
        """Return the optimizer's learning rate as it stands in the Keras model."""
        return float(to_numpy(self.optimizer.learning_rate))

    def set_learning_rate(self, rate: float) -> None:
        """Set the optimizer's learning rate in the Keras model, unless it follows a schedule."""
        if self.sets_learning_rate:
            self.optimizer.learning_rate.assign(rate)

    def export_state(self) -> list[tuple[str, np.ndarray]]:
        """Return the whole training state as named arrays, copied to the host."""
        self.sync_model()
        return [(name, to_numpy(variable)) for name, variable in self.variables]

    def import_state(self, arrays: list[tuple[str, np.ndarray]]) -> None:
        """Set the whole state; names must be checked by the caller (`checkpoint.adopt`)."""
        for (_, variable), (_, array) in zip(self.variables, arrays, strict=True):
            variable.assign(array)
        self.read_model()


def to_numpy(variable: Any) -> np.ndarray:
    """Return a Keras variable's value, copied to the host."""
    # Not np.array(variable): Keras' variables do not know NumPy 2's `copy` argument.
    return np.array(ops.convert_to_numpy(ops.convert_to_tensor(variable)))


def training_losses(engine: Engine, x: Any, y: Any, valid: Any) -> tuple[Any, Any, Any]:
    """Run the forward pass in training mode and return what to minimise, the loss, the penalty.

    ``x [B, ...]``, ``y [B, ...]``; the first ``valid`` examples count. Updates the metrics. The
    loss is the mean over the valid examples, without penalty and without label smoothing.
    """
    model = engine.model
    mask, weight = _weights(x, valid)
    outputs = model(x, training=True)
    total = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=weight, training=True)
    penalty = sum(model.losses, ops.zeros(()))
    for metric in engine.metrics:
        metric.update_state(y, outputs, sample_weight=mask)
    objective = total
    if engine.label_smoothing:
        # Cross-entropy to (1 - e) * one-hot + e / classes, as a correction of the plain one.
        log_p = log_softmax(ops.cast(outputs, "float32"))
        objective = total + engine.label_smoothing * ops.mean(
            weight * (picked(log_p, y) - ops.mean(log_p, -1))
        )
    return objective, total - penalty, penalty


def evaluation_losses(engine: Engine, x: Any, y: Any, valid: Any) -> tuple[Any, Any]:
    """Run the forward pass in inference mode; returns the batch's summed loss and the outputs."""
    model = engine.model
    mask, weight = _weights(x, valid)
    outputs = model(x, training=False)
    total = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=weight, training=False)
    for metric in engine.metrics:
        metric.update_state(y, outputs, sample_weight=mask)
    return (total - sum(model.losses, ops.zeros(()))) * ops.cast(valid, "float32"), outputs


def _weights(x: Any, valid: Any) -> tuple[Any, Any]:
    # Keras' losses divide by the batch's full length; the weights make that the valid length.
    size = x.shape[0]
    mask = ops.cast(ops.arange(size, dtype="int32") < valid, "float32")
    return mask, mask * (size / ops.cast(valid, "float32"))


def _check_trainable(model: keras.Model, label_smoothing: float) -> None:
    if not getattr(model, "compiled", False):
        raise UserError(
            "The model is not compiled. Type model.compile(optimizer=..., loss=..., metrics=[...]) "
            "before Trainer.fit, or make it with build_model()."
        )
    if not model.built:
        raise UserError("The model is not built. Give it an Input, or call it on one batch first.")
    if type(model).train_step is not keras.Model.train_step:
        raise UserError(
            f"{type(model).__name__} has a train_step of its own, which the compiled loop would "
            "not run. Override compute_loss instead, or use model.fit."
        )
    plain = isinstance(model.loss, keras.losses.SparseCategoricalCrossentropy)
    if label_smoothing and not (plain and model.loss.from_logits):
        raise UserError(
            "label_smoothing needs a model compiled with "
            "keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
        )


def _built_metrics(model: keras.Model, labels: np.ndarray) -> list[keras.metrics.Metric]:
    # Keras makes the metrics of compile() when it sees their first batch.
    model.compute_metrics(None, labels, np.zeros((1, *model.output_shape[1:]), np.float32))
    model.reset_metrics()
    # compile()'s own metrics come wrapped in one that ignores sample weights; take them out.
    inner = [getattr(metric, "metrics", [metric]) for metric in model.metrics]
    return [metric for metrics in inner for metric in metrics if metric.name != "loss"]
