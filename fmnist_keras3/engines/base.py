"""What an engine does, and the arithmetic of a step that all engines share.

An engine compiles three kinds of program: `train` runs up to `chunk_steps` optimizer steps over a
chunk of batches that is on the device already, `infer` runs the forward pass over such a chunk, and
`jit` compiles what prepares a chunk (gathering, augmentation). The number of steps to run is an
argument of the program, not a constant in it: a short chunk, or a chunk of no steps by which a
program is compiled before the clock starts, is no second compilation.

The engine owns the state while a session is open. `export_state` and `import_state` move it as a
list of named NumPy arrays; `sync_model` brings the Keras model up to date.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from fmnist_keras3.data.dataset import Split
from fmnist_keras3.engines.averages import Averages, batch_statistics, zeros_like
from fmnist_keras3.engines.filling import NORMALIZATION, loss_obstacles, obstacles
from fmnist_keras3.engines.metrics import Metrics
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import leaves, mapped
from fmnist_keras3.layers import keras_private
from fmnist_keras3.layers.fast import pooled_convolutions, traced_for_xla_cpu
from fmnist_keras3.layers.losses import log_softmax, picked
from fmnist_keras3.optimizers import inner_optimizer


@dataclass(frozen=True)
class Chunk:
    """Batches on the device: ``x [K, B, ...]``, ``y [K, B, ...]``; on the host ``valid [K]``.

    The first ``count`` batches are to be used, and of batch ``i`` the first ``valid[i]`` examples.
    ``weight [K, B]`` are sample weights, or None. ``x``, ``y`` and ``weight`` may be structures of
    such arrays; without ``y`` there are outputs, but no losses. ``mix``, of batches whose images
    are mixed: the labels of the other image of each, like ``y``, and the share of the own one,
    float32 ``[K, B]``.
    """

    x: Any
    y: Any
    valid: np.ndarray
    count: int
    weight: Any = None
    mix: tuple[Any, Any] | None = None


@dataclass(frozen=True)
class StepPlan:
    """What the steps of a chunk take, arrays ``[K]``, float32; the device waits for none of it.

    ``rates`` are learning rates. ``shares``, in 0..1, are those of the new weights in their
    averages (None: the averages stay), ``pulls`` those of the averages in the weights after that.
    ``accumulated`` says after which steps the optimizer makes an update: over how many batches it
    takes the mean of the gradients, 0 where it waits for more. None: after each, over one.
    """

    rates: np.ndarray
    shares: np.ndarray | None = None
    pulls: np.ndarray | None = None
    accumulated: np.ndarray | None = None


@dataclass(frozen=True)
class StepLogs:
    """Per step of a chunk, float32 ``[count]``: loss without penalty, and the penalty.

    ``finite``: after the last step, all weights and values of the optimizer are.
    ``gradient_norms``: ``[count, V]``, the L2 norm of the gradient of each trainable variable,
    before clipping; None unless the engine was asked for it.
    """

    loss: np.ndarray
    penalty: np.ndarray
    finite: bool
    gradient_norms: np.ndarray | None = None

    @classmethod
    def of(cls, values: Any, count: int, finite: Any) -> StepLogs:
        """Make it of what the programs return, ``values [K, 2 + V]``."""
        loss, penalty, *norms = np.asarray(values)[:count].T
        return cls(loss, penalty, bool(finite), np.stack(norms, 1) if norms else None)

    def first_bad(self) -> int | None:
        """Return the first step, from 0, whose loss or (seen after the last) update is not."""
        bad = np.flatnonzero(~np.isfinite(self.loss))
        if len(bad):
            return int(bad[0])
        return None if self.finite else len(self.loss) - 1


class Engine(ABC):
    """Trains one compiled Keras model on one backend.

    ``label_smoothing`` (0 <= rate < 1) applies to training only; reported losses are without it.
    ``example`` is a `Split` of one example that the model is trained on: its inputs build a model
    that is not built yet, and by its labels Keras chooses the metrics; without it, there are none
    but those that the name of the loss tells. ``averaging`` keeps averages of the weights beside
    them, ``accumulation`` sums of gradients, and ``gradient_norms`` has the norms reported.
    ``fill_last_batch`` lets BatchNormalization count the repeats by which a short batch is filled
    up. ``deterministic`` asks for programs that give the same bits each time, see `determinism`.
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
        example: Split | None = None,
        averaging: bool = False,
        accumulation: bool = False,
        gradient_norms: bool = False,
        fill_last_batch: bool = False,
        deterministic: bool | str | None = None,
    ):
        _check_trainable(model, label_smoothing)
        if not model.built:
            _build(model, example)
        _check_loss(model, example)
        self.model = model
        self.chunk_steps = chunk_steps
        self.deterministic = deterministic
        self.label_smoothing = label_smoothing
        self._norms_asked = gradient_norms
        self.optimizer = model.optimizer
        self.scales_loss = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        self.optimizer.build(model.trainable_variables)
        self.trains_all = _trains_all(model)
        self.metrics = Metrics(model, example)
        self.metric_variables = self.metrics.variables
        self.loss_obstacles = list(loss_obstacles(model, example))
        self.fills_training = _fills(model, self.metrics, example, fill_last_batch)
        self.fills_evaluation = not obstacles(model, self.metrics, example, training=False)
        self.averages = Averages(model) if averaging else None
        self.gradient_sums = [zeros_like(v) for v in model.trainable_variables * accumulation]
        self._programs: dict[Hashable, Callable] = {}  # those that prepare chunks
        self._pooled = pooled_convolutions(model)
        lr = self.optimizer.learning_rate
        # A Keras schedule inside the optimizer is the user's own, and stays in charge.
        self.sets_learning_rate = any(lr is v for v in self.optimizer.variables)
        self._compiled_from = _compiled_from(model)

    def is_current(self) -> bool:
        """Tell whether the model is still what the programs were compiled from.

        It is not after another `compile`, where a layer was frozen, or in another precision.
        """
        now = _compiled_from(self.model)
        return len(now) == len(self._compiled_from) and all(
            a is b or (isinstance(a, str) and a == b)
            for a, b in zip(now, self._compiled_from, strict=True)
        )

    def program(self, key: Hashable, function: Callable) -> Callable:
        """Return ``function``, of arrays, compiled; the same one again for the same ``key``."""
        if key not in self._programs:
            self._programs[key] = self.jit(function)
        return self._programs[key]

    @property
    def values_per_step(self) -> int:
        """How many values a step of the programs gives: loss, penalty, norms of gradients."""
        return 2 + self._norms_asked * len(self.model.trainable_variables)

    def gradient_norms(self, gradients: list[Any], scale: Any) -> list[Any]:
        """Return the L2 norms of gradients of a loss times ``scale``, if they were asked for."""
        if not self._norms_asked:
            return []
        parts = [ops.zeros(()) if g is None else ops.cast(g, "float32") for g in gradients]
        return [ops.sqrt(ops.sum(ops.square(part / scale))) for part in parts]

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
    def train(self, chunk: Chunk, plan: StepPlan) -> StepLogs:
        """Take ``chunk.count`` steps as ``plan`` says; waits for the device."""

    def infer(self, chunks: Iterable[Chunk], measure: bool = True) -> tuple[dict[str, float], Any]:
        """Return mean loss and metrics over all chunks, and the outputs ``[N, ...]``.

        The outputs come in the model's structure; None if there was no example. Unless they are
        to ``measure``, the loss is 0 and metrics say nothing.
        """
        loss, examples = 0.0, 0
        outputs: list[Any] = []
        metrics = self._begin_inference()
        try:
            for chunk in chunks:
                losses, predicted, metrics = self._infer_batches(chunk, metrics, measure)
                loss += float(losses[: chunk.count].sum(dtype=np.float64))
                for i, valid in enumerate(chunk.valid[: chunk.count].tolist()):
                    outputs.append(mapped(lambda a, i=i, valid=valid: a[i, :valid], predicted))
                    examples += valid
            results = self._inference_results(metrics)
        finally:
            self._end_inference()
        logs = {"loss": loss / max(examples, 1), **results}
        return logs, mapped(lambda *a: np.concatenate(a), *outputs) if outputs else None

    def update_statistics(self, chunks: Iterable[Chunk]) -> None:
        """Take the averages' statistics of BatchNormalization anew, from ``chunks``."""
        averages = self.averages
        if averages is None or not averages.statistics:
            return
        self.sync_model()
        weights = [to_numpy(v) for v in averages.weights]
        others = [to_numpy(v) for v in self.model.non_trainable_variables]
        program = self.program("statistics", partial(batch_statistics, self.model, averages.places))
        sums, batches = [0.0] * len(averages.statistics), 0
        for chunk in chunks:
            with self.tracing(), averages.batches_alone():
                found = program(weights, others, chunk.x, np.int32(chunk.count))
            batches += chunk.count
            sums = [total + to_numpy(part) for total, part in zip(sums, found, strict=True)]
        for variable, total in zip(averages.statistics, sums, strict=True):
            variable.assign(total / batches)

    def restart_averages(self) -> None:
        """Set the averages to what the weights are."""
        assert self.averages is not None
        self.sync_model()
        for variable, average in self.averages.pairs:
            average.assign(to_numpy(variable))
        self.read_model()

    def swap_averages(self) -> None:
        """Exchange the weights with their averages; a second time puts all back as it was."""
        assert self.averages is not None
        self.sync_model()
        for variable, average in self.averages.pairs:
            value = to_numpy(variable)
            variable.assign(to_numpy(average))
            average.assign(value)
        self.read_model()

    @abstractmethod
    def _begin_inference(self) -> Any:
        """Return fresh metric sums; those of the training are kept."""

    @abstractmethod
    def _infer_batches(
        self, chunk: Chunk, metrics: Any, measure: bool
    ) -> tuple[np.ndarray, Any, Any]:
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
    def sync_model(self) -> bool:
        """Copy the state into the Keras model and its optimizer.

        False where there is none any more: a program failed that had taken it over.
        """

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

    @property
    def variables(self) -> list[tuple[str, keras.Variable]]:
        """All state in a fixed order: weights, seeds, optimizer, metrics, averages, gradients."""
        groups = {
            "model": self.model.trainable_variables + self.model.non_trainable_variables,
            "optimizer": self.optimizer.variables,
            "metrics": self.metric_variables,
        }
        named = [(f"{group}/{v.path}", v) for group, vs in groups.items() for v in vs]
        averages = self.averages.named if self.averages is not None else []
        named += [(f"averages/{path}", v) for path, v in averages]
        sums = zip(self.model.trainable_variables, self.gradient_sums, strict=False)
        group = "scaled_gradients" if self.scales_loss else "gradients"
        return named + [(f"optimizer/{group}/{of.path}", v) for of, v in sums]

    def learning_rate(self) -> float:
        """Return the optimizer's learning rate as it stands in the Keras model."""
        return float(to_numpy(self.optimizer.learning_rate))

    def iterations(self) -> int:
        """Return how many batches the optimizer has seen, as it stands in the Keras model."""
        return int(to_numpy(keras_private.batches_seen(inner_optimizer(self.optimizer))))

    def scheduled_rates(self, iterations: np.ndarray) -> np.ndarray:
        """Return what the optimizer's own schedule gives for ``iterations [K]``, float32."""
        rate = keras_private.rate_or_schedule(inner_optimizer(self.optimizer))
        schedule = partial(ops.vectorized_map, rate)
        program = self.program("learning rates", schedule)
        return to_numpy(program(iterations.astype(np.int32))).astype(np.float32)

    def set_learning_rate(self, rate: float) -> None:
        """Set the optimizer's learning rate in the Keras model, unless it follows a schedule."""
        if self.sets_learning_rate:
            self.optimizer.learning_rate.assign(rate)

    def finish_optimizer(self) -> None:
        """Let the optimizer have its last word on the weights, as Keras does at the end of a fit.

        With ``use_ema`` they become their average.
        """
        self.sync_model()
        self.optimizer.finalize_variable_values(self.model.trainable_variables)
        self.read_model()

    def export_state(self) -> list[tuple[str, np.ndarray]]:
        """Return the whole training state as named arrays, copied to the host."""
        if not self.sync_model():
            raise RuntimeError("The training state was lost with the program that failed.")
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


