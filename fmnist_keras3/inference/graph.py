"""A Keras model as a list of plain operations, from which files of other runtimes are written.

Arrays are channels-last, as in Keras; weights are float32. What has a meaning in training only is
gone, and a fixed scale and shift, as of batch normalisation, is part of the convolution or dense
layer before it. A layer that is not known exactly is refused by its name.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.inference.forms import LAYERS, Call, Unknown
from fmnist_keras3.layers.keras_private import (
    build_shapes,
    exported_name,
    graph_of,
    is_plain_functional,
    nodes_of,
)
from fmnist_keras3.module import Module

INPUT = "pixels"


class Unwritable(UserError):
    """Layers that cannot be written exactly as plain operations."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation: what ``kind`` makes of the values ``inputs``, a value called ``output``.

    ``shape`` is the output's, without the batch. ``options`` are by kind:

    - affine: ``scale``, ``shift``, numbers or arrays along the last axis.
    - conv: ``kernel [h, w, C/groups, F]``, ``bias [F]``, strides, dilation, groups, padding, pads.
    - dense: ``kernel [C, F]``, ``bias [F]``, along the last axis.
    - max_pool, average_pool: window, strides, padding, pads, which count for neither.
    - global_max, global_average: over height and width; ``keepdims``.
    - add, subtract, multiply, maximum, minimum: of two. concatenate: ``axis``.
    - reshape. transpose: ``order`` of all axes.
    - pad, crop: ``amounts`` of all axes, before and after.
    - activation: ``name``, and a number ``value`` where it takes one.

    ``pads`` are what ``padding`` ("same", "valid") comes to: before and after, of height and width.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    shape: tuple[int, ...]
    options: dict[str, Any]


def operations(
    model: keras.Model, softmax: bool, factor: float = 1, temperature: float = 1
) -> list[Operation]:
    """Return what ``model`` computes of the value "pixels", float32; the last is its output.

    The pixels come times ``factor``; with ``softmax`` that of the output, divided by
    ``temperature``, is put at the end. Raises `Unwritable` that names all layers which cannot be
    written exactly, UserError for what is no graph of layers.
    """
    if not is_graph(model):
        raise UserError(
            f"{type(model).__name__} is no functional or sequential model, whose layers can be "
            "read. Export it with --format keras"
        )
    walk = _Walk()
    inputs = [INPUT]
    if factor != 1:
        options = {"scale": np.asarray(factor), "shift": np.zeros(())}
        inputs = [walk.add("affine", inputs, model.input_shape[1:], **options)]
    (output,) = walk.model(model, inputs)
    if walk.refused:
        raise Unwritable(
            f"Cannot be written exactly: {'; '.join(dict.fromkeys(walk.refused))}. Export the "
            "model with --format keras, saved_model or litert"
        )
    if softmax and temperature != 1:
        options = {"scale": np.asarray(1 / temperature), "shift": np.zeros(())}
        output = walk.add("affine", [output], tuple(model.output_shape[1:]), **options)
    if softmax or not walk.made:
        name = "softmax" if softmax else "linear"
        walk.add("activation", [output], tuple(model.output_shape[1:]), name=name)
    return _folded(walk.made)


def is_graph(model: Any) -> bool:
    """Tell whether a model or layer computes what its graph of layers says, and nothing else."""
    plain = is_plain_functional(model) or type(model).call is keras.Sequential.call
    return graph_of(model) is not None and plain


def as_graph(model: Any) -> Any:
    """Return a model of one's own class as a functional one, of the same layers.

    What its ``call`` does, or a Module's `predict_step`, is run once on a symbol, so that it may
    only call layers. Other models are returned as they are. Raises UserError where that fails.
    """
    if not isinstance(model, keras.Model) or is_graph(model):
        return model
    kind = type(model)
    shapes = list((build_shapes(model) or {}).values())
    if len(shapes) != 1 or not all(isinstance(n, (int, type(None))) for n in shapes[0]):
        raise UserError(
            f"It is not known what images {kind.__name__} takes. Call it on some of them, or type "
            "model.build((None, 28, 28, 1)) with their shape."
        )
    inputs = keras.Input(tuple(shapes[0])[1:], name=INPUT)

    class Open(kind):
        """Whose call is that of its layers: it shows them instead of itself."""

        def __call__(self, *args: Any, **options: Any) -> Any:
            return self.call(*args, **options)

    step = "predict_step" if isinstance(model, Module) else "__call__"
    object.__setattr__(model, "__class__", Open)  # past Keras, which keeps account of attributes
    try:
        return keras.Model(inputs, getattr(model, step)(inputs), name=model.name)
    except Exception as error:  # whatever the user's code raises, of a symbol
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{kind.__name__} cannot be exported: its {step.replace('__call__', 'call')} may only "
            f"call layers, one after the other ({reason})."
        ) from error
    finally:
        object.__setattr__(model, "__class__", kind)


