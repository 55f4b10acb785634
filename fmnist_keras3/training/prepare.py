"""What the Trainer's arguments change about a compiled model: precision and clipping."""

from __future__ import annotations

import keras

from fmnist_keras3.errors import UserError
from fmnist_keras3.training.arguments import PRECISIONS
from fmnist_keras3.training.optimizers import inner_optimizer


def set_precision(model: keras.Model, name: str) -> None:
    """Let ``model`` compute in the precision ``name``; its variables stay float32.

    The layers that give the outputs stay in float32, so that the loss loses nothing. With
    "16-mixed" the optimizer scales the loss (Micikevicius et al. 2017).
    """
    policy = keras.DTypePolicy(PRECISIONS[name])
    last = {id(t._keras_history.operation) for t in getattr(model, "outputs", None) or ()}
    for layer in model._flatten_layers():
        if id(layer) not in last:
            layer.dtype_policy = policy
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    if name == "16-mixed" and not scaled:
        model.optimizer = keras.optimizers.LossScaleOptimizer(model.optimizer)


def set_clipping(model: keras.Model, value: float, algorithm: str) -> None:
    """Clip gradients: "norm" the global norm of all of them, "value" each number."""
    optimizer = inner_optimizer(model.optimizer)
    name = {"norm": "global_clipnorm", "value": "clipvalue"}[algorithm]
    for other in {"clipnorm", "global_clipnorm", "clipvalue"} - {name}:
        if getattr(optimizer, other) is not None:
            raise UserError(
                f"gradient_clip_val is given, but the optimizer has {other}="
                f"{getattr(optimizer, other)} already. Leave one of them out."
            )
    setattr(optimizer, name, value)