def training_losses(
    engine: Engine, x: Any, y: Any, weight: Any, valid: Any, mix: tuple[Any, Any] | None = None
) -> tuple[Any, Any, Any]:
    """Run the forward pass in training mode and return what to minimise, the loss, the penalty.

    ``x [B, ...]``, ``y [B, ...]``, ``weight [B]`` or None; the first ``valid`` examples count.
    ``mix``: the other labels ``[B, ...]`` and the share of the own ones ``[B]``, see `Chunk`.
    Updates the metrics. The loss is without penalty and label smoothing (see `_losses`).
    """
    model = engine.model
    outputs = model(x, training=True)
    filled = valid if engine.fills_training else None
    total, loss, penalty, weight = _losses(engine, x, y, outputs, weight, filled, True, mix)
    if engine.label_smoothing:
        # Cross-entropy to (1 - e) * one-hot + e / classes, as a correction of the plain one.
        log_p = log_softmax(ops.cast(outputs, "float32"))
        true = picked(log_p, ops.reshape(y, (-1,)))
        if mix is not None:
            other = picked(log_p, ops.reshape(mix[0], (-1,)))
            true = other + mix[1] * (true - other)
        correction = true - ops.mean(log_p, -1)
        if weight is not None:
            correction = ops.reshape(weight, (-1,)) * correction
        total = total + engine.label_smoothing * ops.mean(correction)
    return total, loss, penalty


