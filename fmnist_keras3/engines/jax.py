"""The JAX engine: a chunk is one XLA program, its loop carries the whole training state."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from fmnist_keras3.engines.base import Engine, averaged
from fmnist_keras3.engines.chunk import Batch, Device, StepLogs
from fmnist_keras3.engines.mesh import Mesh, choose_devices, here
from fmnist_keras3.engines.processes import Processes
from fmnist_keras3.engines.step import Phase
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import leaves, mapped, packed
from fmnist_keras3.layers.keras_private import all_layers

_OF_TENSORFLOW = (
    "Hashing",
    "HashedCrossing",
    "IntegerLookup",
    "StringLookup",
    "TextVectorization",
)


Arrays = list[jax.Array]


class State(NamedTuple):
    """The whole training state, or the Keras variables that it is of, in lists of the same order.

    ``sums`` are of gradients that wait for an update.
    """

    trainable: Any
    other: Any
    optimizer: Any
    metrics: Any
    averages: Any
    sums: Any


class JaxEngine(Engine):
    """Trains with `jax.jit` and a device loop; the state is a `State` of arrays, donated."""

    determinism_by = "each program is compiled with xla_gpu_deterministic_ops"
    _mesh: Mesh | None = None  # of several devices

    def __init__(self, model: keras.Model, **options: Any) -> None:
        for layer in all_layers(model):
            if type(layer).__name__ in _OF_TENSORFLOW:
                raise UserError(
                    f"The layer {type(layer).__name__} {layer.name} computes with TensorFlow, also "
                    "on JAX, so no program of JAX can hold it. Apply it to the data before, or use "
                    "KERAS_BACKEND=tensorflow."
                )
        super().__init__(model, **options)
        self._of = State(
            model.trainable_variables,
            model.non_trainable_variables,
            self.optimizer.variables,
            self.step.variables,
            self.averages.weights if self.averages is not None else [],
            self.gradient_sums,
        )
        lr = self.optimizer.learning_rate
        self._lr = next((i for i, v in enumerate(self.optimizer.variables) if v is lr), None)
        # Donation lets XLA update the state in place; the arrays passed in are gone afterwards.
        self._train = self.jit(self._train_chunk, True, donate_argnums=0, **self._lying())
        self._infer = self.jit(self._infer_chunk, True, donate_argnums=1, static_argnums=5)
        self.read_model()

    def find_device(self):
        if jax.process_count() > 1:
            self.world = Processes()
        devices = choose_devices(self._devices_asked)
        fsdp = self._shard_asked == "fsdp"
        if fsdp and jax.process_count() > 1:
            raise UserError(
                "shard=fsdp is for the devices of one process, as each of several writes and reads "
                "the state alone. Leave shard out, or train in one process with --devices auto."
            )
        if fsdp and len(devices) == 1 and self._devices_asked != "auto":
            raise UserError("shard=fsdp is for several devices. Type --devices auto, or a number.")
        self._mesh = Mesh(devices, fsdp) if len(devices) > 1 else None
        kind = devices[0].platform
        name = "CPU" if kind == "cpu" else devices[0].device_kind
        return Device(kind, name, count=len(devices))

    def jit(self, function, whole=False, **options):
        # A program's own option works at any time; XLA_FLAGS only before the backend starts.
        flags = {"xla_gpu_deterministic_ops": True} if self.deterministic else None
        if whole and self._mesh is not None:
            options.setdefault("out_shardings", self._mesh.whole)
        return jax.jit(function, compiler_options=flags, **options)

    def _lying(self) -> dict[str, Any]:
        """Return how the state lies on the devices after a chunk, as an option of `jit`."""
        if self._mesh is None:
            return {}
        state = State(*([self._mesh.of_state(v.shape) for v in group] for group in self._of))
        return {"out_shardings": ((state, self._mesh.whole), self._mesh.whole)}

    def trace(self, folder):
        return jax.profiler.trace(str(folder), create_perfetto_trace=True)

    def part(self, size):
        return super().part(size) if self._mesh is None else self._mesh.part(size)

    def place(self, tree, batch_axis=None, size=None):
        if self._mesh is None:
            return mapped(jnp.asarray, tree)
        return mapped(partial(self._mesh.place, batch_axis=batch_axis, size=size), tree)

    def first(self, tree, count):
        if self._mesh is None:
            return super().first(tree, count)
        arrays = leaves(tree)
        key = ("first", count, *(array.shape for array in arrays))
        if key not in self._programs:
            self._programs[key] = self._mesh.first(arrays, count)
        return packed(tree, self._programs[key](arrays))

    def train(self, chunk, plan):
        self._ahead = True
        with self.tracing():
            (self._state, values), finite = self._train(
                self._state,
                self.hyperparameters.values(),
                chunk.batches(plan),
                np.int32(chunk.count),
            )
        # The one place where the host waits for the device.
        return StepLogs.of(values, chunk.count, finite, self.step.logged)

    def _train_chunk(self, state, numbers, batches, count):
        def body(i, carry):
            state, values = carry
            with self.hyperparameters.traced(numbers):
                state, value = self._step(state, mapped(lambda a: a[i], batches))
            return state, values.at[i].set(value)

        values = jnp.zeros((len(batches.valid), self.values_per_step), jnp.float32)
        carry = jax.lax.fori_loop(0, count, body, (state, values))
        after: State = carry[0]
        groups = (after.trainable, after.other, after.optimizer)
        groups += ([],) if self.scales_loss else (after.sums,)
        kept = [v for group in groups for v in group if jnp.issubdtype(v, jnp.floating)]
        return carry, jnp.stack([jnp.isfinite(v).all() for v in kept]).all()

    def _step(self, state: State, batch: Batch):
        values = none = jnp.zeros(self.values_per_step)
        for phase in self.step.phases:
            run = partial(self._phase, phase, batch=batch)
            if phase.every == 1:
                state, more = run(state)
            else:
                due = batch.number % phase.every == 0
                state, more = jax.lax.cond(due, run, lambda s: (s, none), state)
            values += more
        trainable, averages = state.trainable, state.averages
        if (share := batch.share) is not None:
            averages = [averaged(a, w, share) for a, w in zip(averages, trainable, strict=True)]
        if (pull := batch.pull) is not None:
            trainable = [averaged(w, a, pull) for a, w in zip(averages, trainable, strict=True)]
        return state._replace(trainable=trainable, averages=averages), values

    def _phase(self, phase: Phase, state: State, batch: Batch):
        """Update the weights of one optimizer; the others stay."""
        trainable, other, optimizer, metrics, averages, sums = state
        mine = {id(v) for v in phase.variables}
        places = [i for i, v in enumerate(self._of.trainable) if id(v) in mine]

        def objective(weights):
            values = list(trainable)
            for i, weight in zip(places, weights, strict=True):
                values[i] = weight
            with self._scope(values, other, metrics) as scope:
                losses = self.step.train(batch, phase)
            with keras.StatelessScope(zip(self.optimizer.variables, optimizer, strict=True)):
                objective = self.optimizer.scale_loss(losses.objective)  # for float16
                scale = self.optimizer.scale_loss(jnp.ones(()))
            after = (_read(scope, self._of.other), _read(scope, self._of.metrics))
            return objective, (losses, scale, *after)

        weights = [trainable[i] for i in places]
        found, logs = jax.grad(objective, has_aux=True)(weights)
        losses, scale, other, metrics = logs
        gradients: list[Any] = [None] * len(trainable)
        for i, gradient in zip(places, found, strict=True):
            gradients[i] = gradient
        if self._lr is not None:
            rate = batch.rate.astype(optimizer[self._lr].dtype)
            optimizer = [*optimizer[: self._lr], rate, *optimizer[self._lr + 1 :]]
        values = jnp.stack(self.step_values(losses, gradients, scale))
        if len(places) < len(trainable):
            trainable, optimizer = self._apply_in_place(phase, optimizer, found, trainable)
        elif batch.accumulated is None:
            trainable, optimizer = self._apply(optimizer, gradients, trainable)
        else:
            sums = [a + g for a, g in zip(sums, gradients, strict=True)]

            def update(trainable, optimizer, sums):
                means = [a / batch.accumulated for a in sums]
                applied = self._apply(optimizer, means, trainable)
                return *applied, [jnp.zeros_like(a) for a in sums]

            before = (trainable, optimizer, sums)
            trainable, optimizer, sums = jax.lax.cond(
                batch.accumulated > 0, update, lambda *state: state, *before
            )
        return State(trainable, other, optimizer, metrics, averages, sums), values

    def _apply(self, optimizer, gradients, trainable):
        if self.trains_all:
            return self.optimizer.stateless_apply(optimizer, gradients, trainable)
        # The optimizer was built for more weights, of layers that were frozen since.
        return self._apply_in_place(self.step.phases[0], optimizer, gradients, trainable)

    def _apply_in_place(self, phase, optimizer, gradients, trainable):
        """Let an optimizer that is not built for just ``trainable`` update what it is built for."""
        variables = (*self._of.trainable, *self._of.optimizer)
        values = zip(variables, (*trainable, *optimizer), strict=True)
        with keras.StatelessScope(values) as scope:
            phase.optimizer.apply(gradients, phase.variables)
        return _read(scope, self._of.trainable), _read(scope, self._of.optimizer)

    def _begin_inference(self):
        return self._fresh_metrics()

    def _infer_batches(self, chunk, metrics, verb):
        with self.tracing():
            weights = (self._state.trainable, self._state.other)
            losses, metrics, outputs = self._infer(
                weights,
                metrics,
                self.hyperparameters.values(),
                chunk.batches(),
                np.int32(chunk.count),
                verb,
            )
        return np.asarray(losses), mapped(np.asarray, outputs), metrics

    def _inference_results(self, metrics, verb):
        return self._results(metrics, verb)

    def _infer_chunk(self, weights, metrics, numbers, batches, count, verb):
        trainable, other = weights

        def one(metrics, i):
            scope = self._scope(trainable, other, metrics)
            with scope, self.hyperparameters.traced(numbers):
                batch = mapped(lambda a: a[i], batches)
                loss, outputs = self.step.evaluate(batch, verb)
            return loss, _read(scope, self._of.metrics), outputs

        def body(i, carry):
            losses, metrics, outputs = carry
            loss, metrics, predicted = one(metrics, i)
            outputs = mapped(lambda a, new: a.at[i].set(new), outputs, predicted)
            return losses.at[i].set(loss), metrics, outputs

        steps = len(batches.valid)
        shapes = jax.eval_shape(one, metrics, 0)[2]
        outputs = mapped(lambda s: jnp.zeros((steps, *s.shape), s.dtype), shapes)
        zeros = jnp.zeros(steps, jnp.float32)
        return jax.lax.fori_loop(0, count, body, (zeros, metrics, outputs))

    def _scope(self, trainable, other, metrics) -> keras.StatelessScope:
        variables = (*self._of.trainable, *self._of.other, *self._of.metrics)
        values = (*trainable, *other, *metrics)
        return keras.StatelessScope(zip(variables, values, strict=True), collect_losses=True)

    def metric_results(self):
        return self._results(self._state.metrics)

    def _results(self, values, verb: str = "train") -> dict[str, float]:
        values = map(self._here, values)
        with keras.StatelessScope(zip(self._of.metrics, values, strict=True)):
            return self.step.results(verb)

    def _fresh_metrics(self) -> Arrays:
        with keras.StatelessScope([(v, v.value) for v in self._of.metrics]) as scope:
            self.step.reset()
            return [self._copied(value) for value in _read(scope, self._of.metrics)]

    def reset_metrics(self):
        self._ahead = True
        self._state = self._state._replace(metrics=self._fresh_metrics())

    def read_model(self):
        # Copies: the model keeps arrays of its own, which donation cannot take away.
        self._state = State(*([self._copied(v.value) for v in group] for group in self._of))
        self._ahead = False

    def _copied(self, value: jax.Array) -> jax.Array:
        return jnp.array(value) if self._mesh is None else self._mesh.place_state(value)

    def _here(self, value: jax.Array) -> jax.Array:
        return value if self._mesh is None else here(value)

    def sync_model(self):
        if not self._ahead:
            return True
        if any(value.is_deleted() for values in self._state for value in values):
            return False  # a program that failed had them for its own
        for group, values in zip(self._of, self._state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(jnp.array(self._here(value)))
        self._ahead = False
        return True

    @staticmethod
    def out_of_memory(error):
        return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)

    def peak_memory_mb(self):
        count = 1 if self._mesh is None else len(jax.local_devices())
        stats = [device.memory_stats() or {} for device in jax.local_devices()[:count]]
        peaks = [peak for s in stats if (peak := s.get("peak_bytes_in_use")) is not None]
        return round(max(peaks) / 1e6, 1) if peaks else None


def _read(scope: keras.StatelessScope, variables: list[keras.Variable]) -> Arrays:
    return [scope.get_current_value(variable) for variable in variables]
