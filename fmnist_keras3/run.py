"""Reading back what a training left: models and runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_keras3 import archive, runtime
from fmnist_keras3.errors import UserError
from fmnist_keras3.history import History, shown, summary_html
from fmnist_keras3.training import rundir

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Run:
    """A run directory: ``path``, ``config`` (dict), ``summary`` (dict), ``history`` (`History`)."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    history: History

    @cached_property
    def model(self) -> keras.Model:
        """The final model, compiled, on the backend of this process."""
        return load_model(self.path / rundir.MODEL)

    def __repr__(self) -> str:
        keys = ("status", "model", "backend", "epochs", "test_accuracy")
        values = [f"{k}={shown(self.summary[k])}" for k in keys if k in self.summary]
        return f"Run({', '.join([repr(str(self.path)), *values])})"

    def _repr_html_(self) -> str:
        return summary_html(self.summary, self.path)


def load_run(path: str | Path) -> Run:
    """Read a run directory; raises UserError where ``path`` is none.

    Example: ``load_run("runs/20261122-231500-baseline-jax").model.predict(images)``
    """
    import yaml

    folder = rundir.find_run(Path(path))
    try:
        config = yaml.safe_load((folder / rundir.CONFIG).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{folder / rundir.CONFIG} cannot be read: {error}") from error
    summary = rundir.read_json(folder / rundir.SUMMARY) or {}
    return Run(folder, config, summary, rundir.read_history(folder, summary))


def load_model(path: str | Path) -> keras.Model:
    """Load a ``.keras`` file, or a run directory's, with the fast layers in place of the plain.

    The model runs no code of the file's (Keras' safe mode). Raises UserError for a file that is
    missing, damaged, made of layers that are not Keras', or asks for more memory than its weights.
    """
    path = Path(path)
    if path.is_dir():
        path = rundir.find_run(path) / rundir.MODEL
    if not path.is_file():
        raise UserError(
            f"There is no model {path}. Give a .keras file or a run directory; a run has its "
            f"{rundir.MODEL} when training has ended."
        )
    runtime.prepare()
    import keras

    from fmnist_keras3.models.layers import accelerate

    try:
        with runtime.keras_without_tensorflow():
            archive.check(path)
            model = keras.saving.load_model(path, safe_mode=True)
    except Exception as error:  # Keras raises what its readers raise: zip, HDF5, JSON, its own
        reason = archive.reason(error)
        raise UserError(f"{path} cannot be loaded as a Keras model: {reason}") from error
    return accelerate(model)
