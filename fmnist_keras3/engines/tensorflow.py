"""The TensorFlow engine: a chunk is one `tf.function` with a loop in it, compiled by XLA.

With the forms of models/kernels.py XLA:CPU is the faster way in TensorFlow too. The state is the
Keras variables themselves.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from fmnist_keras3.engines.base import (
    Chunk,
    Engine,
    StepLogs,
    evaluation_losses,
    training_losses,
)


class TensorFlowEngine(Engine):
    """Trains with one XLA-compiled `tf.function`; the Keras variables hold the state."""

    determinism_by = "tf.config.experimental.enable_op_determinism, for the whole process"

    def __init__(self, model: keras.Model, **options: Any) -> None:
        super().__init__(model, **options)
        if self.deterministic:  # there is no switch for one program, nor one that turns it off
            tf.config.experimental.enable_op_determinism()
        gpus = tf.config.list_physical_devices("GPU")
        self.platform = "gpu" if gpus else "cpu"
        self.device = "CPU"
        if gpus:
            details = tf.config.experimental.get_device_details(gpus[0])
            self.device = details.get("device_name", "GPU")
        self._train = tf.function(self._train_chunk, jit_compile=True, autograph=False)
        self._infer = tf.function(self._infer_chunk, jit_compile=True, autograph=False)

    def jit(self, function):
        return tf.function(function, jit_compile=True, autograph=False)

    def trace(self, folder):
        return tf.profiler.experimental.Profile(str(folder))

    def put(self, array):
        return tf.constant(array)

    def train(self, chunk: Chunk, lr: np.ndarray) -> StepLogs:
        with self.tracing():
            loss, penalty, finite = self._train(
                chunk.x,
                chunk.y,
                tf.constant(chunk.valid),
                tf.constant(lr),
                tf.constant(chunk.count),
            )
        loss, penalty = loss.numpy()[: chunk.count], penalty.numpy()[: chunk.count]
        return StepLogs(loss, penalty, bool(finite))

    def _train_chunk(self, xs, ys, valid, lr, count):
        def body(i, losses, penalties):
            loss, penalty = self._step(xs[i], ys[i], valid[i], lr[i])
            return i + 1, _set(losses, i, loss), _set(penalties, i, penalty)

        zeros = tf.zeros(valid.shape, tf.float32)
        start = (tf.constant(0), zeros, zeros)
        _, losses, penalties = tf.while_loop(lambda i, *_: i < count, body, start)
        state = [v.value for group, v in self.variables if not group.startswith("metrics/")]
        finite = [tf.reduce_all(tf.math.is_finite(v)) for v in state if v.dtype.is_floating]
        return losses, penalties, tf.reduce_all(finite)

    def _step(self, x, y, valid, lr):
        if self.sets_learning_rate:
            self.optimizer.learning_rate.assign(lr)
        with tf.GradientTape() as tape:
            objective, loss, penalty = training_losses(self, x, y, valid)
            objective = self.optimizer.scale_loss(objective)  # for float16
        weights = self.model.trainable_weights
        gradients = tape.gradient(objective, [w.value for w in weights])
        self.optimizer.apply(gradients, weights)
        return loss, penalty

    def _begin_inference(self):
        self._training_metrics = [v.numpy() for v in self.metric_variables]
        self.reset_metrics()

    def _infer_batches(self, chunk, metrics):
        with self.tracing():
            losses, outputs = self._infer(
                chunk.x, chunk.y, tf.constant(chunk.valid), tf.constant(chunk.count)
            )
        return losses.numpy(), outputs.numpy(), metrics

    def _inference_results(self, metrics):
        return self.metric_results()

    def _end_inference(self):
        for variable, value in zip(self.metric_variables, self._training_metrics, strict=True):
            variable.assign(value)

    def _infer_chunk(self, xs, ys, valid, count):
        def body(i, losses, outputs):
            loss, predicted = evaluation_losses(self, xs[i], ys[i], valid[i])
            return i + 1, _set(losses, i, loss), _set(outputs, i, predicted)

        shape = (*xs.shape[:2], *self.model.output_shape[1:])
        start = (
            tf.constant(0),
            tf.zeros(valid.shape),
            tf.zeros(shape, self.model.outputs[0].dtype),
        )
        return tf.while_loop(lambda i, *_: i < count, body, start)[1:]

    def metric_results(self):
        return {metric.name: float(metric.result()) for metric in self.metrics}

    def reset_metrics(self):
        for metric in self.metrics:
            metric.reset_state()

    def sync_model(self):
        pass

    def read_model(self):
        pass

    @staticmethod
    def out_of_memory(error):
        return isinstance(error, tf.errors.ResourceExhaustedError)

    def peak_memory_mb(self):
        if self.platform == "cpu":
            return None
        return round(tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6, 1)


def _set(array, i, value):
    # A slice, which XLA writes in place; a scatter would be a loop over its elements.
    return ops.slice_update(array, [i] + [0] * (len(array.shape) - 1), value[None])
