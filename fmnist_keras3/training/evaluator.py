"""The verbs that do not train: validate, test and predict."""

from __future__ import annotations

import contextlib
import functools
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from fmnist_keras3.data.datamodule import DataModule, as_array, limited
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.data.given import as_datamodule
from fmnist_keras3.engines.base import Engine
from fmnist_keras3.engines.module_step import make_ready
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.leaves import leaf
from fmnist_keras3.ground.lightning import explained
from fmnist_keras3.ground.tree import mapped
from fmnist_keras3.module import Module
from fmnist_keras3.runs import matching, rundir
from fmnist_keras3.runs.lock import locked
from fmnist_keras3.training import resume
from fmnist_keras3.training.arguments import Amount, batches
from fmnist_keras3.training.check_data import beginning, check_inputs, check_split, not_finite
from fmnist_keras3.training.logger import Loggers
from fmnist_keras3.training.loop import evaluate
from fmnist_keras3.training.prepare import prepare
from fmnist_keras3.training.programs import Programs
from fmnist_keras3.training.session import Session, owner
from fmnist_keras3.training.setup import make_feed, steps_in_memory
from fmnist_keras3.training.tta import TTA, parse_tta, scores

CHUNK_STEPS = {"cpu": 128}  # longest chunk; elsewhere a whole epoch may be one
PREDICT_BATCH = 128
_VERBS = {"validation": "validate", "test": "test"}


