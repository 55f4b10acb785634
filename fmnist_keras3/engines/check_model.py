"""What a compiled Keras model must be, so that its step can be computed here."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fmnist_keras3.data.dataset import Split
from fmnist_keras3.engines.filling import loss_obstacles
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import leaves, mapped
from fmnist_keras3.layers import keras_private
from fmnist_keras3.optimizers import inner_optimizer
from fmnist_keras3.optimizers.group import OptimizerGroup


def computes_loss(model: keras.Model) -> bool:
    """Tell whether the model has a `compute_loss` of its own."""
    return type(model).compute_loss is not keras.Model.compute_loss


def build(model: keras.Model, example: Split | None) -> None:
    """Call a model that has no variables yet, on ``example``; raises UserError without one."""
    if example is None:
        raise UserError("The model is not built. Give it an Input, or call it on one batch first.")
    model(mapped(ops.convert_to_tensor, example.x))


def check_trainable(model: keras.Model, label_smoothing: float) -> None:
    """Raise UserError for a model that is not compiled, or computes what our step would not."""
    if not getattr(model, "compiled", False):
        raise UserError(
            "The model is not compiled. Type model.compile(optimizer=..., loss=..., metrics=[...]) "
            "before Trainer.fit, or make it with build_model()."
        )
    if isinstance(model.optimizer, keras.optimizers.MultiOptimizer):
        raise UserError(
            "The model is compiled with Keras' MultiOptimizer, which has no learning rate and "
            "freezes nothing. For other rates of some layers type make_optimizer('adam', 1e-3, "
            "lr_groups={'backbone': 0.1}); for several optimizers make it a fmnist_keras3.Module."
        )
    for method in ("train_step", "test_step", "compute_metrics"):
        if getattr(type(model), method) is not getattr(keras.Model, method):
            raise UserError(
                f"{type(model).__name__} has a {method} of its own, which the compiled loop would "
                f"not run. Make it a Module: class {type(model).__name__}(fmnist_keras3.Module) "
                "with def training_step(self, batch), which returns the loss, and def "
                "configure_optimizers(self), which returns keras.optimizers.Adam(1e-3). Or "
                "override compute_loss instead."
            )
    plain = isinstance(model.loss, keras.losses.SparseCategoricalCrossentropy)
    if label_smoothing and not (plain and model.loss.from_logits and not [*loss_obstacles(model)]):
        raise UserError(
            "label_smoothing needs a model of outputs [N, C] that is compiled with "
            "keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
        )


def check_loss(model: keras.Model, example: Split | None) -> None:
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


def trains_all(model: keras.Model) -> bool:
    """Tell whether the optimizer was built for just the weights that are trained now.

    Raises UserError where it was built without one of them, as where a layer was unfrozen since,
    or where it keeps more beside its weights than its updates.
    """
    optimizer = inner_optimizer(model.optimizer)
    known = keras_private.trained_by(optimizer)
    now = model.trainable_variables
    if len(known) == len(now) and all(a is b for a, b in zip(known, now, strict=True)):
        return not isinstance(model.optimizer, OptimizerGroup)  # which has no `stateless_apply`
    needs_all = optimizer.use_ema or optimizer.gradient_accumulation_steps
    needs_all = needs_all or optimizer is not model.optimizer  # with loss scaling
    if needs_all or {id(v) for v in now} - {id(v) for v in known}:
        raise UserError(
            "The optimizer was built for other weights than those that are trained now; a layer "
            "was frozen or unfrozen since. Call model.compile(...) again, with a new optimizer."
        )
    return False
