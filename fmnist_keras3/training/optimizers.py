"""Keras' optimizers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fmnist_keras3.errors import UserError, nearest

if TYPE_CHECKING:
    import keras

# The class in keras.optimizers, and where its default is not what people mean by the name.
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "adadelta": ("Adadelta", {}),
    "adafactor": ("Adafactor", {}),
    "adagrad": ("Adagrad", {}),
    "adam": ("Adam", {}),
    "adamax": ("Adamax", {}),
    "adamw": ("AdamW", {}),
    "ftrl": ("Ftrl", {}),
    "lamb": ("Lamb", {}),
    "lion": ("Lion", {}),
    "muon": ("Muon", {}),
    "nadam": ("Nadam", {}),
    "rmsprop": ("RMSprop", {}),
    "schedule_free_adamw": ("ScheduleFreeAdamW", {}),
    "sgd": ("SGD", {"momentum": 0.9, "nesterov": True}),
}


def check_optimizer(name: str) -> str:
    """Return ``name`` if there is such an optimizer; raises UserError otherwise."""
    if name not in OPTIMIZERS:
        raise UserError(
            f"There is no optimizer {name!r}.{nearest(name, OPTIMIZERS)} "
            f"Optimizers: {', '.join(OPTIMIZERS)}."
        )
    return name


def make_optimizer(
    name: str, lr: float, *, weight_decay: float = 0.0, clip: float | None = None
) -> keras.optimizers.Optimizer:
    """Return a Keras optimizer with learning rate ``lr``.

    ``weight_decay`` is decoupled and spares biases and normalisation; ``clip`` is the largest
    global norm of the gradients. Raises UserError for an unknown name.
    """
    import keras

    class_name, defaults = OPTIMIZERS[check_optimizer(name)]
    make = getattr(keras.optimizers, class_name)
    decay = weight_decay or None
    if name in ("adamw", "muon"):
        decay = weight_decay  # None would mean Keras' own 0.004
    if name == "muon":
        from fmnist_keras3.training.muon import Muon as make

        defaults = {"adam_weight_decay": decay}
    optimizer = make(learning_rate=lr, weight_decay=decay, global_clipnorm=clip, **defaults)
    if weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    return optimizer