def evaluation_losses(
    engine: Engine, x: Any, y: Any, weight: Any, valid: Any, *, measure: bool
) -> tuple[Any, Any]:
    """Run the forward pass in inference mode; returns the batch's summed loss and the outputs.

    Unless it is to ``measure``, the loss is 0.
    """
    outputs = engine.model(x, training=False)
    if not measure:
        return ops.zeros(()), outputs
    filled = valid if engine.fills_evaluation else None
    loss = _losses(engine, x, y, outputs, weight, filled, False)[1]
    return ops.cast(loss, "float32") * ops.cast(valid, "float32"), outputs


def _losses(
    engine: Engine,
    x: Any,
    y: Any,
    outputs: Any,
    weight: Any,
    filled: Any,
    training: bool,
    mix: tuple[Any, Any] | None = None,
) -> tuple[Any, Any, Any, Any]:
    """Return what Keras minimises, the loss in it, the penalty, and the weights of the examples.

    The loss is without the penalty (of regularisers and `add_loss`), unless it is all that the
    model has, or the model computes its loss itself.

    ``filled`` is None, or the number of examples in a batch that may be filled up. Keras' losses
    divide by the full length, so the weights make that the valid one. By weights, too, mixed
    examples count a share for each of their labels; metrics see the label of the larger one.
    """
    model, counted, mask = engine.model, weight, None
    if filled is not None:
        size = leaves(x)[0].shape[0]
        mask = ops.cast(ops.arange(size, dtype="int32") < filled, "float32")
        counted = _weighted(mask, weight)
        weight = _weighted(size / ops.cast(filled, "float32"), counted)
    if mix is None:
        total = keras_private.total_loss(model, x, y, outputs, weight, training)
    else:
        other, share = mix
        own, rest = (_weighted(s, weight) for s in (share, 1 - share))
        total = keras_private.total_loss(model, x, y, outputs, own, training)
        total += keras_private.total_loss(model, x, other, outputs, rest, training)
        total -= _penalty(model)  # which is in both
        y = mapped(lambda a, b: ops.where(_rows(share, a) >= 0.5, a, b), y, other)
    engine.metrics.update(y, outputs, counted, mask)
    penalty = _penalty(model)
    whole = computes_loss(model) or model.loss is None
    return total, total if whole else total - penalty, penalty, weight


