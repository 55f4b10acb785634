"""Writes a model as an ONNX file, and reads it with ONNX Runtime."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3.inference.graph import INPUT, Operation, operations

if TYPE_CHECKING:
    import keras

OPSET, IR = 20, 9  # the first with Gelu; read by ONNX Runtime 1.17 and later
FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # orders of axes that bring the channels there

_PLAIN = {
    "relu": "Relu", "selu": "Selu", "gelu": "Gelu", "sigmoid": "Sigmoid", "tanh": "Tanh",
    "softplus": "Softplus", "softsign": "Softsign", "exponential": "Exp", "mish": "Mish",
    "hard_silu": "HardSwish",
}  # fmt: skip
_MERGE = {
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "maximum": "Max",
    "minimum": "Min",
}


def write(
    model: keras.Model,
    path: Path,
    softmax: bool,
    factor: float,
    about: dict[str, Any],
    calibration: np.ndarray | None = None,
) -> None:
    """Write what ``model`` computes of raw pixels times ``factor``: uint8, any number of images.

    ``softmax`` is put at its end; ``about`` goes into the metadata, as JSON where it is no text.
    With images for the ``calibration``, uint8, it computes in 8 bits.
    """
    import onnx
    from onnx import helper

    made = operations(model, softmax, factor, about.get("temperature", 1))
    writer = _Writer()
    writer.node("Cast", [INPUT], "floats", to=onnx.TensorProto.FLOAT)
    for operation in made:
        writer.add(operation)
    writer.node("Identity", [writer.last(made[-1].output)], about["outputs"])
    takes, gives = tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
    values = helper.make_tensor_value_info
    graph = helper.make_graph(
        writer.nodes,
        about["model"],
        [values(INPUT, onnx.TensorProto.UINT8, ["batch", *takes])],
        [values(about["outputs"], onnx.TensorProto.FLOAT, ["batch", *gives])],
        list(writer.weights.values()),
    )
    opset = [helper.make_opsetid("", OPSET)]
    file = helper.make_model(
        graph, opset_imports=opset, ir_version=IR, producer_name="fmnist-keras3"
    )
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    helper.set_model_props(file, texts)
    onnx.checker.check_model(file, full_check=True)
    if calibration is None:
        path.write_bytes(file.SerializeToString())
    else:
        _quantize(file, path, calibration)


def _quantize(file: Any, path: Path, images: np.ndarray) -> None:
    """Write ``file`` with weights and values of 8 bits, whose ranges are those of ``images``."""
    from onnxruntime import quantization as q

    batches = iter([{INPUT: images[i : i + 64]} for i in range(0, len(images), 64)])
    reader = SimpleNamespace(get_next=lambda: next(batches, None))
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # or its advice would go to a handler that it adds, and leaves there
    try:
        q.quantize_static(
            file,
            path,
            reader,  # type: ignore[arg-type]
            per_channel=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            # Weights of 7 bits: of 8, sums overflow on processors without VNNI.
            reduce_range=True,
            # Logits stay float32: of 8 bits, many would be equal.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul", "Softmax"]},
        )
    finally:
        root.removeHandler(handler)


def read(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what computes a file's output of uint8 pixels, by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {INPUT: pixels})[0]


class _Writer:
    """Makes nodes; keeps maps with channels first, as ONNX wants them, from one to the next."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[Any, Any] = {}
        self.channels_first: dict[str, str] = {}  # values by their name in the list of operations
        self.channels_last: dict[str, str] = {INPUT: "floats"}

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def constant(self, values: Any, dtype: str = "float32") -> str:
        """Return the name of a weight; equal ones, as of a layer that is used twice, are one."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(np.asarray(values, dtype))
        key = (dtype, array.shape, array.tobytes())
        if key not in self.weights:
            name = f"weight_{len(self.weights)}"
            self.weights[key] = numpy_helper.from_array(array, name)
        return self.weights[key].name

    def first(self, value: str) -> str:
        """Return the name of a map with channels first."""
        if value not in self.channels_first:
            name = f"{value}_first"
            self.node("Transpose", [self.channels_last[value]], name, perm=FIRST)
            self.channels_first[value] = name
        return self.channels_first[value]

    def last(self, value: str) -> str:
        """Return the name of a value as Keras has it."""
        if value not in self.channels_last:
            name = f"{value}_last"
            self.node("Transpose", [self.channels_first[value]], name, perm=LAST)
            self.channels_last[value] = name
        return self.channels_last[value]

    def add(self, one: Operation) -> None:
        spatial = {"conv", "max_pool", "average_pool", "global_max", "global_average"}
        local = {"affine", "activation", *_MERGE}
        seen = [value in self.channels_first for value in one.inputs]
        softmax = one.options.get("name") == "softmax"
        first = one.kind in spatial or (one.kind in local and all(seen) and not softmax)
        inputs = [(self.first if first else self.last)(value) for value in one.inputs]
        flat = one.kind in ("global_max", "global_average") and not one.options["keepdims"]
        if first and not flat:
            self.channels_first[one.output] = one.output
        else:
            self.channels_last[one.output] = one.output
        method = "merge" if one.kind in _MERGE else one.kind
        getattr(self, f"_{method}")(one, inputs, first)

    def _affine(self, one: Operation, inputs: list[str], first: bool) -> None:
        value = inputs[0]
        steps = [("Mul", one.options["scale"], 1), ("Add", one.options["shift"], 0)]
        steps = [step for step in steps if (step[1] != step[2]).any()] or steps[:1]
        for kind, values, _ in steps:
            values = values.reshape(-1, 1, 1) if first and values.ndim else values
            output = one.output if kind == steps[-1][0] else f"{one.output}_scaled"
            value = self.node(kind, [value, self.constant(values)], output)

    def _conv(self, one: Operation, inputs: list[str], first: bool) -> None:
        options = one.options
        weights = [options["kernel"].transpose(3, 2, 0, 1), options["bias"]]
        weights = weights if options["bias"].any() else weights[:1]
        self.node(
            "Conv",
            [*inputs, *map(self.constant, weights)],
            one.output,
            dilations=options["dilation"],
            group=options["groups"],
            **_window(options),
        )

    def _dense(self, one: Operation, inputs: list[str], first: bool) -> None:
        kernel, bias = self.constant(one.options["kernel"]), one.options["bias"]
        if len(one.shape) == 1:
            self.node("Gemm", [*inputs, kernel, self.constant(bias)], one.output)
            return
        value = self.node("MatMul", [*inputs, kernel], f"{one.output}_product")
        self.node("Add", [value, self.constant(bias)], one.output)

    def _max_pool(self, one: Operation, inputs: list[str], first: bool) -> None:
        window = {"kernel_shape": one.options["window"], **_window(one.options)}
        self.node("MaxPool", inputs, one.output, **window)

    def _average_pool(self, one: Operation, inputs: list[str], first: bool) -> None:
        window = {"kernel_shape": one.options["window"], **_window(one.options)}
        self.node("AveragePool", inputs, one.output, count_include_pad=0, **window)

    def _global_max(self, one: Operation, inputs: list[str], first: bool) -> None:
        kind = "ReduceMax" if one.kind == "global_max" else "ReduceMean"
        axes = self.constant([2, 3], "int64")
        self.node(kind, [*inputs, axes], one.output, keepdims=int(one.options["keepdims"]))

    _global_average = _global_max

    def _merge(self, one: Operation, inputs: list[str], first: bool) -> None:
        self.node(_MERGE[one.kind], inputs, one.output)

    def _concatenate(self, one: Operation, inputs: list[str], first: bool) -> None:
        self.node("Concat", inputs, one.output, axis=one.options["axis"])

    def _reshape(self, one: Operation, inputs: list[str], first: bool) -> None:
        shape = self.constant([-1, *one.shape], "int64")
        self.node("Reshape", [*inputs, shape], one.output)

    def _transpose(self, one: Operation, inputs: list[str], first: bool) -> None:
        self.node("Transpose", inputs, one.output, perm=one.options["order"])

    def _pad(self, one: Operation, inputs: list[str], first: bool) -> None:
        amounts = np.transpose(one.options["amounts"]).ravel()
        self.node("Pad", [*inputs, self.constant(amounts, "int64")], one.output)

    def _crop(self, one: Operation, inputs: list[str], first: bool) -> None:
        pairs = one.options["amounts"][1:]
        begins = [before for before, _ in pairs]
        ends = [begin + size for begin, size in zip(begins, one.shape, strict=True)]
        axes = [self.constant(v, "int64") for v in (begins, ends, range(1, len(pairs) + 1))]
        self.node("Slice", [*inputs, *axes], one.output)

    def _activation(self, one: Operation, inputs: list[str], first: bool) -> None:
        name, value, out = one.options["name"], one.options.get("value"), one.output
        if name in _PLAIN:
            self.node(_PLAIN[name], inputs, out)
        elif name in ("elu", "leaky_relu"):
            self.node({"elu": "Elu", "leaky_relu": "LeakyRelu"}[name], inputs, out, alpha=value)
        elif name == "softmax":
            self.node("Softmax", inputs, out, axis=-1)
        elif name == "silu":
            gate = self.node("Sigmoid", inputs, f"{out}_gate")
            self.node("Mul", [*inputs, gate], out)
        elif name == "relu6":
            self.node("Clip", [*inputs, self.constant(0), self.constant(6)], out)
        elif name == "hard_sigmoid":
            self.node("HardSigmoid", inputs, out, alpha=1 / 6, beta=0.5)
        else:
            self.node("Identity", inputs, out)


def _window(options: dict[str, Any]) -> dict[str, Any]:
    (top, bottom), (left, right) = options["pads"]
    return {"strides": options["strides"], "pads": (top, left, bottom, right)}