class Evaluator:
    """What a `Trainer` does besides `fit`; the arguments are the Trainer's."""

    callbacks: list[Any]
    loggers: Loggers
    limit_val_batches: Amount | None
    limit_test_batches: Amount | None
    label_smoothing: float
    deterministic: bool | str | None
    devices: int | str | None
    shard: str | None
    accumulate_grad_batches: int
    gradient_clip_val: float | None
    gradient_clip_algorithm: str
    on_nonfinite: str
    pipeline: str
    last_batch: str
    precision: str | None

    def __init__(self) -> None:
        self.programs = Programs()  # Trainers of one model may share one
        self._last_run: str | Path | None = None
        # The model that was fitted here to the end, what tells its weights, and its run.
        self._finished: tuple[keras.Model, int, Path] | None = None

    @explained
    def validate(
        self,
        model: keras.Model,
        data: Any,
        *,
        ckpt_path: str | Path | None = None,
        tta: str | None = None,
    ) -> dict[str, float]:
        """Return loss and metrics on the validation split of ``data``, or on all of its arrays.

        ``ckpt_path`` ("best", "last", or a folder, as for `fit`) is loaded into the model before.
        With test-time augmentation ``tta`` ("mirror", "shift:1", or both, see `training.tta`)
        besides these "loss_tta" and "accuracy_tta", of the mean of the outputs over the views.
        """
        examples = _examples(model, data, "validation", self.limit_val_batches)
        return self._outputs(model, examples, "validation", ckpt_path, tta)[0]

    @explained
    def test(
        self,
        model: keras.Model,
        data: Any,
        *,
        ckpt_path: str | Path | None = None,
        tta: str | None = None,
    ) -> dict[str, float]:
        """Return loss and metrics on the test split of ``data``; all as for `validate`.

        After a `fit` of ``model`` they are written into its run, too, with plots and the scores of
        the classes; `FitResult.report` makes a page of it all.
        """
        return self.test_outputs(model, data, ckpt_path=ckpt_path, tta=tta)[0]

    def test_outputs(
        self,
        model: keras.Model,
        data: Any,
        *,
        ckpt_path: str | Path | None = None,
        tta: str | None = None,
    ) -> tuple[dict[str, float], Any]:
        """Return what `test` does, and the model's outputs ``[N, ...]``, without ``tta``."""
        # Read once: a dataset that shuffles gives its examples in another order the next time.
        examples = _examples(model, data, "test", self.limit_test_batches)
        # Only of the weights that a run ended with and is there for, and not within a fit.
        now = (model, fingerprint(model)) if ckpt_path is None and owner(model) is None else None
        done = self._finished
        if done is None or done[:2] != now or not (run := done[2]).exists():
            return self._outputs(model, examples, "test", ckpt_path, tta)
        with locked(run):
            logs, outputs = self._outputs(model, examples, "test", None, tta)
            found = logs | self._raw_scores(model, examples, run / rundir.RAW_MODEL)
            names = examples[0].source.class_names
            record = leaf("test results")(run, found, examples[1], outputs, names)
            self.loggers.append(run, record, rundir.read_metrics(run / rundir.METRICS))
        return logs, outputs

    def _raw_scores(
        self, model: keras.Model, examples: tuple[DataModule, Split], path: Path
    ) -> dict[str, float]:
        """Return the test of the weights before averaging, by names with raw_; none without any."""
        if not path.exists():
            return {}
        average = model.get_weights()
        try:
            model.load_weights(path)  # needs no classes, so layers of the user's own will do
            logs, _ = self._outputs(model, examples, "test", None, None)
        finally:
            model.set_weights(average)
        return {f"raw_{name}": value for name, value in logs.items()}

    def _outputs(
        self,
        model: keras.Model,
        examples: tuple[DataModule, Split],
        split_name: str,
        ckpt_path: str | Path | None,
        tta: str | None,
    ) -> tuple[dict[str, float], Any]:
        views, (data, split) = parse_tta(tta), examples
        if views is not None and isinstance(model, Module):
            raise UserError("tta is for a compiled model. Leave it out, or predict with it.")
        first = beginning(split)
        check_split(model, first, split_name)
        if found := not_finite(first, split_name):
            raise UserError(f"{found} Leave these examples out, or mend them with np.nan_to_num.")
        with self._engine_of(model, _VERBS[split_name], data.train, data.batch_size) as engine:
            verb = _VERBS[split_name]
            logs, outputs = self._evaluate(engine, split, data.batch_size, ckpt_path, verb)
            if views is not None:
                mean = self._over_views(views, engine, split, data.batch_size, outputs)
                logs |= scores(model, split, mean)
        return logs, outputs

    @explained
    def predict(
        self,
        model: keras.Model,
        images: Any,
        *,
        ckpt_path: str | Path | None = None,
        tta: str | None = None,
    ) -> Any:
        """Return the outputs (logits) ``[N, ...]`` for ``images [N, H, W, C]``, raw pixels.

        Or for what else the model takes; several inputs or outputs come in its own structure.
        ``ckpt_path`` as for `validate`. With ``tta``, as for `test`, the mean of the outputs.
        """
        views = parse_tta(tta)
        if isinstance(images, DataModule):
            raise UserError("Give images to predict: trainer.predict(model, data.setup().test.x)")
        examples = Split(mapped(as_array, images), None)
        check_inputs(model, examples.x)
        size = min(PREDICT_BATCH, len(examples))
        with self._engine_of(model, "predict", examples, size) as engine:
            size = -(-size // engine.device.count) * engine.device.count
            _, outputs = self._evaluate(engine, examples, size, ckpt_path, "predict")
            if views is not None:
                outputs = self._over_views(views, engine, examples, size, outputs)
        return outputs

    def _over_views(
        self, views: TTA, engine: Engine, split: Split, batch_size: int, outputs: Any
    ) -> Any:
        def outputs_of(x: Any) -> Any:
            return self._evaluate(engine, Split(x, None), batch_size, None, "predict")[1]

        return views.mean(split.x, outputs, outputs_of)

    def _evaluate(
        self,
        engine: Engine,
        split: Split,
        batch_size: int,
        ckpt_path: str | Path | None,
        verb: str,
    ) -> tuple[dict[str, float], Any]:
        if ckpt_path is not None:
            if (session := owner(engine.model)) is not None and session.verb == "fit":
                raise UserError(
                    "ckpt_path would put other weights into a model that is being trained. Leave "
                    "it out, or wait until fit has ended."
                )
            run, which = rundir.locate(ckpt_path, self._last_run)
            found = resume.find(run, which or "last", engine)
            engine.import_state(matching.adopt(found.state, engine.export_state()))
        feed = make_feed(self.pipeline, split, engine, batch_size)
        try:
            return evaluate(engine, feed, batch_size, verb=verb)
        finally:
            feed.close()

    @contextlib.contextmanager
    def _engine_of(
        self, model: keras.Model, verb: str, split: Split, batch_size: int
    ) -> Iterator[Engine]:
        """Lend the engine of ``model``: of the fit that is under way, or a session of ``verb``."""
        session = owner(model)
        if session is not None and session.engine is not None:
            yield session.engine
            return
        with Session(model, verb) as session:
            yield self._engine_for(session, split, batch_size)

    def _engine_for(self, session: Session, split: Split, batch_size: int) -> Engine:
        """Return the engine of the session's model; its chunks are cut for batches of ``split``."""
        predicts = session.verb == "predict"
        make_ready(session.model, split.read(slice(1)), predicts=predicts)
        prepare(session, self)
        engine = self.programs.engine_for(session.model, split, self._engine_options())
        if self.precision not in (None, "32") and engine.device.kind == "cpu":
            warnings.warn(
                f"On a CPU the precision {self.precision} is slower than 32.",
                stacklevel=4,
            )
        engine.read_model()
        steps = -(-len(split) // batch_size)
        most = CHUNK_STEPS.get(engine.device.kind, steps)
        engine.chunk_steps = min(most, steps, steps_in_memory(split, batch_size))
        session.engine = engine
        return engine

    def _engine_options(self) -> dict[str, Any]:
        required = frozenset().union(*(callback.requires for callback in self.callbacks))
        return {
            "label_smoothing": self.label_smoothing,
            "deterministic": self.deterministic,
            "devices": self.devices,
            "shard": self.shard,
            "averaging": "averages" in required,
            "accumulation": self.accumulate_grad_batches > 1,
            "gradient_norms": "gradient norms" in required,
            "fill_last_batch": self.last_batch == "fill",
        }


def fingerprint(model: keras.Model) -> int:
    """Return a number that is another one when the model's weights are."""
    return functools.reduce(lambda crc, w: zlib.crc32(w.tobytes(), crc), model.get_weights(), 0)


def _examples(
    model: keras.Model, data: Any, name: str, limit: Amount | None
) -> tuple[DataModule, Split]:
    """Return data as a module, and its split ``name``; of arrays and datasets all examples."""
    if isinstance(data, DataModule):
        module = data.setup()
        split = module.validation if name == "validation" else module.test
    else:
        module = as_datamodule(data, 0.0, model)
        split = module.train
    if limit == 0:
        short = {"validation": "val"}.get(name, name)
        raise UserError(f"limit_{short}_batches is 0, which means no {name}. Leave it out.")
    count = 0 if split is None else batches(limit, -(-len(split) // module.batch_size))
    if split is None or count == 0:
        raise UserError(
            f"There is no {name} split in this data. Give a DataModule that has one "
            "(validation=0.1, test=(x, y)), or the arrays (x, y) themselves."
        )
    return module, limited(split, count, module.batch_size)
