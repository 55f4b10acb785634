"""Learning rates of their own for some variables, as a factor on the optimizer's.

For any Keras optimizer, plain or `Muon`; a wrapper around several optimizers would have several
learning rates, of which a schedule could only rule one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import keras

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.layers.keras_private import exported_name, index_of, stands_for, take_decay

DECAYS = ("weight_decay", "adam_weight_decay")  # attributes of Keras' optimizers; the second Muon's


def set_lr_groups(optimizer: keras.optimizers.Optimizer, groups: Mapping[str, float]) -> None:
    """Let ``optimizer`` multiply its learning rate for variables by the names in their paths.

    ``groups`` maps names of variables or layers ("beta", "logits") to factors; the first that
    matches counts. Update and weight decay are those of an optimizer with the multiplied learning
    rate. In place, before the optimizer is built; in a `.keras` file it is the plain one. Building
    it raises UserError for a name that no variable has.

    Example: ``set_lr_groups(optimizer, {"beta": 64})``, airbench's
    """
    optimizer.__class__ = _grouped(type(optimizer))  # the classes differ in methods only
    optimizer.lr_groups = dict(groups)


@cache
def _grouped(plain: type) -> type:
    class Grouped(plain):
        def build(self, variables):
            parts = [variable.path.split("/") for variable in variables]
            known = sorted({part for path in parts for part in path})
            for name in self.lr_groups:
                if name not in known:
                    raise UserError(
                        f"lr_groups has {name!r}, which no variable has in its path."
                        f"{nearest(name, known)} There are {', '.join(known)}."
                    )
            self._factors = [
                next((factor for name, factor in self.lr_groups.items() if name in path), 1.0)
                for path in parts
            ]
            super().build(variables)

        def _factor(self, variable):
            return self._factors[index_of(self, variable)]

        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate * self._factor(variable))

        def _apply_weight_decay(self, variables):
            decays = {k: v for k in DECAYS if (v := getattr(self, k, None)) is not None}
            for variable in variables:
                for key, decay in decays.items():  # Keras multiplies it by the one learning rate
                    setattr(self, key, decay * self._factor(variable))
                take_decay(plain, self, [variable])
            for key, decay in decays.items():
                setattr(self, key, decay)

    if name := exported_name(plain):
        stands_for(name)(Grouped)
    Grouped.__name__ = Grouped.__qualname__ = plain.__name__
    return Grouped
