"""Averages of the weights, kept beside them: EMA, stochastic weight averaging, look-ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.lightning import explained
from fmnist_keras3.optimizers import inner_optimizer
from fmnist_keras3.settings import check_arguments
from fmnist_keras3.training.callback import Callback

if TYPE_CHECKING:
    from fmnist_keras3.training.view import SessionView


class WeightAveraging(Callback):
    """The base: a subclass says which share of the weights goes into the average at each step.

    Every validation measures both: ``val_loss`` and so on of the weights that are trained,
    ``val_averaged_loss`` of the average. In the end the model, and model.keras, hold the average,
    and model_raw.keras the weights themselves; checkpoints hold both. BatchNormalization's
    statistics are taken anew for the average, from up to 100 training batches.

    Example: ``class My(WeightAveraging): shares = lambda self, fit, steps: np.float32(steps > 9)``
    """

    role = "averaging"
    requires = frozenset({"averages"})

    def shares(self, fit: SessionView, steps: np.ndarray) -> np.ndarray:
        """Return the share of the new weights in the average after ``steps`` (0-based).

        Float32 in 0..1; must follow from the steps alone, or a resume would not be exact.
        """
        raise NotImplementedError(f"{type(self).__name__} must define shares()")

    def pulls(self, fit: SessionView, steps: np.ndarray) -> np.ndarray | None:
        """Return the share of the average in the weights after ``steps``; None if it has none.

        Float32 in 0..1, from the steps alone like `shares`.
        """
        return None

    def learning_rates(self, fit: SessionView, steps: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """Return the learning rates to use in place of the schedule's ``rates``, float32."""
        return rates

    def began(self, fit: SessionView) -> bool:
        """Tell whether there is an average yet."""
        return bool(self.shares(fit, np.arange(fit.position.step)).any())


