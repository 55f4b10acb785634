"""The step of a compiled Keras model, as a value that an engine is given.

A step is what is computed on one batch: forward pass, losses, penalty, metrics. The engine compiles
it, differentiates, places it on the device and loops over it, and knows nothing of what is inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import keras
from keras import ops

from fmnist_keras3.data.dataset import Split
from fmnist_keras3.engines.check_model import build, check_loss, check_trainable, computes_loss
from fmnist_keras3.engines.chunk import Batch
from fmnist_keras3.engines.filling import fills_training, loss_obstacles, obstacles
from fmnist_keras3.engines.metrics import Metrics, output_spec
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import leaves, mapped
from fmnist_keras3.layers import keras_private
from fmnist_keras3.layers.losses import log_likelihood, log_softmax
from fmnist_keras3.optimizers.group import OptimizerGroup


class Losses(NamedTuple):
    """Scalars of a batch: what is minimised, the loss in it that is reported, and the penalty.

    ``logged`` are those that appear in the records of steps, by name.
    """

    objective: Any
    loss: Any
    penalty: Any
    logged: Mapping[str, Any] = {}


class Phase(NamedTuple):
    """A part of a step: one optimizer, the weights it trains, and at each how many-th step."""

    name: str | None
    optimizer: Any
    variables: list[keras.Variable]
    every: int = 1


def phases_of(model: keras.Model) -> list[Phase]:
    """Return the phases of a model's optimizer: one for each, unless several share a loss."""
    optimizer, weights = model.optimizer, model.trainable_variables
    if not isinstance(optimizer, OptimizerGroup):
        return [Phase(None, optimizer, weights)]
    if optimizer.shared:
        return [Phase(None, optimizer, optimizer.trained(weights))]
    return [Phase(p.name, p.optimizer, p.variables, p.every) for p in optimizer.parts]


class Step(Protocol):
    """What an engine asks of a step.

    ``variables`` are those that it moves besides the model's: sums of metrics. A short batch may
    be filled up where ``fills_training`` or ``fills_evaluation`` says so, and labels mixed where
    there are no ``loss_obstacles``. ``known``: the labels that metrics need were seen. A step is
    made of one phase or several; ``logged`` are the names in `Losses`, of all phases, and
    ``progress`` those that a progress bar shows besides loss and accuracy.
    What is evaluated is said by a verb: "validate", "test", or "predict", which measures nothing.
    """

    model: keras.Model
    variables: list[keras.Variable]
    fills_training: bool
    fills_evaluation: bool
    loss_obstacles: list[str]
    phases: list[Phase]
    logged: list[str]
    progress: list[str]

    @property
    def known(self) -> bool: ...

    def program_for(self, verb: str) -> str: ...

    def train(self, batch: Batch, phase: Phase) -> Losses: ...

    def evaluate(self, batch: Batch, verb: str) -> tuple[Any, Any]: ...

    def forward(self, batch: Batch) -> None: ...

    def has_loss(self, verb: str) -> bool: ...

    def output_spec(self, x: Any, verb: str) -> Any: ...

    def results(self, verb: str = "train") -> dict[str, float]: ...

    def reset(self) -> None: ...