def _penalty(model: keras.Model) -> Any:
    """Return the sum of the model's regularisers and of what its layers gave to `add_loss`."""
    return sum((keras_private.additional_loss(model, loss) for loss in model.losses), ops.zeros(()))


def _weighted(factor: Any, weight: Any) -> Any:
    """Return the weights of examples times ``factor``, a scalar or ``[B]``; None means ones."""
    if weight is None:
        return factor
    return mapped(lambda w: (_rows(factor, w) if len(factor.shape) else factor) * w, weight)


def _rows(mask: Any, like: Any) -> Any:
    return ops.reshape(mask, (-1,) + (1,) * (len(like.shape) - 1))


def averaged(average: Any, value: Any, share: Any) -> Any:
    """Return the average with ``share`` of ``value`` in it; exactly one of them for 0 and 1."""
    share = ops.cast(share, average.dtype)
    return (1 - share) * average + share * value


def computes_loss(model: keras.Model) -> bool:
    """Tell whether the model has a `compute_loss` of its own."""
    return type(model).compute_loss is not keras.Model.compute_loss


def _fills(
    model: keras.Model, metrics: Metrics, example: Split | None, with_normalization: bool
) -> bool:
    """Tell whether a short batch of the training is filled up; raises UserError if it cannot be."""
    found = obstacles(model, metrics, example, training=True)
    if not with_normalization:
        return not found
    if found := [part for part in found if not part.startswith(NORMALIZATION)]:
        raise UserError(
            f"last_batch is 'fill', but {found[0]} may not look at one example at a time: repeats "
            "would count. Leave last_batch out, or give 'drop'."
        )
    return True