class EMAWeightAveraging(WeightAveraging):
    """Keep an exponential moving average of the weights (Polyak & Juditsky 1992).

    After ``update_every_n_steps`` optimizer steps each, from ``update_starting_at_step`` or
    ``update_starting_at_epoch`` on: ``average = decay * average + (1 - decay) * weights``, with
    ``decay`` in 0..1, below 1. With ``use_warmup`` the decay of the t-th update is at most
    (1 + t) / (10 + t), so that short trainings forget their first weights, too. Raises UserError
    for values outside their range.

    Example: ``Trainer(callbacks=[EMAWeightAveraging(decay=0.999)])``
    """

    @explained
    def __init__(
        self,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        use_warmup: bool = True,
    ) -> None:
        check_arguments(EMAWeightAveraging, {"decay": decay})
        if update_every_n_steps < 1:
            raise UserError(
                f"update_every_n_steps is {update_every_n_steps}; it must be at least 1."
            )
        if None not in (update_starting_at_step, update_starting_at_epoch):
            raise UserError("Give update_starting_at_step or update_starting_at_epoch, not both.")
        self.decay, self.use_warmup = decay, use_warmup
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def _updates(self, fit: SessionView, done: np.ndarray) -> np.ndarray:
        """Return how many updates there are within the first ``done`` steps."""
        every = self.update_every_n_steps
        start = self.update_starting_at_step or 0
        if self.update_starting_at_epoch is not None:
            start = self.update_starting_at_epoch * fit.steps_in_epoch
        before = _optimizer_steps(fit, max(start, 1) - 1) // every
        return np.maximum(0, _optimizer_steps(fit, done) // every - before)

    def shares(self, fit, steps):
        t = self._updates(fit, steps + 1)
        decay = np.minimum(self.decay, t / (9.0 + t)) if self.use_warmup else self.decay
        shares = np.where(t == 1, 1.0, 1.0 - decay)
        return np.where(t > self._updates(fit, steps), shares, 0.0).astype(np.float32)

    def began(self, fit):
        return bool(self._updates(fit, np.array(fit.position.step)) > 0)


class StochasticWeightAveraging(WeightAveraging):
    """Average the weights at the ends of the last epochs (Izmailov et al. 2018).

    From the epoch ``swa_epoch_start`` on (a number, or a fraction of ``max_epochs``) the learning
    rate goes to ``swa_lrs`` within ``annealing_epochs``, by ``annealing_strategy`` "cos" or
    "linear", and stays there; with ``swa_lrs`` None it follows the schedule. Raises UserError for
    values outside their range.

    Example: ``Trainer(callbacks=[StochasticWeightAveraging(swa_lrs=1e-3)])``
    """

    @explained
    def __init__(
        self,
        swa_lrs: float | None = None,
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: str = "cos",
    ) -> None:
        given = {"swa_lrs": swa_lrs, "swa_epoch_start": swa_epoch_start}
        check_arguments(StochasticWeightAveraging, given)
        if annealing_epochs < 0:
            raise UserError(f"annealing_epochs is {annealing_epochs}; it must be at least 0.")
        if annealing_strategy not in ("cos", "linear"):
            raise UserError(
                f"annealing_strategy is {annealing_strategy!r}; it must be cos or linear."
            )
        self.swa_lrs, self.swa_epoch_start = swa_lrs, swa_epoch_start
        self.annealing_epochs, self.annealing_strategy = annealing_epochs, annealing_strategy

    def setup(self, fit):
        if self.swa_lrs is not None and len(fit.engine.step.phases) > 1:
            raise UserError(
                "swa_lrs is the rate of one optimizer, and this Module has several. Leave it out."
            )
        if isinstance(self.swa_epoch_start, float) and fit.endless:
            raise UserError("swa_epoch_start is a fraction, of max_epochs -1. Give an epoch.")
        start = self._start(fit)
        if start >= fit.max_epochs:
            raise UserError(
                f"Stochastic weight averaging begins after epoch {start}, but there are "
                f"{fit.max_epochs} epochs. Give a smaller swa_epoch_start, or train longer."
            )

    def _start(self, fit: SessionView) -> int:
        start = self.swa_epoch_start
        return int(start * fit.max_epochs) if isinstance(start, float) else start

    def shares(self, fit, steps):
        epochs, past = np.divmod(steps + 1, fit.steps_in_epoch)
        averaged = np.maximum(1, epochs - self._start(fit))
        ends = (past == 0) & (epochs > self._start(fit))
        return np.where(ends, 1.0 / averaged, 0.0).astype(np.float32)

    def learning_rates(self, fit, steps, rates):
        if self.swa_lrs is None:
            return rates
        start = self._start(fit) * fit.steps_in_epoch
        first = float(fit.learning_rates(np.array([start]))[0])
        way = (steps - start + 1) / max(1, self.annealing_epochs * fit.steps_in_epoch)
        way = np.clip(way, 0.0, 1.0)
        if self.annealing_strategy == "cos":
            way = 0.5 * (1 - np.cos(np.pi * way))
        annealed = first + way * (self.swa_lrs * fit.position.lr_scale - first)
        return np.where(steps < start, rates, annealed).astype(np.float32)

    def began(self, fit):
        return fit.position.step >= (self._start(fit) + 1) * fit.steps_in_epoch


class Lookahead(WeightAveraging):
    """Let slow weights follow those that are trained, which begin again there (Zhang et al. 2019).

    After ``every_n_steps`` optimizer steps each, ``slow = slow + alpha * (weights - slow)`` and
    ``weights = slow``. ``anneal`` lets alpha fall from 1 to ``alpha`` with the cube of the part of
    the training that is done, as airbench does (with ``alpha=1 - 0.95**5``). The slow weights are
    the average that is measured and kept. Raises UserError for values outside their range.

    Example: ``Trainer(callbacks=[Lookahead(every_n_steps=5, alpha=0.5)])``
    """

    def __init__(self, every_n_steps: int = 5, alpha: float = 0.5, anneal: bool = False) -> None:
        given = {"every_n_steps": every_n_steps, "alpha": alpha, "anneal": anneal}
        check_arguments(Lookahead, given)
        self.every_n_steps, self.alpha, self.anneal = every_n_steps, alpha, anneal

    def setup(self, fit):
        if self.anneal and fit.endless:
            raise UserError("anneal goes by the length of the training. Give max_epochs.")

    def on_fit_start(self, fit):
        if fit.position.step == 0:
            fit.engine.restart_averages()

    def shares(self, fit, steps):
        total = min(fit.max_epochs * fit.steps_in_epoch, fit.max_steps or np.inf)
        done = np.minimum((steps + 1) / total, 1.0) ** 3 if self.anneal else 1.0
        alpha = 1 - (1 - self.alpha) * done
        return np.where(self._due(fit, steps), alpha, 0.0).astype(np.float32)

    def pulls(self, fit, steps):
        return self._due(fit, steps).astype(np.float32)

    def _due(self, fit: SessionView, steps: np.ndarray) -> np.ndarray:
        done = _optimizer_steps(fit, steps + 1)
        return (done % self.every_n_steps == 0) & (done > _optimizer_steps(fit, steps))

    def began(self, fit):
        return bool(_optimizer_steps(fit, np.array(fit.position.step)) >= self.every_n_steps)


def _optimizer_steps(fit: SessionView, batches: Any) -> Any:
    """Return how many steps the optimizer makes within the first ``batches`` of the training."""
    own = inner_optimizer(fit.engine.optimizer).gradient_accumulation_steps or 1
    return fit.accumulation.updates(batches) // own