class CompiledStep:
    """The step that `compile` describes: the model's loss, metrics and weights of examples.

    ``label_smoothing`` (0 <= rate < 1) applies to training only; reported losses are without it.
    ``example`` is a `Split` of one example that the model is trained on: its inputs build a model
    that is not built yet, and by its labels Keras chooses the metrics; without it, there are none
    but those that the name of the loss tells. ``fill_last_batch`` lets BatchNormalization count the
    repeats by which a short batch is filled up. Raises UserError for a model that cannot be
    trained, or not in this way.
    """

    def __init__(
        self,
        model: keras.Model,
        example: Split | None = None,
        *,
        label_smoothing: float = 0.0,
        fill_last_batch: bool = False,
    ) -> None:
        check_trainable(model, label_smoothing)
        if example is not None and example.views > 1:
            raise UserError(
                f"views is {example.views}, for the training_step of a Module; {model.name} is a "
                "compiled model. Leave it out."
            )
        if not model.built:
            build(model, example)
        check_loss(model, example)
        self.model, self.label_smoothing = model, label_smoothing
        self.metrics = Metrics(model, example)
        self.variables = self.metrics.variables
        self.phases = phases_of(model)
        self.logged: list[str] = []
        self.progress: list[str] = []
        self.loss_obstacles = list(loss_obstacles(model, example))
        self.fills_training = fills_training(model, self.metrics, example, fill_last_batch)
        self.fills_evaluation = not obstacles(model, self.metrics, example, training=False)

    @property
    def known(self) -> bool:
        """Whether Keras saw the labels that it chooses the metrics by."""
        return self.metrics.known

    def program_for(self, verb: str) -> str:
        """Return the verb that has the same program."""
        return "validate" if verb == "test" else verb

    def forward(self, batch: Batch) -> None:
        """Run the forward pass of a training for what it does to variables."""
        self.model.call(batch.x, training=True)

    def has_loss(self, verb: str) -> bool:
        """Return True: there is something that is minimised."""
        return True

    def output_spec(self, x: Any, verb: str) -> Any:
        """Return the outputs for ``x [B, ...]`` as KerasTensors."""
        return output_spec(self.model, x)

    def results(self, verb: str = "train") -> dict[str, float]:
        """Return the metrics since `reset`."""
        return self.metrics.results()

    def reset(self) -> None:
        """Begin the sums of the metrics anew."""
        self.metrics.reset()

    def train(self, batch: Batch, phase: Phase | None = None) -> Losses:
        """Run the forward pass in training mode, update the metrics, and return the losses.

        Of ``batch`` the first ``valid`` examples count. ``mix``: the other labels ``[B, ...]`` and
        the share of the own ones ``[B]``, see `Chunk`.
        """
        outputs = self.model(batch.x, training=True)
        filled = batch.valid if self.fills_training else None
        losses, weight = self._losses(batch, outputs, filled, training=True)
        if not self.label_smoothing:
            return losses
        # Cross-entropy to (1 - e) * one-hot + e / classes, as a correction of the plain one.
        log_p = log_softmax(ops.cast(outputs, "float32"))
        true = log_likelihood(log_p, ops.reshape(batch.y, (-1,)))
        if batch.mix is not None:
            other = log_likelihood(log_p, ops.reshape(batch.mix[0], (-1,)))
            true = other + batch.mix[1] * (true - other)
        correction = true - ops.mean(log_p, -1)
        if weight is not None:
            correction = ops.reshape(weight, (-1,)) * correction
        smoothed = losses.objective + self.label_smoothing * ops.mean(correction)
        return losses._replace(objective=smoothed)

    def evaluate(self, batch: Batch, verb: str) -> tuple[Any, Any]:
        """Run the forward pass in inference mode; return the summed loss and the outputs.

        For the verb "predict" the loss is 0, and the metrics stay.
        """
        outputs = self.model(batch.x, training=False)
        if verb == "predict":
            return ops.zeros(()), outputs
        filled = batch.valid if self.fills_evaluation else None
        losses, _ = self._losses(batch, outputs, filled, training=False)
        return ops.cast(losses.loss, "float32") * ops.cast(batch.valid, "float32"), outputs

    def _losses(
        self, batch: Batch, outputs: Any, filled: Any, *, training: bool
    ) -> tuple[Losses, Any]:
        """Return the losses of a batch, and the weights of its examples.

        The loss is without the penalty (of regularisers and `add_loss`), unless it is all that the
        model has, or the model computes its loss itself.

        ``filled`` is None, or the number of examples in a batch that may be filled up. Keras'
        losses divide by the full length, so the weights make that the valid one. By weights, too,
        mixed examples count a share for each of their labels; metrics see the label of the larger.
        """
        model, x, y, weight = self.model, batch.x, batch.y, batch.weight
        counted, mask = weight, None
        if filled is not None:
            size = leaves(x)[0].shape[0]
            mask = ops.cast(ops.arange(size, dtype="int32") < filled, "float32")
            counted = _weighted(mask, weight)
            weight = _weighted(size / ops.cast(filled, "float32"), counted)
        if batch.mix is None:
            total = keras_private.total_loss(model, x, y, outputs, weight, training)
        else:
            other, share = batch.mix
            own, rest = (_weighted(s, weight) for s in (share, 1 - share))
            total = keras_private.total_loss(model, x, y, outputs, own, training)
            total += keras_private.total_loss(model, x, other, outputs, rest, training)
            total -= penalty_of(model)  # which is in both
            y = mapped(lambda a, b: ops.where(_rows(share, a) >= 0.5, a, b), y, other)
        self.metrics.update(y, outputs, counted, mask)
        penalty = penalty_of(model)
        whole = computes_loss(model) or model.loss is None
        return Losses(total, total if whole else total - penalty, penalty), weight


def penalty_of(model: keras.Model) -> Any:
    """Return the sum of the model's regularisers and of what its layers gave to `add_loss`."""
    return sum((keras_private.additional_loss(model, loss) for loss in model.losses), ops.zeros(()))


def _weighted(factor: Any, weight: Any) -> Any:
    """Return the weights of examples times ``factor``, a scalar or ``[B]``; None means ones."""
    if weight is None:
        return factor
    return mapped(lambda w: (_rows(factor, w) if len(factor.shape) else factor) * w, weight)


def _rows(mask: Any, like: Any) -> Any:
    return ops.reshape(mask, (-1,) + (1,) * (len(like.shape) - 1))
