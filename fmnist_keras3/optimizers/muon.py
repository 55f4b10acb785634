"""Muon that covers convolution kernels."""

from __future__ import annotations

import keras
from keras import ops

from fmnist_keras3.layers.keras_private import index_of, stands_for


@stands_for("keras.optimizers.Muon")
class Muon(keras.optimizers.Muon):
    """`keras.optimizers.Muon`, which leaves 4-D kernels to Adam, for these, too.

    A kernel ``[height, width, in, out]`` is a matrix ``[height * width * in, out]`` then, as in
    Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/). Its variables are those of the
    plain one, Adam's for kernels unused among them, so that a `.keras` file fits both.
    With ``renormalize`` a kernel has the norm of the root of ``out`` before each step, as in
    airbench94_muon.py of https://github.com/KellerJordan/cifar10-airbench.
    """

    def __init__(self, *args, renormalize=False, **options):
        super().__init__(*args, **options)
        self.renormalize = renormalize

    def update_step(self, gradient, variable, learning_rate):
        if len(variable.shape) != 4:
            super().update_step(gradient, variable, learning_rate)
            return
        m = self.momentums[index_of(self, variable)]
        self.assign_add(m, ops.add(gradient, m * (self.momentum - 1)))
        g = ops.add(gradient, self.momentum * m) if self.nesterov else ops.convert_to_tensor(m)
        matrix = ops.reshape(g, (-1, variable.shape[-1]))
        update = self.zeropower_via_newtonschulz5(matrix, self.ns_steps)
        update = self.lr_adjust(learning_rate * update)
        update = ops.reshape(update, variable.shape)
        if self.renormalize:
            norm = ops.sqrt(ops.sum(ops.square(variable)))
            update += variable * (1 - variable.shape[-1] ** 0.5 / (norm + 1e-7))
        self.assign_sub(variable, update)
