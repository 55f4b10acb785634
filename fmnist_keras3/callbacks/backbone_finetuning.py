"""Trains a new head on a backbone first, and the backbone with it from an epoch on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.training.callback import Callback

if TYPE_CHECKING:
    import keras

    from fmnist_keras3.optimizers.group import OptimizerGroup


class BackboneFinetuning(Callback):
    """Leave the weights of ``backbone`` as they are for so many epochs, and train them from then.

    ``unfreeze_backbone_at_epoch``: epochs before that, at least 0. ``optimizer``: of the backbone,
    which it meets without any state; its learning rate follows the schedule of the others' in
    proportion. A `Module` may give it in `configure_optimizers` instead:
    ``{"head": (optimizer, layers), "backbone": (optimizer, layers)}``, for one `training_step`.
    ``backbone``: an attribute of the model, or a layer's name, or several.
    While they wait no gradient of these weights is computed; dropout and batch normalisation act
    as in any training, as in Lightning, unless the model calls them with ``training=False``.
    Raises UserError where there is no such layer, or no optimizer for it.

    Example: ``Trainer(callbacks=[BackboneFinetuning(3, keras.optimizers.Adam(1e-4))])``
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        optimizer: keras.optimizers.Optimizer | None = None,
        *,
        backbone: str | Sequence[str] = "backbone",
    ) -> None:
        epoch = unfreeze_backbone_at_epoch
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise UserError(
                f"unfreeze_backbone_at_epoch is {epoch!r}; it must be a whole number, at least 0."
            )
        self.unfreeze_backbone_at_epoch, self.optimizer = epoch, optimizer
        self.backbone = [backbone] if isinstance(backbone, str) else list(backbone)
        self._session: Any = None

    def prepare_model(self, session):
        if self._session is not session:
            self._session, self._own = session, session.model.optimizer
            self._group, self._parts = self._grouped(session.model)
            self._frozen = self.unfreeze_backbone_at_epoch > 0
            session.at_end(setattr, self, "_session", None)
        group = self._group.freezing(*(self._parts if self._frozen else ()))
        session.set(session.model, "optimizer", group)

    def on_load_checkpoint(self, fit, manifest):
        if self._change_to(fit.position.epoch):
            fit.recompile()

    def on_train_epoch_end(self, fit):
        ended = fit.position.step_in_epoch == 0  # and not cut short
        if ended and self._change_to(fit.position.epoch):
            fit.recompile()

    def on_fit_end(self, fit):
        fit.model.optimizer = self._own  # which model.keras is to hold

    def _change_to(self, epoch: int) -> bool:
        """Tell whether, after so many epochs, the backbone waits otherwise than it does."""
        before = self._frozen
        self._frozen = epoch < self.unfreeze_backbone_at_epoch
        return self._frozen != before

    def _grouped(self, model: keras.Model) -> tuple[OptimizerGroup, list[str]]:
        """Return the optimizers of head and backbone, and the names of the backbone's."""
        from fmnist_keras3.optimizers.group import OptimizerGroup, make_group

        weights = self._weights(model)
        named, given = " and ".join(self.backbone), model.optimizer
        if isinstance(given, OptimizerGroup):
            if self.optimizer is not None:
                raise UserError(
                    "BackboneFinetuning has an optimizer, and configure_optimizers gives several. "
                    "Leave one of them out."
                )
            parts = {p.name: {id(v) for v in p.variables} for p in given.parts}
            inside = [name for name, mine in parts.items() if mine <= weights]
            mixed = [n for n, mine in parts.items() if n not in inside and mine & weights]
            if not given.shared or mixed or len(inside) == len(parts):
                raise UserError(
                    f"BackboneFinetuning needs optimizers of one loss, some for {named} and some "
                    "for the other layers. Type def training_step(self, batch), and return "
                    '{"head": (optimizer, layers), "backbone": (optimizer, layers)} from '
                    "configure_optimizers."
                )
            return given, inside
        if self.optimizer is None:
            raise UserError(
                f"BackboneFinetuning has no optimizer for {named}. Type "
                f"BackboneFinetuning({self.unfreeze_backbone_at_epoch}, "
                "keras.optimizers.Adam(1e-4))"
            )
        given.build(model.trainable_variables)  # for the fits to come, of all
        both = [[], []]
        for variable in model.trainable_variables:
            both[id(variable) in weights].append(variable)
        if not both[0]:
            raise UserError(f"There is nothing to train beside {named}. Name a part of the model.")
        optimizers = {"head": (given, both[0]), "backbone": (self.optimizer, both[1])}
        return make_group(optimizers, model, shared=True), ["backbone"]

    def _weights(self, model: keras.Model) -> set[int]:
        """Return what tells the backbone's trainable weights."""
        layers = {layer.name: layer for layer in model.layers}
        found: set[int] = set()
        for name in self.backbone:
            layer = layers.get(name, getattr(model, name, None))
            if layer is None or not hasattr(layer, "trainable_variables"):
                raise UserError(
                    f"{model.name} has no layer {name!r}.{nearest(name, layers)} Layers: "
                    f"{', '.join(layers)}. Type backbone={next(iter(layers))!r}"
                )
            found |= {id(v) for v in layer.trainable_variables}
        if not found:
            raise UserError(
                f"{' and '.join(self.backbone)} has no weights to train. Leave trainable as it is: "
                "BackboneFinetuning itself lets them wait."
            )
        return found
