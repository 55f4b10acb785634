"""The models by name, and `build_model`.

A new model is one file with a function ``build(inputs, classes, dropout, l2)`` that returns the
logits, and one entry in `MODELS`. Its options, by name, are more arguments of that function. What
comes from the training images is set by a function ``prepare(model, images)``, which `Trainer.fit`
calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fmnist_keras3.ground import specs as texts
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.specs import Option
from fmnist_keras3.settings import check_arguments

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Entry:
    """A registered model: the module that builds it, one line about it, defaults, options."""

    module: str
    about: str
    dropout: float = 0.0
    l2: float = 0.0
    least: int = 1  # pixels a side, below which layers have nothing left to work on
    options: dict[str, Option] = field(default_factory=dict)


MODELS = {
    "baseline": Entry(
        "baseline",
        "LeNet adapted: wider, ReLU, max-pooling, L2 and dropout",
        dropout=0.057,
        l2=1e-6,
        least=8,
    ),
    "lenet": Entry(
        "lenet", "the classic LeNet-5: 6 and 16 filters of 5x5, dense 120 and 84", least=12
    ),
    "cnn": Entry(
        "cnn", "the bench's: 3x3x32, pool, 3x3x64, pool, dense 128, dropout", dropout=0.5, least=10
    ),
    "airnet": Entry(
        "airnet",
        "airbench's, for short trainings: whitened patches, pooling early, identity at first",
        options={
            "widths": Option((32, 128, 128), "filters of each group", least=1),
            "whiten": Option(2, "size of whitened patches; 0: none", choices=(0, 2, 3)),
            "activation": Option("gelu", "after normalisation", choices=("gelu", "relu", "silu")),
            "bn_momentum": Option(0.6, "of the moving statistics", least=0, below=1),
            "bn_scale": Option(False, "1: normalisation has a scale, too"),
            "dirac": Option(True, "1: convolutions begin as the identity"),
        },
    ),
    "resnet": Entry(
        "resnet",
        "residual network for small images: ResNet-20, 32, 44, 56, 110 by depth",
        least=4,
        options={
            "depth": Option(20, "6n + 2 layers", choices=tuple(range(8, 111, 6))),
            "width": Option(16, "filters of the first stage", least=1),
            "growth": Option(2.0, "factor on the filters from stage to stage", least=1),
            "activation": Option("relu", "after normalisation", choices=("relu", "gelu", "silu")),
        },
    ),
    "wrn": Entry(
        "wrn",
        "wide residual network, WRN-depth-width, dropout inside its blocks",
        least=4,
        options={
            "depth": Option(16, "6n + 4 layers", choices=tuple(range(10, 101, 6))),
            "width": Option(2, "factor on 16, 32 and 64 filters", least=1),
        },
    ),
}


def check_model(text: str, **given: Any) -> tuple[str, dict[str, Any]]:
    """Return the name in ``text`` and the values of the model's options.

    ``text`` is ``name`` or ``name:option=value,option=value``; ``given`` are options, too. Raises
    UserError with the nearest names for an unknown model or option.
    """
    name, inside = texts.split(text)
    if name not in MODELS:
        raise UserError(
            f"There is no model {name!r}.{nearest(name, MODELS)} "
            f"Models: {', '.join(MODELS)} (see `fmnist models`)."
        )
    return name, texts.read(name, MODELS[name].options, inside | given)


def model_label(text: str) -> str:
    """Return the model in ``text`` as a part of a file's name: ``airnet_widths-16-32``."""
    name, values = check_model(text)
    return texts.label(name, MODELS[name].options, values)


