"""Every name of Keras that is private and that we need, each in one function.

Keras promises nothing of them. Where one is gone, the message names it and the version, so that a
new Keras breaks here and nowhere else. `nox -s canary` looks at the versions to come.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, TypeVar

import keras

from fmnist_keras3.ground.errors import UserError

T = TypeVar("T")


class KerasChanged(ImportError):
    """A private name of Keras is gone."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Keras {keras.__version__} has no {name}, which fmnist-keras3 builds on. Install a "
            "version that it is tested with: pip install 'keras>=3.15,<3.16'"
        )


def _get(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        label = getattr(owner, "__name__", type(owner).__name__)
        raise KerasChanged(f"{label}.{name}") from None


def _source(module: str) -> Any:
    try:
        return import_module(f"keras.src.{module}")
    except ImportError:
        raise KerasChanged(f"keras.src.{module}") from None


def all_layers(model: Any, *, itself: bool = True, nested: bool = True) -> list[Any]:
    """Return the layers of a model: ``itself`` first, and with ``nested`` those inside layers."""
    return list(_get(model, "_flatten_layers")(include_self=itself, recursive=nested))


def graph_of(model: Any) -> Any:
    """Return the graph of layers of a functional or sequential model, None of any other."""
    graph = getattr(model, "_functional", model)
    return graph if isinstance(graph, _get(_source("models"), "Functional")) else None


def nodes_of(graph: Any) -> list[Any]:
    """Return the calls of layers that a graph is made of, without its inputs."""
    depths = _get(graph, "_nodes_by_depth").values()
    return [node for depth in depths for node in depth if not node.is_input]


def is_plain_functional(model: Any) -> bool:
    """Tell whether a model is called as Keras calls functional ones."""
    return type(model).call is _get(_source("models"), "Functional").call


def layer_behind(tensor: Any) -> Any:
    """Return the layer that made a symbolic tensor."""
    return _get(tensor, "_keras_history").operation


def build_shapes(layer: Any) -> dict[str, Any] | None:
    """Return the shapes of the inputs that a layer was built for, by their names."""
    return _get(layer, "_build_shapes_dict")


def was_called(layer: Any) -> bool:
    """Tell whether a layer is part of a graph, and so knows its output."""
    return bool(_get(layer, "_inbound_nodes"))


def weight_bytes(weights: list[Any]) -> int:
    """Return the bytes that the weights take."""
    return _get(_source("utils.summary_utils"), "weight_memory_size")(weights)


def spec_of(function: Any, *inputs: Any, **options: Any) -> Any:
    """Return what a function of tensors gives for KerasTensors, as KerasTensors."""
    try:
        return _get(_source("backend"), "compute_output_spec")(function, *inputs, **options)
    except UserError as error:
        # JAX notes on it, once a level, that it left its own frames out: nothing for the user.
        vars(error).pop("__notes__", None)
        raise


def rate_or_schedule(optimizer: Any) -> Any:
    """Return the learning rate of an optimizer: a variable, or its schedule."""
    return _get(optimizer, "_learning_rate")


def batches_seen(optimizer: Any) -> Any:
    """Return the variable that counts the batches an optimizer saw, also those accumulated."""
    return _get(optimizer, "_iterations")


def trained_by(optimizer: Any) -> list[Any]:
    """Return the variables that an optimizer was built for."""
    return _get(optimizer, "_trainable_variables")


def index_of(optimizer: Any, variable: Any) -> int:
    """Return the place of a variable among those that an optimizer was built for."""
    return _get(optimizer, "_get_variable_index")(variable)


def decays_plainly(optimizer: Any) -> bool:
    """Tell whether an optimizer takes its weight decay off the weights as Keras' own do."""
    kinds = (type(optimizer), keras.optimizers.Optimizer, keras.optimizers.Muon)
    own, *plain = (_get(kind, "_apply_weight_decay") for kind in kinds)
    return own in plain


def take_decay(kind: type, optimizer: Any, variables: list[Any]) -> None:
    """Take the weight decay off the variables as optimizers of the class ``kind`` do."""
    _get(kind, "_apply_weight_decay")(optimizer, variables)


def decay_of(optimizer: Any, variable: Any) -> Any:
    """Return the weight decay that an optimizer `decays_plainly` by, or None for this variable."""
    if not _get(optimizer, "_use_weight_decay")(variable):
        return None
    muon = isinstance(optimizer, keras.optimizers.Muon)
    if muon and _get(optimizer, "_should_use_adamw")(variable):
        return optimizer.adam_weight_decay
    return optimizer.weight_decay


@contextlib.contextmanager
def decaying_by(optimizer: Any, decay: Callable[[list[Any]], None]) -> Iterator[None]:
    """Let an optimizer call ``decay`` of the variables in the place of its own weight decay."""
    _get(optimizer, "_apply_weight_decay")
    optimizer._apply_weight_decay = decay
    try:
        yield
    finally:
        del optimizer._apply_weight_decay


def additional_loss(model: Any, loss: Any) -> Any:
    """Return a loss that a layer added as it goes into the total: its sum, scaled."""
    return _get(model, "_aggregate_additional_loss")(loss)


def total_loss(model: Any, x: Any, y: Any, outputs: Any, weight: Any, training: bool) -> Any:
    """Return the loss of a batch with penalties, by the model's `compute_loss`."""
    return _get(model, "_compute_loss")(x, y, outputs, weight, training=training)


def compiled_loss(model: Any) -> Any:
    """Return what `compile` made of the loss, or None."""
    return _get(model, "_compile_loss")


def compiled_metrics(model: Any) -> Any:
    """Return what `compile` made of the metrics, or None."""
    return _get(model, "_compile_metrics")


def loss_tracker(model: Any) -> Any:
    """Return the metric "loss" of a compiled model."""
    return _get(model, "_loss_tracker")


def metrics_of_outputs(compiled: Any) -> tuple[list[Any], list[Any]]:
    """Return the metrics of each output, without and with sample weights."""
    return _get(compiled, "_flat_metrics"), _get(compiled, "_flat_weighted_metrics")


def flat(compiled: Any, values: Any) -> list[Any]:
    """Return labels or outputs in the order of the compiled metrics."""
    return _get(compiled, "_flatten_y")(values)


def function_of(metric: Any) -> Any:
    """Return the function that a `MeanMetricWrapper` takes the mean of."""
    return _get(metric, "_fn")


def exported_name(thing: Any) -> str | None:
    """Return the public name of a class or function of Keras ("keras.losses.Huber"), else None."""
    return _get(_source("api_export"), "REGISTERED_OBJS_TO_NAMES").get(thing)


def stands_for(name: str) -> Callable[[T], T]:
    """Decorate a class of ours so that a `.keras` file gives it the name of Keras' plain one.

    A reader then needs Keras only; a test holds Keras to it.
    """

    def export(kind: T) -> T:
        _get(_source("api_export"), "REGISTERED_OBJS_TO_NAMES")[kind] = name
        return kind

    return export


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Keep Keras from importing TensorFlow on another backend, only to ask for its types.

    Writing or reading a `.keras` file does that (`serialization_lib.serialize_keras_object`), and
    `set_random_seed`; it costs seconds and, on a GPU, memory.
    """
    lazy = _get(_source("utils.module_utils"), "tensorflow")
    before = _get(lazy, "_available")
    if "tensorflow" not in sys.modules:
        lazy._available = False
    try:
        yield
    finally:
        lazy._available = before


@contextlib.contextmanager
def layers_called(*, training: bool) -> Iterator[None]:
    """Let layers that are called meanwhile, outside of others, train or not, unless they are told.

    Each such call has a context, of which the layers inside take their ``training``.
    """
    source = _source("layers.layer")
    plain = _get(source, "CallContext")

    class Context(plain):
        def __init__(self, entry_layer: Any) -> None:
            super().__init__(entry_layer)
            self.training = training

    source.CallContext = Context
    try:
        yield
    finally:
        source.CallContext = plain


def unmade_variables() -> int:
    """Return how many variables wait for their values, as those that are made while tracing do."""
    state = _source("backend.common.global_state")
    return len(_get(state, "get_global_attribute")("uninitialized_variables", []))


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Let the layers that are made meanwhile have variables with a shape and no value."""
    state = _source("backend.common.global_state")
    sharing = _get(_source("saving.serialization_lib"), "ObjectSharingScope")
    waiting = "uninitialized_variables"  # Keras makes them later, if they stay in this list
    before = list(_get(state, "get_global_attribute")(waiting, []))
    try:
        # As in the tracing of a layer's call, variables get a shape and no value.
        with keras.StatelessScope(initialize_variables=False), sharing():
            yield
    finally:
        state.set_global_attribute(waiting, before)