def _compiled_from(model: keras.Model) -> list[Any]:
    """Return what programs of ``model`` depend on and users change."""
    compiled = keras_private.compiled_loss(model), keras_private.compiled_metrics(model)
    parts = [model.optimizer, model.loss, *compiled]
    # A frozen BatchNormalization computes otherwise, also one without weights to train.
    layers = [
        f"{layer.dtype_policy.name} {layer.trainable}" for layer in keras_private.all_layers(model)
    ]
    return [*parts, *model.trainable_variables, *layers]


def _trains_all(model: keras.Model) -> bool:
    """Tell whether the optimizer was built for just the weights that are trained now.

    Raises UserError where it was built without one of them, as where a layer was unfrozen since,
    or where it keeps more beside its weights than its updates, and so needs all of them.
    """
    optimizer = inner_optimizer(model.optimizer)
    known = keras_private.trained_by(optimizer)
    now = model.trainable_variables
    if len(known) == len(now) and all(a is b for a, b in zip(known, now, strict=True)):
        return True
    needs_all = optimizer.use_ema or optimizer.gradient_accumulation_steps
    needs_all = needs_all or optimizer is not model.optimizer  # with loss scaling
    if needs_all or {id(v) for v in now} - {id(v) for v in known}:
        raise UserError(
            "The optimizer was built for other weights than those that are trained now; a layer "
            "was frozen or unfrozen since. Call model.compile(...) again, with a new optimizer."
        )
    return False


def _build(model: keras.Model, example: Split | None) -> None:
    if example is None:
        raise UserError("The model is not built. Give it an Input, or call it on one batch first.")
    model(mapped(ops.convert_to_tensor, example.x))


def _check_trainable(model: keras.Model, label_smoothing: float) -> None:
    if not getattr(model, "compiled", False):
        raise UserError(
            "The model is not compiled. Type model.compile(optimizer=..., loss=..., metrics=[...]) "
            "before Trainer.fit, or make it with build_model()."
        )
    for method in ("train_step", "test_step", "compute_metrics"):
        if getattr(type(model), method) is not getattr(keras.Model, method):
            raise UserError(
                f"{type(model).__name__} has a {method} of its own, which the compiled loop would "
                "not run. Override compute_loss instead (it may update metrics of the model), or "
                "use model.fit."
            )
    plain = isinstance(model.loss, keras.losses.SparseCategoricalCrossentropy)
    if label_smoothing and not (plain and model.loss.from_logits and not [*loss_obstacles(model)]):
        raise UserError(
            "label_smoothing needs a model of outputs [N, C] that is compiled with "
            "keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
        )


def _check_loss(model: keras.Model, example: Split | None) -> None:
    """Raise UserError where there is nothing to minimise but the size of the weights."""
    if any(getattr(loss, "reduction", "sum") in (None, "none") for loss in leaves(model.loss)):
        raise UserError(
            "A loss with reduction 'none' is a number for each example, and nothing to minimise. "
            "Leave reduction out."
        )
    if computes_loss(model) or model.loss is not None:
        return
    added: list[Any] = []  # by add_loss, and by activity regularisers
    if example is not None:
        with keras.StatelessScope(collect_losses=True) as scope:  # the model stays as it is
            model(mapped(ops.convert_to_tensor, example.x), training=True)
        added = scope.losses
    if not added:
        raise UserError(
            "The model is compiled without a loss, so there is nothing to train for. Type "
            "model.compile(optimizer=..., loss=keras.losses."
            "SparseCategoricalCrossentropy(from_logits=True)), or what your labels need."
        )
