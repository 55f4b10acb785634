"""Which models give the numbers of a short batch when it is filled up.

A program is compiled for one size of batches. The last batch of an epoch has fewer examples; filled
up by repeats of weight 0 it needs no second program. That is right only where loss, metrics and
layers look at one example at a time and the weights are honoured, so here stands what is known to:
the names of Keras' own classes and functions. Whatever is not listed, above all what a user wrote,
gets the batch at its true size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from fmnist_keras3.data.dataset import Split
from fmnist_keras3.engines.metrics import Metrics
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import leaves
from fmnist_keras3.layers import keras_private
from fmnist_keras3.layers.fast import Dropout

NORMALIZATION = "BatchNormalization"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LAYERS = _names("""
    InputLayer Dense Identity Rescaling Flatten Reshape Permute RepeatVector
    Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose Conv3DTranspose
    SeparableConv1D SeparableConv2D DepthwiseConv1D DepthwiseConv2D
    MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping1D Cropping2D Cropping3D
    UpSampling1D UpSampling2D UpSampling3D
    Activation ReLU LeakyReLU PReLU ELU
    Add Subtract Multiply Average Maximum Minimum
    """)
# These do nothing in evaluation, or use there what they learnt in training.
LAYERS_IN_EVALUATION = LAYERS | {
    NORMALIZATION,
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "GaussianDropout",
    "GaussianNoise",
}
ALONG_ONE_AXIS = {"Concatenate", "Softmax", "LayerNormalization"}  # safe along the last one

# Means over the examples of what each one costs, for outputs [N, C].
LOSSES = _names("""
    MeanSquaredError mean_squared_error MeanAbsoluteError mean_absolute_error
    MeanAbsolutePercentageError mean_absolute_percentage_error
    MeanSquaredLogarithmicError mean_squared_logarithmic_error
    Huber huber LogCosh log_cosh Poisson poisson KLDivergence kl_divergence
    Hinge hinge SquaredHinge squared_hinge CategoricalHinge categorical_hinge
    BinaryCrossentropy binary_crossentropy BinaryFocalCrossentropy binary_focal_crossentropy
    CategoricalCrossentropy categorical_crossentropy
    CategoricalFocalCrossentropy categorical_focal_crossentropy
    SparseCategoricalCrossentropy sparse_categorical_crossentropy
    """)
METRICS = LOSSES | _names("""
    Accuracy accuracy BinaryAccuracy binary_accuracy
    CategoricalAccuracy categorical_accuracy
    SparseCategoricalAccuracy sparse_categorical_accuracy
    TopKCategoricalAccuracy top_k_categorical_accuracy
    SparseTopKCategoricalAccuracy sparse_top_k_categorical_accuracy
    """)


def obstacles(
    model: keras.Model, metrics: Metrics, example: Split | None, *, training: bool
) -> list[str]:
    """Return the parts of ``model`` that may give other numbers for a batch that is filled up.

    By their classes and names, for a person to read; none where filling up is right. ``example``
    is what the model is trained on. In evaluation (not ``training``) some layers matter less.
    """
    return [
        *loss_obstacles(model, example),
        *(f"the metric {m.name}" for m in metrics.compiled if not _is_listed_metric(m)),
        *(f"the metric {m.name}" for m in metrics.own),
        *_of_layers(model, training),
    ]


def loss_obstacles(model: keras.Model, example: Split | None = None) -> Iterator[str]:
    """Yield why the loss may not be the mean, by their weights, of what single examples cost."""
    if type(model).compute_loss is not keras.Model.compute_loss:
        yield "compute_loss"
    # Each loss is one number an example only if each output is a row: a mask [N] would not fit, or
    # worse, fit by chance, a loss [N, T].
    if any(rank != 2 for rank in _output_ranks(model)):
        yield "outputs that are not [N, C]"
    if example is not None and any(w.ndim > 1 for w in leaves(example.weight)):
        yield "weights that are not [N]"
    for loss in leaves(model.loss):
        if not _is_listed_loss(loss):
            yield f"the loss {_name(loss)}"


def _output_ranks(model: keras.Model) -> list[int]:
    outputs = getattr(model, "outputs", None)
    return [len(output.shape) for output in outputs] if outputs else [0]


def _is_listed_loss(loss: Any) -> bool:
    """Tell whether ``loss``, as `compile` takes it, is a mean over examples of a listed one."""
    return (
        exported_name(loss) in LOSSES
        and getattr(loss, "reduction", "mean") in ("sum_over_batch_size", "mean")
        and getattr(loss, "ignore_class", None) is None
        and getattr(loss, "axis", -1) in (-1, 1)  # the classes', not the batch's
    )


def _is_listed_metric(metric: keras.metrics.Metric) -> bool:
    # Keras makes this one of a name or a function, which may be a user's.
    wraps = type(metric) is keras.metrics.MeanMetricWrapper
    listed = exported_name(keras_private.function_of(metric) if wraps else metric) in METRICS
    return listed and getattr(metric, "ignore_class", None) is None


def _of_layers(model: keras.Model, training: bool) -> Iterator[str]:
    """Yield the layers of a model, and of models inside, that are not known to be safe."""
    if type(model).call is keras.Sequential.call:
        operations = model.layers
    elif keras_private.is_plain_functional(model):
        operations = model.operations
    else:
        yield type(model).__name__  # its call may do anything
        return
    for operation in operations:
        if isinstance(operation, keras.Model):
            yield from _of_layers(operation, training)
        elif not _is_listed_layer(operation, training):
            yield f"{_name(operation)} {operation.name}"


def _is_listed_layer(layer: Any, training: bool) -> bool:
    name = exported_name(layer)
    if name in ALONG_ONE_AXIS:
        listed = layer.axis in (-1, [-1], (-1,))
    elif not training:
        listed = name in LAYERS_IN_EVALUATION
    elif name == "Dropout":
        # Ours draws by the place in the batch; Keras' may draw by the batch's size.
        listed = type(layer) is Dropout and layer.noise_shape is None
    elif name == NORMALIZATION:
        listed = not layer.trainable  # then it does not look at the batch
    else:
        listed = name in LAYERS
    activation = getattr(layer, "activation", None)
    return (
        listed
        and layer.activity_regularizer is None
        and (activation is None or _is_of_keras(activation))
        and not isinstance(layer.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy)
    )


def exported_name(thing: Any) -> str | None:
    """Return the name under which Keras exports a loss, metric, layer or function, else None.

    ``thing`` may be a name of a loss. Our layers and losses bear the names of the plain ones that
    they stand for.
    """
    if isinstance(thing, str):
        thing = keras.losses.get(thing)
    kind = thing if callable(thing) and hasattr(thing, "__name__") else type(thing)
    name = keras_private.exported_name(kind)
    return name and name.rsplit(".", 1)[1]


def _is_of_keras(activation: Any) -> bool:
    return (keras_private.exported_name(activation) or "").startswith("keras.activations.")


def _name(thing: Any) -> str:
    if isinstance(thing, str):
        return thing
    return getattr(thing, "__name__", type(thing).__name__)


def fills_training(
    model: keras.Model, metrics: Metrics, example: Split | None, with_normalization: bool
) -> bool:
    """Tell whether a short batch of the training is filled up; raises UserError if it cannot be."""
    found = obstacles(model, metrics, example, training=True)
    if not with_normalization:
        return not found
    if found := [part for part in found if not part.startswith(NORMALIZATION)]:
        raise UserError(
            f"last_batch is 'fill', but {found[0]} may not look at one example at a time: repeats "
            "would count. Leave last_batch out, or give 'drop'."
        )
    return True
