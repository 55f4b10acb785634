"""Several optimizers of one model, each with weights of its own.

Keras' `MultiOptimizer` has no learning rate, which schedules need, and takes gradients of all
weights only, so that none could be frozen.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import keras

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.layers import keras_private


@dataclass(frozen=True)
class Part:
    """An optimizer of a group: its name, the weights it trains, and at which steps."""

    name: str
    optimizer: Any
    variables: list[Any]
    every: int = 1


class OptimizerGroup:
    """Several optimizers, with what a training asks of one: its state, and the first one's rate.

    ``shared``: they update by the gradients of one loss, as PyTorch's parameter groups do; then all
    learning rates follow the first's in proportion. The weights of parts by the names in ``frozen``
    stay as they are.
    """

    weight_decay = None
    gradient_accumulation_steps = None
    clipnorm = global_clipnorm = clipvalue = None

    def __init__(self, parts: list[Part], *, shared: bool = False) -> None:
        self.parts, self.shared = parts, shared
        self.frozen: frozenset[str] = frozenset()
        self.read_rates()

    def read_rates(self) -> None:
        """Take the proportions of the learning rates from what they are now."""
        rates = [keras_private.rate_or_schedule(part.optimizer) for part in self.parts]
        # None: a schedule of Keras, which stays in charge.
        self._peaks = [float(r) if isinstance(r, keras.Variable) else None for r in rates]

    def follow(self) -> None:
        """Set the learning rates of the others in proportion to the first's, as a step does."""
        first, *others = zip(self.parts, self._peaks, strict=True)
        for part, own in others if self.shared and first[1] else ():
            if own is not None:
                part.optimizer.learning_rate.assign(own * (self.learning_rate / first[1]))

    def freezing(self, *names: str) -> OptimizerGroup:
        """Return a group of the same optimizers in which the parts of these names wait."""
        group = copy.copy(self)
        group.frozen = frozenset(names)
        return group

    def trained(self, variables: list[Any]) -> list[Any]:
        """Return those of ``variables`` that are not frozen."""
        waiting = {id(v) for part in self.parts if part.name in self.frozen for v in part.variables}
        return [v for v in variables if id(v) not in waiting]

    def apply(self, gradients: list[Any], variables: list[Any]) -> None:
        """Let each part update those of its weights that are given, with their gradients."""
        by_weight = {id(v): g for v, g in zip(variables, gradients, strict=True)}
        self.follow()
        for part in self.parts:
            if mine := [v for v in part.variables if id(v) in by_weight]:
                part.optimizer.apply([by_weight[id(v)] for v in mine], mine)

    @property
    def variables(self) -> list[Any]:
        """The state of all."""
        return [v for part in self.parts for v in part.optimizer.variables]

    @property
    def _trainable_variables(self) -> list[Any]:
        return [v for part in self.parts for v in part.variables]

    @property
    def _iterations(self) -> Any:
        return keras_private.batches_seen(self.parts[0].optimizer)

    @property
    def _learning_rate(self) -> Any:
        return keras_private.rate_or_schedule(self.parts[0].optimizer)

    @property
    def learning_rate(self) -> Any:
        """That of the first."""
        return self.parts[0].optimizer.learning_rate

    @property
    def use_ema(self) -> bool:
        """Whether one of them keeps averages."""
        return any(part.optimizer.use_ema for part in self.parts)

    def build(self, variables: list[Any]) -> None:
        """Make the state of each, for the weights that it trains."""
        for part in self.parts:
            part.optimizer.build(part.variables)

    def scale_loss(self, loss: Any) -> Any:
        """Return ``loss``: there is no scaling for float16."""
        return loss

    def finalize_variable_values(self, variables: list[Any]) -> None:
        """Let each have its last word on its weights."""
        for part in self.parts:
            part.optimizer.finalize_variable_values(part.variables)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration of each, by name."""
        return {
            part.name: {"class": type(part.optimizer).__name__, **part.optimizer.get_config()}
            for part in self.parts
        }


def make_group(
    given: dict[str, Any], model: keras.Model, *, shared: bool = False
) -> OptimizerGroup:
    """Return the optimizers of a dict of names to (optimizer, layers or variables[, every]).

    ``shared`` as for `OptimizerGroup`. Raises UserError for what cannot be trained so.
    """
    parts: list[Part] = []
    owners: dict[int, str] = {}
    for name, value in given.items():
        optimizer, of, *rest = value if isinstance(value, tuple) else (value, None)
        every = rest[0] if rest else 1
        if not isinstance(optimizer, keras.optimizers.Optimizer) or of is None:
            raise UserError(
                f"The optimizer {name!r} is {value!r}; it must be (optimizer, layers or "
                "variables), as (keras.optimizers.Adam(1e-4), self.generator)."
            )
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            raise UserError(
                f"The optimizer {name!r} scales the loss, which several optimizers do not. Give "
                "the plain one."
            )
        if not isinstance(every, int) or every < 1:
            raise UserError(
                f"The optimizer {name!r} has every={every!r}; give a whole number >= 1."
            )
        if shared and every > 1:
            raise UserError(
                f"The optimizer {name!r} has every={every}, which is for a training_step of each "
                "optimizer. Type def training_step(self, batch, optimizer), or leave it out."
            )
        variables = _variables(of, name, model)
        for variable in variables:
            if (other := owners.setdefault(id(variable), name)) != name:
                raise UserError(
                    f"The optimizers {other!r} and {name!r} both train {variable.path}. Give each "
                    "weight to one."
                )
        if any(part.optimizer is optimizer for part in parts):
            raise UserError(f"{name!r} has the optimizer of another. Make one for each.")
        parts.append(Part(name, optimizer, variables, every))
    left = [v.path for v in model.trainable_variables if id(v) not in owners]
    if not parts or left:
        raise UserError(
            f"No optimizer trains {', '.join(left[:3]) or 'anything'}. "
            "Name their layers, or freeze them: layer.trainable = False."
        )
    return OptimizerGroup(parts, shared=shared)


def _variables(of: Any, name: str, model: keras.Model) -> list[Any]:
    """Return the weights of layers, in the order of the model, in which gradients come."""
    found: list[Any] = []
    for part in of if isinstance(of, (list, tuple)) else [of]:
        if isinstance(part, keras.layers.Layer):
            found += part.trainable_variables
        elif isinstance(part, keras.Variable):
            found.append(part)
        else:
            raise UserError(
                f"The optimizer {name!r} is to train {part!r}; give layers, models or variables."
            )
    if not found:
        raise UserError(f"The optimizer {name!r} has nothing to train: no weight is trainable.")
    wanted = {id(v) for v in found}
    return [v for v in model.trainable_variables if id(v) in wanted]
