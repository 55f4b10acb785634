"""What each layer of Keras is in plain operations (`graph.Operation`), where that is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fmnist_keras3.ground.errors import UserError


class Unknown(UserError):
    """A layer that cannot be written exactly."""


@dataclass
class Call:
    """A layer with the names, shapes and output of one call of it."""

    make: Callable[..., str]
    layer: Any
    inputs: list[str]
    tensors: Any
    out: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensors[0].shape[1:])

    def add(self, kind: str, of: str | None = None, shape: Any = None, **options: Any) -> str:
        inputs = self.inputs if of is None else [of]
        return self.make(kind, inputs, self.out.shape[1:] if shape is None else shape, **options)

    def activated(self, value: str, function: Any) -> str:
        name = ACTIVATIONS.get(function)
        if name is None:
            raise Unknown(f"its activation {getattr(function, '__name__', function)}")
        if name == "linear":
            return value
        number = {"elu": 1.0, "leaky_relu": 0.2}.get(name)
        return self.add("activation", value, name=name, value=number)


_NAMES = """
    linear relu relu6 leaky_relu elu selu gelu silu sigmoid hard_sigmoid hard_silu tanh softmax
    softplus softsign exponential mish
"""
ACTIVATIONS = {getattr(keras.activations, name): name for name in _NAMES.split()}


def _array(values: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(values).astype(np.float64)


def _window(call: Call, size: Any, dilation: Any = (1, 1)) -> dict[str, Any]:
    """Return strides, padding and what it comes to, of a convolution or pooling."""
    layer, shape = call.layer, call.shape
    if layer.data_format != "channels_last":
        raise Unknown("its channels come first")
    strides = layer.strides
    pads = []
    for n, window, stride, step in zip(shape[:2], size, strides, dilation, strict=True):
        reach = (window - 1) * step + 1
        total = max((-(-n // stride) - 1) * stride + reach - n, 0)
        total = total if layer.padding == "same" else 0
        pads.append((total // 2, total - total // 2))
    return {"strides": tuple(strides), "padding": layer.padding, "pads": tuple(pads)}


def _conv(call: Call, kernel: Any, groups: int, bias: bool = True) -> str:
    layer = call.layer
    kernel = _array(kernel)
    shift = _array(layer.bias) if bias and layer.use_bias else np.zeros(kernel.shape[-1])
    options = _window(call, kernel.shape[:2], layer.dilation_rate)
    options |= {"dilation": tuple(layer.dilation_rate), "groups": groups}
    shape = (*call.out.shape[1:3], kernel.shape[-1])
    return call.add("conv", None, shape, kernel=kernel, bias=shift, **options)


def _conv2d(call: Call) -> str:
    return call.activated(_conv(call, call.layer.kernel, call.layer.groups), call.layer.activation)


def _by_channel(kernel: Any) -> np.ndarray:
    height, width, channels, factor = kernel.shape
    return _array(kernel).reshape(height, width, 1, channels * factor)


def _depthwise(call: Call) -> str:
    kernel = _by_channel(call.layer.kernel)
    return call.activated(_conv(call, kernel, call.shape[-1]), call.layer.activation)


def _separable(call: Call) -> str:
    layer = call.layer
    value = _conv(call, _by_channel(layer.depthwise_kernel), call.shape[-1], bias=False)
    kernel = _array(layer.pointwise_kernel)[0, 0]
    bias = _array(layer.bias) if layer.use_bias else np.zeros(kernel.shape[-1])
    return call.activated(call.add("dense", value, kernel=kernel, bias=bias), layer.activation)


def _dense(call: Call) -> str:
    layer = call.layer
    if layer.quantization_mode is not None:
        raise Unknown(f"it is quantized to {layer.quantization_mode}")
    bias = _array(layer.bias) if layer.use_bias else np.zeros(layer.units)
    value = call.add("dense", kernel=_array(layer.kernel), bias=bias)
    return call.activated(value, layer.activation)


def _last_axis(call: Call) -> None:
    rank = len(call.shape)
    axis = call.layer.axis
    axes = tuple(axis) if isinstance(axis, (list, tuple)) else (axis,)
    if axes not in ((-1,), (rank,)):
        raise Unknown(f"its axis is {axis}")


def _batch_norm(call: Call) -> str:
    layer = call.layer
    _last_axis(call)
    scale = 1 / np.sqrt(_array(layer.moving_variance) + layer.epsilon)
    scale = scale * _array(layer.gamma) if layer.scale else scale
    shift = -_array(layer.moving_mean) * scale
    shift = shift + _array(layer.beta) if layer.center else shift
    return call.add("affine", scale=scale, shift=shift)


def _rescaling(call: Call) -> str:
    scale, shift = (np.asarray(v, np.float64) for v in (call.layer.scale, call.layer.offset))
    if max(scale.ndim, shift.ndim) > 1 or {scale.size, shift.size} - {1, call.shape[-1]}:
        raise Unknown("its scale is no number, nor one a channel")
    return call.add("affine", scale=scale, shift=shift)


def _normalization(call: Call) -> str:
    layer = call.layer
    if layer.invert or layer.axis not in ((), (-1,), (len(call.shape),)):
        raise Unknown("its axis is not the last, or it is inverted")
    mean, variance = (_array(v).reshape(-1) for v in (layer.mean, layer.variance))
    scale = 1 / np.maximum(np.sqrt(variance), keras.backend.epsilon())
    return call.add("affine", scale=scale, shift=-mean * scale)


def _pool(kind: str) -> Callable[[Call], str]:
    def pool(call: Call) -> str:
        window = tuple(call.layer.pool_size)
        return call.add(f"{kind}_pool", window=window, **_window(call, window))

    return pool


def _global(kind: str) -> Callable[[Call], str]:
    def pool(call: Call) -> str:
        if call.layer.data_format != "channels_last":
            raise Unknown("its channels come first")
        return call.add(f"global_{kind}", keepdims=call.layer.keepdims)

    return pool


def _merge(kind: str, mean: bool = False) -> Callable[[Call], str]:
    def merge(call: Call) -> str:
        if len({len(tensor.shape) for tensor in call.tensors}) > 1:
            raise Unknown("its inputs have different numbers of axes")
        value, *others = call.inputs
        shape = call.shape
        for other, tensor in zip(others, call.tensors[1:], strict=True):
            shape = np.broadcast_shapes(shape, tensor.shape[1:])
            value = call.make(kind, [value, other], shape)
        if not mean:
            return value
        share = np.asarray(1 / len(call.inputs))
        return call.add("affine", value, scale=share, shift=np.zeros(()))

    return merge


def _concatenate(call: Call) -> str:
    axis = call.layer.axis
    axis = axis if axis >= 0 else axis + len(call.out.shape)
    if axis == 0:
        raise Unknown("it joins batches")
    return call.add("concatenate", axis=axis)


def _reshape(call: Call) -> str:
    if getattr(call.layer, "data_format", "channels_last") != "channels_last":
        raise Unknown("its channels come first")
    return call.add("reshape")


def _permute(call: Call) -> str:
    return call.add("transpose", order=(0, *call.layer.dims))


def _edges(kind: str, name: str) -> Callable[[Call], str]:
    def edges(call: Call) -> str:
        if call.layer.data_format != "channels_last":
            raise Unknown("its channels come first")
        amounts = tuple((int(a), int(b)) for a, b in getattr(call.layer, name))
        return call.add(kind, amounts=((0, 0), *amounts, (0, 0)))

    return edges


def _relu(call: Call) -> str:
    layer = call.layer
    slope = float(layer.negative_slope)
    if layer.threshold or layer.max_value not in (None, 6) or (slope and layer.max_value):
        raise Unknown("its threshold or largest value")
    if slope:
        return call.add("activation", name="leaky_relu", value=slope)
    return call.add("activation", name="relu6" if layer.max_value else "relu", value=None)


def _activation(name: str, option: str) -> Callable[[Call], str]:
    return lambda call: call.add("activation", name=name, value=float(getattr(call.layer, option)))


def _softmax(call: Call) -> str:
    _last_axis(call)
    return call.add("activation", name="softmax", value=None)


def _nothing(call: Call) -> str:
    return call.inputs[0]


LAYERS: dict[str, Callable[[Call], str]] = {
    "Conv2D": _conv2d,
    "DepthwiseConv2D": _depthwise,
    "SeparableConv2D": _separable,
    "Dense": _dense,
    "BatchNormalization": _batch_norm,
    "Rescaling": _rescaling,
    "Normalization": _normalization,
    "MaxPooling2D": _pool("max"),
    "AveragePooling2D": _pool("average"),
    "GlobalMaxPooling2D": _global("max"),
    "GlobalAveragePooling2D": _global("average"),
    "Add": _merge("add"),
    "Subtract": _merge("subtract"),
    "Multiply": _merge("multiply"),
    "Maximum": _merge("maximum"),
    "Minimum": _merge("minimum"),
    "Average": _merge("add", mean=True),
    "Concatenate": _concatenate,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Permute": _permute,
    "ZeroPadding2D": _edges("pad", "padding"),
    "Cropping2D": _edges("crop", "cropping"),
    "Activation": lambda call: call.activated(call.inputs[0], call.layer.activation),
    "ReLU": _relu,
    "LeakyReLU": _activation("leaky_relu", "negative_slope"),
    "ELU": _activation("elu", "alpha"),
    "Softmax": _softmax,
    # In training only:
    **dict.fromkeys(
        ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "AlphaDropout", "GaussianDropout"),
        _nothing,
    ),
    **dict.fromkeys(("GaussianNoise", "ActivityRegularization", "Identity"), _nothing),
}
