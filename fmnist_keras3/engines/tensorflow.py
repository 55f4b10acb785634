"""The TensorFlow engine: a chunk is one `tf.function` with a loop in it, compiled by XLA.

With the forms of layers/kernels.py XLA:CPU is the faster way in TensorFlow too. What XLA cannot
compile, or would draw other random numbers for than Keras does, runs without it. The state is the
Keras variables themselves.
"""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from keras.random import SeedGenerator

from fmnist_keras3.engines import MAY_BE_INFINITE
from fmnist_keras3.engines.base import Engine, averaged
from fmnist_keras3.engines.chunk import Batch, Device, StepLogs
from fmnist_keras3.engines.step import Phase
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import mapped
from fmnist_keras3.layers.fast import Dropout
from fmnist_keras3.layers.keras_private import all_layers


class TensorFlowEngine(Engine):
    """Trains with one XLA-compiled `tf.function`; the Keras variables hold the state."""

    determinism_by = "tf.config.experimental.enable_op_determinism, for the whole process"

    def __init__(self, model: keras.Model, **options: Any) -> None:
        super().__init__(model, **options)
        if self.deterministic:  # there is no switch for one program, nor one that turns it off
            tf.config.experimental.enable_op_determinism()
        self._train = self.jit(self._train_chunk)
        self._infer = self.jit(self._infer_chunk)

    def find_device(self):
        if self._devices_asked not in (None, "auto", 1):
            raise UserError(
                f"devices is {self._devices_asked}; on TensorFlow it is 1. tf.distribute cannot "
                "compile the loop over replicas with XLA, and batch normalisation, dropout and "
                "metrics would see a replica's part of the batch. Type KERAS_BACKEND=jax fmnist "
                "..., or leave devices out."
            )
        if self._shard_asked is not None:
            raise UserError(
                f"shard is {self._shard_asked}; on TensorFlow one device holds all weights. Type "
                "KERAS_BACKEND=jax fmnist ..., or leave shard out."
            )
        if gpus := tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(gpus[0])
            return Device("gpu", details.get("device_name", "GPU"))
        # On a CPU Keras draws without XLA, whose random numbers are others.
        return Device("cpu", "CPU", "eager" if _draws(self.model) else "xla")

    def jit(self, function, whole=False):
        by_xla, without = (_function(function, jit_compile) for jit_compile in (True, False))

        def call(*arguments):
            if self.device.compiler == "xla":
                try:
                    return by_xla(*arguments)
                except tf.errors.InvalidArgumentError as error:  # before anything has run
                    if "XLA" not in str(error):
                        raise
                    self._leave_xla()
                    warnings.warn(
                        f"XLA cannot compile this model, so it is trained without: {_first(error)}",
                        stacklevel=5,
                    )
            return without(*arguments)

        return call

    def _leave_xla(self):
        # Outside XLA, TensorFlow's own kernels are the faster ones; see `tracing`.
        self.device = dataclasses.replace(self.device, compiler="eager")
        self._compiled_from = self._what_it_is()  # where Dropout's rate is a constant

    def determinism(self):
        if self.device.compiler == "xla" or self.device.kind != "cpu":
            return super().determinism()
        if self.deterministic:
            return True, self.determinism_by
        return False, "not asked for: the model runs without XLA, which may add in any order"

    def trace(self, folder):
        return tf.profiler.experimental.Profile(str(folder))

    def place(self, tree, batch_axis=None, size=None):
        return mapped(tf.constant, tree)

    def train(self, chunk, plan):
        batches = chunk.batches(plan)
        with self.tracing():
            numbers = _on_device(self.hyperparameters.values())
            values, finite = self._train(numbers, _on_device(batches), tf.constant(chunk.count))
        return StepLogs.of(values, chunk.count, finite, self.step.logged)

    def _train_chunk(self, numbers, batches, count):
        def body(i, values):
            with self.hyperparameters.traced(numbers):
                value = self._step(mapped(lambda a: a[i], batches))
            return i + 1, _set(values, i, value)

        values = tf.zeros((batches.valid.shape[0], self.values_per_step), tf.float32)
        _, values = tf.while_loop(lambda i, _: i < count, body, (tf.constant(0), values))
        state = [v.value for path, v in self.variables if not path.startswith(MAY_BE_INFINITE)]
        finite = [tf.reduce_all(tf.math.is_finite(v)) for v in state if v.dtype.is_floating]
        return values, tf.reduce_all(finite)

    def _step(self, batch: Batch):
        values = tf.zeros(self.values_per_step)
        for phase in self.step.phases:
            run = partial(self._phase, phase, batch)
            if phase.every == 1:
                values += run()
            else:
                due = batch.number % phase.every == 0
                values += tf.cond(due, run, lambda: tf.zeros(self.values_per_step))
        if batch.share is not None and self.averages is not None:
            for of, mean in zip(self.model.trainable_weights, self.averages.weights, strict=True):
                mean.assign(averaged(mean.value, of.value, batch.share))
                if batch.pull is not None:
                    of.assign(averaged(of.value, mean.value, batch.pull))
        return values

    def _phase(self, phase: Phase, batch: Batch):
        """Update the weights of one optimizer."""
        if self.sets_learning_rate:
            self.optimizer.learning_rate.assign(batch.rate)
        scale = self.optimizer.scale_loss(tf.ones(()))
        with tf.GradientTape() as tape:
            losses = self.step.train(batch, phase)
            objective = self.optimizer.scale_loss(losses.objective)  # for float16
        found = tape.gradient(objective, [w.value for w in phase.variables])
        if batch.accumulated is None:
            phase.optimizer.apply(found, phase.variables)
        else:
            self._accumulate(found, phase.variables, batch.accumulated)
        by_weight = {id(w): g for w, g in zip(phase.variables, found, strict=True)}
        gradients = [by_weight.get(id(w)) for w in self.model.trainable_weights]
        return tf.stack(self.step_values(losses, gradients, scale))

    def _accumulate(self, gradients, weights, accumulated):
        for total, gradient in zip(self.gradient_sums, gradients, strict=True):
            if gradient is not None:
                total.assign_add(tf.convert_to_tensor(gradient))

        def update():
            means = [total.value / accumulated for total in self.gradient_sums]
            self.optimizer.apply(
                [None if g is None else m for g, m in zip(gradients, means, strict=True)], weights
            )
            for total in self.gradient_sums:
                total.assign(tf.zeros_like(total.value))

        tf.cond(accumulated > 0, update, lambda: None)

    def _begin_inference(self):
        self._training_metrics = [v.numpy() for v in self.step.variables]
        self.reset_metrics()

    def _infer_batches(self, chunk, metrics, verb):
        with self.tracing():
            numbers, batches = _on_device((self.hyperparameters.values(), chunk.batches()))
            losses, outputs = self._infer(numbers, batches, tf.constant(chunk.count), verb)
        return losses.numpy(), mapped(lambda a: a.numpy(), outputs), metrics

    def _inference_results(self, metrics, verb):
        return self.step.results(verb)

    def _end_inference(self):
        for variable, value in zip(self.step.variables, self._training_metrics, strict=True):
            variable.assign(value)

    def _infer_chunk(self, numbers, batches, count, verb):
        def body(i, losses, outputs):
            with self.hyperparameters.traced(numbers):
                batch = mapped(lambda a: a[i], batches)
                loss, predicted = self.step.evaluate(batch, verb)
            outputs = mapped(lambda a, new: _set(a, i, new), outputs, predicted)
            return i + 1, _set(losses, i, loss), outputs

        steps = batches.valid.shape[0]
        like = self.step.output_spec(mapped(lambda a: a[0], batches.x), verb)
        outputs = mapped(lambda a: tf.zeros((steps, *a.shape), a.dtype), like)
        start = (tf.constant(0), tf.zeros(steps), outputs)
        return tf.while_loop(lambda i, *_: i < count, body, start)[1:]

    def metric_results(self):
        return self.step.results()

    def reset_metrics(self):
        self.step.reset()

    def sync_model(self):
        return True

    def read_model(self):
        pass

    @staticmethod
    def out_of_memory(error):
        return isinstance(error, tf.errors.ResourceExhaustedError)

    def peak_memory_mb(self):
        if self.device.kind == "cpu":
            return None
        return round(tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6, 1)


def _function(function, jit_compile):
    compiled = tf.function(function, jit_compile=jit_compile, autograph=False)
    # TensorFlow counts by the line of code, and would warn of the second model's programs as if
    # one function were traced again and again.
    compiled._omit_frequent_tracing_warning = True
    return compiled


def _draws(model):
    """Tell whether a layer draws by TensorFlow's generators, as our Dropout does not."""
    layers = (layer for layer in all_layers(model) if type(layer) is not Dropout)
    return any(isinstance(v, SeedGenerator) for layer in layers for v in vars(layer).values())


def _first(error):
    """Return the first sentence of TensorFlow's message, which is of many lines."""
    return str(error.message).splitlines()[0].split(" (", 1)[0]


def _on_device(batches):
    """Return batches with the arrays that the host made as tensors; those of a feed are."""
    return mapped(lambda a: tf.constant(a) if isinstance(a, np.ndarray) else a, batches)


def _set(array, i, value):
    # A slice, which XLA writes in place; a scatter would be a loop over its elements.
    return ops.slice_update(array, [i] + [0] * (len(array.shape) - 1), value[None])
