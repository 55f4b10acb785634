"""What is changed in a compiled model before it trains: precision, clipping, data's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.layers import keras_private
from fmnist_keras3.layers.fast import Dropout, fast_classes
from fmnist_keras3.optimizers import inner_optimizer
from fmnist_keras3.optimizers.group import OptimizerGroup
from fmnist_keras3.settings import PRECISIONS
from fmnist_keras3.training.session import Session

if TYPE_CHECKING:
    from fmnist_keras3.engines.base import Engine
    from fmnist_keras3.training.evaluator import Evaluator


def prepare(session: Session, trainer: Evaluator) -> None:
    """Give a compiled model what the Trainer's arguments ask for, before its engine is made."""
    model = session.model
    if getattr(model, "optimizer", None) is None:
        return  # the engine says what is missing
    if session.verb == "fit":
        for callback in trainer.callbacks:
            callback.prepare_model(session)
    for part, fast in fast_classes(model):
        if fast is not Dropout:  # which draws other masks than Keras
            session.set(part, "__class__", fast)
    if trainer.precision is not None:
        set_precision(session, trainer.precision)
    if isinstance(model.optimizer, OptimizerGroup):
        _check_group(trainer)
        if session.verb == "fit" and session.engine is None:  # at its begin
            model.optimizer.read_rates()
            # When a schedule has put back the first one's; the next fit begins with all of them.
            session.at_end(model.optimizer.follow)
        return
    own = inner_optimizer(model.optimizer).gradient_accumulation_steps
    if trainer.accumulate_grad_batches > 1 and own:
        raise UserError(
            f"accumulate_grad_batches is {trainer.accumulate_grad_batches}, but the optimizer has "
            f"gradient_accumulation_steps={own} already. Leave one of them out."
        )
    if trainer.gradient_clip_val is not None:
        set_clipping(session, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)


def _check_group(trainer: Evaluator) -> None:
    """Raise UserError for what several optimizers are not asked for."""
    asked = {
        "accumulate_grad_batches": trainer.accumulate_grad_batches > 1,
        "gradient_clip_val": trainer.gradient_clip_val is not None,
        "precision='16-mixed'": trainer.precision == "16-mixed",
        "on_nonfinite='rollback'": trainer.on_nonfinite == "rollback",
    }
    for name in (name for name, given in asked.items() if given):
        raise UserError(
            f"{name} is for one optimizer, and this Module has several. Leave it out; clipping is "
            "an argument of each optimizer: keras.optimizers.Adam(1e-4, global_clipnorm=1.0)."
        )


def set_precision(session: Session, name: str) -> None:
    """Let the session's model compute in the precision ``name``; its variables stay float32.

    The layers that give the outputs stay in float32, so that the loss loses nothing. With
    "16-mixed" the optimizer scales the loss (Micikevicius et al. 2017). Both stay with the model.
    """
    model, policy = session.model, keras.DTypePolicy(PRECISIONS[name])
    if any(variable.dtype == "float64" for variable in model.trainable_variables):
        raise UserError(
            f"precision is {name}, and the model has weights in float64. Leave precision out, to "
            'train in float64, or make the model with keras.config.set_dtype_policy("float32").'
        )
    last = {id(keras_private.layer_behind(t)) for t in getattr(model, "outputs", None) or ()}
    for layer in keras_private.all_layers(model):
        if id(layer) not in last and layer.dtype_policy != policy:
            session.set(layer, "dtype_policy", policy, stays=True)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    if name == "16-mixed" and not scaled:
        scaling = keras.optimizers.LossScaleOptimizer(model.optimizer)
        session.set(model, "optimizer", scaling, stays=True)


def set_clipping(session: Session, value: float, algorithm: str) -> None:
    """Clip gradients until the session ends.

    ``algorithm`` "norm" limits the global norm of all of them, "value" each number.
    """
    optimizer = inner_optimizer(session.model.optimizer)
    name = {"norm": "global_clipnorm", "value": "clipvalue"}[algorithm]
    for other in {"clipnorm", "global_clipnorm", "clipvalue"} - {name}:
        if getattr(optimizer, other) is not None:
            raise UserError(
                f"gradient_clip_val is given, but the optimizer has {other}="
                f"{getattr(optimizer, other)} already. Leave one of them out."
            )
    session.set(optimizer, name, value)


def set_from_data(engine: Engine, images: Any) -> None:
    """Set the weights that come from the training ``images``, if `build_model` gave it a way to."""
    if prepare := getattr(engine.model, "prepare", None):
        prepare(images)
        engine.read_model()