class _Walk:
    def __init__(self) -> None:
        self.made: list[Operation] = []
        self.refused: list[str] = []

    def add(self, kind: str, inputs: list[str], shape: Any, **options: Any) -> str:
        name = f"{kind}_{len(self.made)}"
        self.made.append(Operation(kind, tuple(inputs), name, tuple(shape), options))
        return name

    def model(self, model: Any, inputs: list[str]) -> list[str]:
        """Add what a functional or sequential model does; returns the names of its outputs."""
        graph = graph_of(model)
        names = {id(t): name for t, name in zip(graph.inputs, inputs, strict=True)}
        waiting = nodes_of(graph)
        while waiting:  # Keras keeps calls by depth, in no order that is promised
            later = []
            for node in waiting:
                if any(id(tensor) not in names for tensor in node.input_tensors):
                    later.append(node)
                    continue
                outputs = self._call(node, [names[id(t)] for t in node.input_tensors])
                names |= {id(t): name for t, name in zip(node.output_tensors, outputs, strict=True)}
            waiting = later
        return [names[id(tensor)] for tensor in graph.outputs]

    def _call(self, node: Any, inputs: list[str]) -> list[str]:
        layer = node.operation
        call = Call(self.add, layer, inputs, node.input_tensors, node.output_tensors[0])
        before = len(self.made)
        try:
            kind = (exported_name(type(layer)) or "").removeprefix("keras.layers.")
            if kind not in LAYERS and not is_graph(layer):
                raise Unknown(f"there is no plain form of {type(layer).__name__}")
            _check_call(node, kind)
            if is_graph(layer):
                return self.model(layer, inputs)
            return [LAYERS[kind](call)]
        except Unknown as error:
            del self.made[before:]
            self.refused.append(f"{getattr(layer, 'name', type(layer).__name__)} ({error})")
            return [""] * len(node.output_tensors)


def _check_call(node: Any, kind: str) -> None:
    """Refuse a call with anything but inputs, as ``layer(x, training=True)``."""
    given = [*node.arguments.args[1:], *node.arguments.kwargs.values()]
    tensors: Any = node.arguments.args[0] if node.arguments.args else []
    tensors = tensors if isinstance(tensors, (list, tuple)) else [tensors]
    if len(tensors) != len(node.input_tensors) or any(v not in (None, False) for v in given):
        raise Unknown("it is called with more than its inputs")
    if any(None in tensor.shape[1:] for tensor in tensors):
        raise Unknown("its input has no fixed size")
    # Of whole numbers, which the file makes floats at once, some layers make whole numbers.
    casts = kind in ("Rescaling", "Normalization")
    if any(tensor.dtype != "float32" for tensor in tensors) and not casts:
        raise Unknown(f"its input is {tensors[0].dtype}")


def _folded(made: list[Operation]) -> list[Operation]:
    """Take what scales and shifts channels into the convolution or dense layer before it."""
    uses = Counter(name for operation in made for name in operation.inputs)
    found: dict[str, Operation] = {}
    names: dict[str, str] = {}  # of values whose operation went into another
    for one in made:
        inputs = tuple(names.get(name, name) for name in one.inputs)
        one = dataclasses.replace(one, inputs=inputs)
        before = found.get(inputs[0])
        if (
            one.kind == "affine"
            and before is not None
            and before.kind in ("conv", "dense")
            and uses[before.output] == 1
        ):
            scale, shift = one.options["scale"], one.options["shift"]
            weights = {
                "kernel": before.options["kernel"] * scale,
                "bias": before.options["bias"] * scale + shift,
            }
            names[one.output] = before.output
            uses[before.output] = uses[one.output]
            found[before.output] = dataclasses.replace(before, options=before.options | weights)
        else:
            found[one.output] = one
    return [_rounded(one) for one in found.values()]


def _rounded(one: Operation) -> Operation:
    weights = {k: v.astype(np.float32) for k, v in one.options.items() if hasattr(v, "astype")}
    return dataclasses.replace(one, options=one.options | weights)
