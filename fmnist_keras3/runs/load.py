"""Reading back what a training left: models and runs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_keras3 import runtime
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.files import read_json
from fmnist_keras3.ground.leaves import leaf, named
from fmnist_keras3.runs import archive, checkpoint, checkpoints, rundir
from fmnist_keras3.runs.history import History, read_history, shown, summary_html
from fmnist_keras3.runs.locate import find_run
from fmnist_keras3.settings import TrainConfig

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Run:
    """A run directory: ``path``, ``config`` (dict), ``summary`` (dict), ``history`` (`History`).

    ``checkpoint``: whose weights `model` has; None for those of the training's end. `load_run`
    makes it.

    Example: ``load_run("runs/20261122-231500-baseline-jax").summary["test_accuracy"]``
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    history: History
    checkpoint: Path | None = None

    @cached_property
    def model(self) -> keras.Model:
        """The model, compiled, on the backend of this process; with its optimizer's state.

        Raises UserError where the checkpoint is damaged, or there is no model to load it into.
        """
        if self.checkpoint is None:
            return load_model(self.path / rundir.MODEL)
        if (self.path / rundir.MODEL).is_file():
            model = load_model(self.path / rundir.MODEL)
        else:
            model = self._built()
        _restore(model, self.checkpoint)
        return model

    def _built(self) -> keras.Model:
        """Build the model of a training by `fmnist train` that has not ended."""
        if "trainer" in self.config or "model" not in self.config:
            raise UserError(
                f"{self.path} has no {rundir.MODEL} yet, and its model is in your program. Build "
                f"it there, and type Trainer(run_dir={str(self.path)!r}, ...).fit(model, data, "
                "ckpt_path='last')"
            )
        runtime.prepare()
        try:
            data = self.summary["dataset"]
            shape, classes = tuple(data["image_shape"]), len(data["classes"])
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.path / rundir.SUMMARY} does not say what images the model takes."
            ) from error
        return leaf("model of settings")(TrainConfig(**self.config), shape, classes)

    def __repr__(self) -> str:
        keys = ("status", "model", "backend", "epochs", "test_accuracy")
        values = [f"{k}={shown(self.summary[k])}" for k in keys if k in self.summary]
        return f"Run({', '.join([repr(str(self.path)), *values])})"

    def _repr_html_(self) -> str:
        return summary_html(self.summary, self.path)


def load_run(path: str | Path, checkpoint: str | None = None) -> Run:
    """Read a run directory; raises UserError where ``path`` is none.

    ``checkpoint`` gives the model the weights of the "best", the "last", or one by its folder's
    name ("step-00000469"), also of a run that has not ended. Raises UserError where there is none.

    Example: ``load_run("runs/20261122-231500-baseline-jax", "best").model.predict(images)``
    """
    import yaml

    folder = find_run(Path(path))
    try:
        config = yaml.safe_load((folder / rundir.CONFIG).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{folder / rundir.CONFIG} cannot be read: {error}") from error
    summary = read_json(folder / rundir.SUMMARY) or {}
    found = None if checkpoint is None else _checkpoint(folder / rundir.CHECKPOINTS, checkpoint)
    return Run(folder, config, summary, read_history(folder, summary), found)


def _checkpoint(folder: Path, which: str) -> Path:
    """Return the checkpoint's folder; warns where another one than ``which`` has to do."""
    if which in ("last", "best"):

        def read(path: Path) -> Path:
            checkpoint.read_manifest(path)
            return path

        found, problems = checkpoint.find(folder, which, read)
        if problems:
            warnings.warn(f"{' '.join(problems)} Read instead: {found.name}.", stacklevel=3)
        return found
    if not checkpoints.is_name(which) or not (folder / which).is_dir():
        names = [path.name for path in checkpoints.saved(folder)]
        raise UserError(
            f"There is no checkpoint {which!r} in {folder}.{nearest(which, names)} "
            f"Checkpoints: best, last{''.join(f', {name}' for name in names)}."
        )
    return folder / which


def into_module(kind: Any, path: Path, arguments: dict[str, Any]) -> Any:
    """Return a Module of the class ``kind`` with the weights of a run or checkpoint at ``path``.

    ``arguments`` stand above those of the run. Raises UserError where they do not fit.
    """
    found = path
    if not checkpoints.is_name(path.name):
        found = _checkpoint(find_run(path) / rundir.CHECKPOINTS, "last")
    kept = checkpoint.read_manifest(found)["config"].get("module") or {}
    arguments = {**kept.get("arguments", {}), **arguments}
    try:
        module = kind(**arguments)
    except TypeError as error:
        raise UserError(
            f"{kind.__name__} cannot be made of {arguments}: {error}. Call "
            "self.save_hyperparameters() in __init__, or give the arguments here."
        ) from error
    named("engines.module_step:build_for")(module, kept.get("example") or {})
    _assign(module.trainable_variables + module.non_trainable_variables, found, ("model/",))
    return module


def _restore(model: keras.Model, path: Path) -> None:
    """Give ``model`` the weights of a checkpoint, and its optimizer the state.

    By their order: Keras may give the layers of a loaded model other paths. Raises UserError for
    another model's.
    """
    model.optimizer.build(model.trainable_variables)
    variables = model.trainable_variables + model.non_trainable_variables
    optimizer = checkpoint.read_manifest(path)["config"].get("optimizer")  # of a command: a name
    if (
        isinstance(optimizer, dict) and optimizer.get("class") == "OptimizerGroup"
    ):  # of BackboneFinetuning
        _assign(variables, path, ("model/",))
    else:
        _assign(variables + model.optimizer.variables, path, ("model/", "optimizer/"))


def _assign(variables: list[Any], path: Path, kept: tuple[str, ...]) -> None:
    state = [(n, a) for n, a in checkpoint.load(path).state if n.startswith(kept)]
    if [array.shape for _, array in state] != [tuple(v.shape) for v in variables]:
        raise UserError(f"{path} is of another model: the arrays have other shapes.")
    for (_, array), variable in zip(state, variables, strict=True):
        variable.assign(array.astype(variable.dtype))


def load_model(path: str | Path) -> keras.Model:
    """Load a ``.keras`` file, or a run directory's, with the fast layers in place of the plain.

    The model runs no code of the file's (Keras' safe mode). Raises UserError for a file that is
    missing, damaged, made of layers that are not Keras', or asks for more memory than its weights.

    Example: ``load_model("runs/20261122-231500-baseline-jax/model.keras").predict(images)``
    """
    path = Path(path)
    if path.is_dir():
        path = find_run(path) / rundir.MODEL
    if not path.is_file():
        raise UserError(
            f"There is no model {path}. Give a .keras file or a run directory; a run has its "
            f"{rundir.MODEL} when training has ended."
        )
    runtime.prepare()
    import keras

    from fmnist_keras3.layers import keras_private
    from fmnist_keras3.layers.fast import accelerate

    try:
        with keras_private.without_tensorflow():
            archive.check(path)
            model = keras.saving.load_model(path, safe_mode=True)
    except Exception as error:  # Keras raises what its readers raise: zip, HDF5, JSON, its own
        reason = archive.reason(error)
        raise UserError(f"{path} cannot be loaded as a Keras model: {reason}") from error
    return accelerate(model)