def build_model(
    name: str = "baseline",
    *,
    dropout: float | None = None,
    l2: float | None = None,
    seed: int = 0,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    optimizer: Any = None,
    **options: Any,
) -> keras.Model:
    """Build a compiled classifier with initial weights that are equal on every backend.

    Takes raw pixels 0..255 ``[N, H, W, C]`` (uint8 or float) and returns logits ``[N, classes]``,
    float32. ``dropout`` (0 <= rate < 1) and ``l2`` (>= 0) default to the model's own (`MODELS`).
    ``optimizer`` is a Keras optimizer or its name; AdamW with learning rate 1e-3 unless given.
    ``options`` are the model's own, which may stand in ``name``, too: "airnet:widths=16-32,dirac=0"
    (`fmnist models` lists them). Raises UserError for an unknown name or a value outside its range.

    Example: ``build_model("airnet", widths=(16, 32), seed=1).fit(x_train, y_train)``
    """
    name, options = check_model(name, **options)
    entry = MODELS[name]
    dropout = entry.dropout if dropout is None else dropout
    l2 = entry.l2 if l2 is None else l2
    check_arguments(build_model, {"dropout": dropout, "l2": l2, "seed": seed})
    check_size(name, input_shape, entry.least)

    from fmnist_keras3.runtime import prepare

    prepare()
    import keras

    from fmnist_keras3.layers.initial import draw_weights
    from fmnist_keras3.layers.losses import SparseCategoricalCrossentropy

    inputs = keras.Input(input_shape, name="pixels")
    module = import_module(f"fmnist_keras3.models.{entry.module}")
    x = keras.layers.Rescaling(1 / 255, name="rescale")(inputs)
    logits = module.build(x, classes=classes, dropout=Dropouts(dropout, seed), l2=l2, **options)
    model = keras.Model(inputs, logits, name=texts.label(name, entry.options, options))
    draw_weights(model, seed)
    if hasattr(module, "prepare"):
        model.prepare = partial(module.prepare, model)
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-3) if optimizer is None else optimizer,
        loss=SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def check_size(name: str, shape: tuple[int, ...], least: int) -> None:
    """Raise UserError for images ``[H, W, C]`` that are too small for the model ``name``."""
    if min(shape[:2]) < least:
        raise UserError(
            f"{name} takes images of {least}x{least} pixels or more; these have "
            f"{shape[0]}x{shape[1]}. Type --image_size {least},{least}, or take another model."
        )


class Dropouts:
    """Makes the dropout layers of a model, each with a seed of its own derived from the model's."""

    def __init__(self, rate: float, seed: int) -> None:
        self.rate, self.seed, self.made = rate, seed, 0

    def __call__(self, x: Any) -> Any:
        """Apply the next dropout to ``x``; at rate 0 there is no layer."""
        if self.rate == 0:
            return x
        from fmnist_keras3.layers.fast import Dropout

        self.made += 1
        seed = (self.seed * 1000 + self.made) % 2**31
        return Dropout(self.rate, seed=seed, name=f"dropout{self.made}")(x)


def macs(layer: keras.layers.Layer) -> int:
    """Count one image's multiply-accumulates in convolutions and dense layers, forward.

    ``layer`` is a model, or a layer with those inside it. Other layers, and those whose output has
    no known shape, count nothing.
    """
    from fmnist_keras3.layers.keras_private import all_layers

    return sum(_own_macs(inner) for inner in all_layers(layer))


def _own_macs(layer: keras.layers.Layer) -> int:
    import keras

    kinds = ("Dense", "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D")
    kernel, shape = getattr(layer, "kernel", None), output_shape(layer)
    known = isinstance(layer, tuple(getattr(keras.layers, kind) for kind in kinds))
    if not known or kernel is None or shape is None:
        return 0
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    positions = shape[2:] if channels_first else shape[1:-1]
    return 0 if None in positions else math.prod((*kernel.shape, *positions))


def output_shape(layer: keras.layers.Layer) -> tuple[Any, ...] | None:
    """Return the shape of a layer's output, the batch first, or None where it is not known.

    A layer of a subclassed model has no symbolic output; Keras notes what it was built for.
    """
    from fmnist_keras3.layers import keras_private

    try:
        if keras_private.was_called(layer):
            return tuple(layer.output.shape)
        if shapes := keras_private.build_shapes(layer):
            return tuple(layer.compute_output_shape(**shapes))
    except Exception:  # several outputs, or a layer of a stranger's that does not tell
        return None
    return None
