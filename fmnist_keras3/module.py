"""The Module: a Keras model with a training step of its own, in Lightning's words."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import keras

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.ground.lightning import MODULE_HOOKS, check_hooks
from fmnist_keras3.ground.user_code import explained_at
from fmnist_keras3.optimizers.group import OptimizerGroup, make_group


class Logged(NamedTuple):
    """A value that a step logged, a scalar tensor, and where it is to appear."""

    value: Any
    on_step: bool
    on_epoch: bool
    prog_bar: bool


@dataclass
class Step:
    """The step that runs: what it logged, by name."""

    name: str
    logged: dict[str, Logged] = field(default_factory=dict)


_running: contextvars.ContextVar[Step | None] = contextvars.ContextVar("_running", default=None)


@contextlib.contextmanager
def running(name: str) -> Iterator[Step]:
    """Collect what `Module.log` is given meanwhile, by the step ``name``."""
    token = _running.set(step := Step(name))
    try:
        yield step
    finally:
        _running.reset(token)


def check_scalar(value: Any, what: str) -> None:
    """Raise UserError for what is no scalar; ``what`` says what was done with it."""
    shape = getattr(value, "shape", None)
    if value is None or isinstance(value, (str, dict, list, tuple)):
        raise UserError(f"{what} {value!r}; it must be a scalar tensor.")
    if shape is not None and len(shape):
        raise UserError(
            f"{what} a tensor of the shape {tuple(shape)}; it must be a scalar. Type "
            "keras.ops.mean(...)"
        )


class Module(keras.Model):
    """A `keras.Model` that says in `training_step` what is computed on a batch.

    Steps are written with `keras.ops` and `keras.random`, for every backend; a whole epoch of them
    is compiled. ``batch`` is what the data gives: ``(x, y)``, ``(x, y, weight)`` or ``x`` alone.
    Dropout and batch normalisation train in `training_step`, and in no other, unless a layer is
    called with ``training``.
    The penalties of regularisers and `add_loss` are added to the loss of the training. ``options``
    are those of `keras.Model` (``name``, ``dtype``). Raises UserError for what a step cannot do,
    with its line.

    Example: ``class Mine(Module): training_step = lambda self, batch: self(batch[0])[0, 0]``
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        # `keras.Model` drops the arguments here, and its files would hold the defaults.
        return keras.layers.Layer.__new__(cls, *args, **options)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_hooks(vars(cls), MODULE_HOOKS)

    def training_step(self, batch: Any) -> Any:
        """Return the loss, a scalar tensor, or a dict that has it as "loss".

        With several optimizers it takes the name of one: ``training_step(self, batch, optimizer)``
        is called for each, in their order, and sees the weights that the one before left.
        """
        raise NotImplementedError

    def validation_step(self, batch: Any) -> Any:
        """Log what is measured, and return the loss, or None; by default as in `training_step`.

        Names may begin with ``val_``, as in Lightning: callbacks see ``val_loss`` either way.
        """
        return self.training_step(batch)

    def test_step(self, batch: Any) -> Any:
        """As `validation_step`, which it is by default, for `Trainer.test`."""
        return self.validation_step(batch)

    def predict_step(self, batch: Any) -> Any:
        """Return the outputs ``[B, ...]`` for inputs; by default those of calling the module."""
        return self(batch)

    def configure_optimizers(self) -> Any:
        """Return an optimizer, or ``(optimizer, schedule)``, or a dict of several; called once.

        A schedule is a name that `Trainer` knows ("cosine"). The dict maps names to
        ``(optimizer, layers or variables)``, or ``(optimizer, layers or variables, every)`` for one
        that makes an update at each ``every``-th step only. Where `training_step` takes no name,
        all update by its one loss, and their rates follow a schedule in proportion.
        """
        raise NotImplementedError

    def log(
        self,
        name: str,
        value: Any,
        *,
        on_step: bool | None = None,
        on_epoch: bool = True,
        prog_bar: bool = False,
    ) -> None:
        """Record a scalar ``value`` in a step, or in a hook of an epoch.

        ``on_epoch``: its mean over the examples of the epoch, for records, callbacks' ``monitor``
        and loggers. ``on_step``: also in step records, by default in training. ``prog_bar``: on the
        progress bar, too. What a hook logs, callbacks see until the next steps. Raises UserError
        where nothing is being trained or measured.
        """
        step = _running.get()
        if step is not None:
            check_scalar(value, f"logs {name!r} as")
            training = step.name == "training_step" if on_step is None else on_step
            step.logged[name] = Logged(value, training, on_epoch, prog_bar)
        elif (fit := self._fit) is not None:
            fit.logs[name] = float(keras.ops.convert_to_numpy(value))
        else:
            raise UserError(
                f"log({name!r}, ...) outside of a training. Call it in a step or a hook."
            )

    def log_dict(self, values: dict[str, Any], **options: Any) -> None:
        """Record several values, as `log` does each."""
        for name, value in values.items():
            self.log(name, value, **options)

    def on_fit_start(self) -> None:
        """Before the first step of a fit."""

    def on_fit_end(self) -> None:
        """After the last step, also after an interrupt."""

    def on_train_epoch_start(self) -> None:
        """Before the first step of an epoch."""

    def on_train_epoch_end(self) -> None:
        """After an epoch's last step and its validation."""

    def on_validation_epoch_start(self) -> None:
        """Before a validation."""

    def on_validation_epoch_end(self) -> None:
        """After a validation."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before a checkpoint is written: ``checkpoint`` may get more JSON values, by new names."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """When training goes on from a checkpoint, which has what `on_save_checkpoint` gave it."""

    _fit: Any = None  # the view of the training that is under way
    _trainer: Any = None  # whose it is
    schedule: str | None = None  # that `configure_optimizers` gave

    @property
    def trainer(self) -> Any:
        """The Trainer of the fit that is under way."""
        self._now("trainer")
        return self._trainer

    @property
    def current_epoch(self) -> int:
        """The number of epochs completed; outside of steps."""
        return self._now("current_epoch").position.epoch

    @property
    def global_step(self) -> int:
        """The number of steps completed; outside of steps."""
        return self._now("global_step").position.step

    def _now(self, name: str) -> Any:
        if (step := _running.get()) is not None:
            raise UserError(
                f"{step.name} reads self.{name}. A step is compiled once for all epochs, so it "
                "would keep the value of now. Read it in a hook, such as on_train_epoch_start, and "
                "assign it to a keras.Variable that the step reads."
            )
        if self._fit is None:
            raise UserError(f"self.{name} is there while Trainer.fit runs only.")
        return self._fit

    def save_hyperparameters(self) -> None:
        """Keep the arguments of ``__init__``, where this is called, as `hparams`.

        They are written into the run, and `load_from_checkpoint` makes the module of them.
        """
        frame = inspect.currentframe()
        given = dict(frame.f_back.f_locals) if frame is not None and frame.f_back else {}
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        self.hparams = SimpleNamespace(**{name: given[name] for name in names if name in given})

    @classmethod
    def load_from_checkpoint(cls, path: str | Path, **arguments: Any) -> Module:
        """Return a module with the weights of a run or checkpoint.

        ``path`` is a run's or checkpoint's folder; ``arguments`` of ``__init__`` stand above those
        that `save_hyperparameters` kept. Raises UserError where the weights do not fit.
        """
        return named("runs.load:into_module")(cls, Path(path), arguments)

    def set_optimizers(self) -> None:
        """Call `configure_optimizers`, unless it was called before; the layers are built."""
        if getattr(self, "optimizer", None) is not None:
            return
        with explained_at(type(self), "configure_optimizers"):
            found, schedule = self._configured()
        self.optimizer, self.schedule = found, schedule

    def _configured(self) -> tuple[Any, str | None]:
        """Return what `configure_optimizers` gives: an optimizer or a group, and a schedule."""
        found, schedule = self.configure_optimizers(), None
        if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], (str, type(None))):
            found, schedule = found
        if isinstance(found, dict):
            takes_name = len(inspect.signature(self.training_step).parameters) > 1
            found = make_group(found, self, shared=not takes_name)
        if not isinstance(found, (keras.optimizers.Optimizer, OptimizerGroup)):
            raise UserError(
                f"returns {found!r}; it must return a Keras optimizer, (optimizer, 'cosine'), or a "
                "dict of names to (optimizer, layers). Type return keras.optimizers.Adam(1e-3)"
            )
        if schedule is not None:
            named("training.schedules:check_schedule")(schedule)
        return found, schedule

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Return the module that a `.keras` file describes.

        Keras adds ``trainable`` and ``dtype`` to the arguments, which not each ``__init__`` takes.
        """
        parameters = inspect.signature(cls.__init__).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            config = {name: value for name, value in config.items() if name in parameters}
        return super().from_config(config, custom_objects)

    def compile(self, *args: Any, **options: Any) -> None:
        """Raise UserError: loss, metrics and optimizers are those of the steps."""
        raise UserError(
            f"{type(self).__name__} is a Module, which is not compiled: training_step returns the "
            "loss, and configure_optimizers the optimizer. Leave compile out."
        )

    def train_step(self, *args: Any, **options: Any) -> Any:
        """Raise UserError: `keras.Model.fit` is not what trains a Module."""
        raise UserError(
            f"{type(self).__name__} is a Module: train it with Trainer(...).fit(module, data)."
        )
