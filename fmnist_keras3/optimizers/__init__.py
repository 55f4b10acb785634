"""Keras' optimizers by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmnist_keras3.ground import specs as texts
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.specs import Option
from fmnist_keras3.settings import check_arguments

if TYPE_CHECKING:
    import keras

_ADAM = {
    "beta_1": Option(0.9, "decay of the first moment", least=0, below=1),
    "beta_2": Option(0.999, "decay of the second moment", least=0, below=1),
    "epsilon": Option(1e-7, "added to the second moment's root", least=0),
}

# The class in keras.optimizers, and options, with defaults of what people mean by the name.
OPTIMIZERS: dict[str, tuple[str, dict[str, Option]]] = {
    "adadelta": ("Adadelta", {}),
    "adafactor": ("Adafactor", {}),
    "adagrad": ("Adagrad", {}),
    "adam": ("Adam", _ADAM),
    "adamax": ("Adamax", {}),
    "adamw": ("AdamW", _ADAM),
    "ftrl": ("Ftrl", {}),
    "lamb": ("Lamb", {}),
    "lion": ("Lion", {}),
    "muon": (
        "Muon",
        {
            "momentum": Option(0.95, "share of the last update", least=0, below=1),
            "ns_steps": Option(5, "steps of Newton and Schulz", least=1),
            "renormalize": Option(
                False, "1: kernels get one norm before each step, as in airbench"
            ),
        },
    ),
    "nadam": ("Nadam", {}),
    "rmsprop": ("RMSprop", {}),
    "schedule_free_adamw": ("ScheduleFreeAdamW", {}),
    "sgd": (
        "SGD",
        {
            "momentum": Option(0.9, "share of the last update", least=0, below=1),
            "nesterov": Option(True, "1: the gradient is that after the momentum's step"),
        },
    ),
}


def check_optimizer(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name in ``text`` and the values of the optimizer's options.

    ``text`` is ``name`` or ``name:option=value``, as "sgd:momentum=0.85". Raises UserError with the
    nearest names for an unknown optimizer or option.
    """
    name, given = texts.split(text)
    if name not in OPTIMIZERS:
        raise UserError(
            f"There is no optimizer {name!r}.{nearest(name, OPTIMIZERS)} "
            f"Optimizers: {', '.join(OPTIMIZERS)}."
        )
    return name, texts.read(name, OPTIMIZERS[name][1], given)


def inner_optimizer(optimizer: Any) -> Any:
    """Return the optimizer inside the loss scaling of float16, or ``optimizer`` without it."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def parse_lr_groups(text: str | None) -> dict[str, float]:
    """Read ``"beta=64,logits=0.5"``; raises UserError for what is not of this form."""
    groups: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        name, _, factor = part.partition("=")
        try:
            groups[name] = float(factor)
            if not 0 <= groups[name] < float("inf"):
                raise ValueError
        except ValueError:
            raise UserError(
                f"lr_groups has {part!r}; it must be a part of variables' paths and a factor of at "
                "least 0. Type --lr_groups beta=64,logits=0.5"
            ) from None
    return groups


def make_optimizer(
    name: str,
    lr: float,
    *,
    weight_decay: float = 0.0,
    clip: float | None = None,
    lr_groups: Mapping[str, float] | None = None,
) -> keras.optimizers.Optimizer:
    """Return a Keras optimizer with learning rate ``lr``, by its name (`check_optimizer`).

    ``weight_decay`` is decoupled and spares biases and normalisation: each step takes ``lr *
    weight_decay`` of a weight. Where a recipe adds the decay to SGD's gradients, as PyTorch does,
    take its value divided by ``1 - momentum``. ``clip`` is the largest global norm of the
    gradients, and ``lr_groups`` are factors on the learning rate by variables' names (see
    `set_lr_groups`). Raises UserError for an unknown name and a value outside its range.

    Example: ``make_optimizer("sgd:momentum=0.85", 1.5, lr_groups={"beta": 64})``
    """
    import keras

    check_arguments(make_optimizer, {"weight_decay": weight_decay, "clip": clip})
    name, options = check_optimizer(name)
    class_name = OPTIMIZERS[name][0]
    make = getattr(keras.optimizers, class_name)
    decay = weight_decay or None
    if name in ("adamw", "muon"):
        decay = weight_decay  # None would mean Keras' own 0.004
    if name == "muon":
        from fmnist_keras3.optimizers.muon import Muon as make

        options["adam_weight_decay"] = decay
    optimizer = make(learning_rate=lr, weight_decay=decay, global_clipnorm=clip, **options)
    if weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    if lr_groups:
        from fmnist_keras3.optimizers.lr_groups import set_lr_groups

        set_lr_groups(optimizer, lr_groups)
    return optimizer
