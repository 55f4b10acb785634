"""A stopped training goes on to the same bits, wherever it was stopped and whatever was on."""

import contextlib
import csv
import json
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from everything import (
    EPOCHS,
    STEPS,
    At,
    built_model,
    data,
    everything_model,
    kill,
    last,
    terminate,
    trainer,
)

from fmnist_keras3 import Callback, ModelCheckpoint, SourceData, UserError
from fmnist_keras3.ground.errors import Interrupted
from fmnist_keras3.runs import checkpoint, checkpoints
from fmnist_keras3.runs.history import read_metrics


def without_times(record):
    return {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")}


def assert_same_run(path, straight):
    """Compare everything that a run leaves, but for the times."""
    here, there = last(path), last(straight)
    assert [name for name, _ in here.state] == [name for name, _ in there.state]
    for (name, a), (_, b) in zip(here.state, there.state, strict=True):
        assert a.dtype == b.dtype, name
        assert a.tobytes() == b.tobytes(), name
    for key in ("loss_sum", "examples", "step", "epoch", "step_in_epoch", "penalty"):
        assert here.manifest["position"][key] == there.manifest["position"][key], key
    for key in ("EarlyStopping", "ModelCheckpoint"):
        states = [json.dumps(found.manifest["callbacks"][key]) for found in (here, there)]
        # A step that was saved once more has "-1" behind its name.
        assert states[0].replace('-1"', '"') == states[1]
    runs = (path, straight)
    records = [[without_times(r) for r in read_metrics(p / "metrics.jsonl")] for p in runs]
    assert records[0] == records[1]
    lines = [(p / "metrics.csv").read_text().splitlines() for p in runs]
    rows = [[without_times(row) for row in csv.DictReader(text)] for text in lines]
    assert rows[0] == rows[1]
    summaries = [json.loads((p / "summary.json").read_text()) for p in runs]
    for key in ("status", "epochs", "steps", "best_epoch", "validation_loss"):
        assert summaries[0][key] == summaries[1][key], key
    assert len(summaries[0]["epoch_seconds"]) == len(summaries[1]["epoch_seconds"])
    models = [keras.saving.load_model(p / "model.keras").get_weights() for p in runs]
    for a, b in zip(*models, strict=True):
        assert np.array_equal(a, b)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that was never stopped."""
    path = tmp_path_factory.mktemp("straight") / "run"
    assert trainer(path).fit(everything_model(), data()).status == "completed"
    return path


# Before the last step of an epoch, at it, after the first of one, at the very last, in validations.
PLACES = [1, 5, 6, 8, 20, -5, -20]


@pytest.mark.parametrize("action", [terminate, kill])
@pytest.mark.parametrize("step", PLACES)
@pytest.mark.filterwarnings("ignore:Nothing is left to train")
def test_a_resumed_run_equals_a_straight_one(straight, tmp_path, step, action):
    stop_and_resume(tmp_path / "run", step, action, straight, "resident")


@pytest.mark.parametrize(("step", "action"), [(8, terminate), (-5, terminate), (8, kill)])
def test_a_resumed_stream_equals_a_straight_run(straight, tmp_path, step, action):
    stop_and_resume(tmp_path / "run", step, action, straight, "stream")


class Known:
    """Examples by their numbers, whose labels come with them alone."""

    identity = "known"

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def gather(self, indices):
        return self.x[indices], self.y[indices]


@pytest.mark.parametrize(("step", "action"), [(8, terminate), (8, kill)])
def test_a_resumed_source_equals_a_straight_run(straight, tmp_path, step, action):
    """The examples of the straight run, read by their numbers as batches need them."""
    before = data().setup()

    def of_source():
        train, validation = (Known(s.x, s.y) for s in (before.train, before.validation))
        options = {"batch_size": 32, "augment": "flip,crop,erase"}
        return SourceData(train, validation=validation, **options)

    stop_and_resume(tmp_path / "run", step, action, straight, "auto", of_source)


def stop_and_resume(path, step, action, straight, pipeline, data=data):
    first = trainer(path, At(step, action), pipeline=pipeline)
    if action is kill:
        with pytest.raises(Interrupted):
            first.fit(everything_model(), data())
        assert last_or_none(path) < abs(step)  # something is lost, and made again
    else:
        result = first.fit(everything_model(), data())
        assert (result.status, result.reason) == ("interrupted", "SIGTERM")
        assert result.summary["steps"] == last(path).manifest["step"] == abs(step)
    again = trainer(path, pipeline=pipeline)
    result = again.fit(everything_model(), data(), ckpt_path="auto")
    assert result.status == "completed"
    assert_same_run(path, straight)


def last_or_none(path):
    found = checkpoints.pointed(path / "checkpoints", "last")
    return checkpoint.load(found).manifest["step"] if found else 0


def test_many_stops_equal_none(straight, tmp_path):
    for step in (3, 7, 12, 13, 19):
        trainer(tmp_path / "run", At(step, terminate)).fit(
            everything_model(), data(), ckpt_path="auto"
        )
    trainer(tmp_path / "run").fit(everything_model(), data(), ckpt_path="last")
    assert_same_run(tmp_path / "run", straight)


def test_a_resume_from_an_earlier_checkpoint_forgets_what_came_after(straight, tmp_path):
    path = tmp_path / "run"
    keep_all = ModelCheckpoint(every_n_train_steps=2, save_top_k=9)
    trainer(path, keep_all).fit(everything_model(), data())
    earlier = next(p for p in checkpoints.saved(path / "checkpoints") if p.name.endswith("05"))
    # Killed before its first checkpoint, the resumed run is one that goes on from there.
    with pytest.raises(Interrupted):
        trainer(path, At(6, kill)).fit(everything_model(), data(), ckpt_path=earlier)
    assert last(path).path == earlier
    assert max(r["step"] for r in read_metrics(path / "metrics.jsonl")) == 6
    trainer(path).fit(everything_model(), data(), ckpt_path="last")
    assert_same_run(path, straight)


def test_best_goes_on_from_the_best(tmp_path):
    path = tmp_path / "run"
    result = trainer(path, max_epochs=3).fit(everything_model(), data())
    best = checkpoint.load(result.best_checkpoint)
    again = trainer(path, At(best.manifest["step"] + 1, terminate), max_epochs=9)
    result = again.fit(everything_model(), data(), ckpt_path="best")
    assert result.summary["steps"] == best.manifest["step"] + 1


def test_nothing_left_is_said_and_more_epochs_go_on(straight, tmp_path):
    path = tmp_path / "run"
    trainer(path, schedule=None).fit(everything_model(), data())
    with pytest.warns(UserWarning, match=r"Nothing is left to train: the run has its 4 epochs"):
        result = trainer(path, schedule=None).fit(everything_model(), data(), ckpt_path="last")
    assert result.status == "completed"
    assert result.summary["steps"] == STEPS * EPOCHS
    more = trainer(path, schedule=None, max_epochs=EPOCHS + 1)
    assert more.fit(everything_model(), data(), ckpt_path="last").summary["epochs"] == EPOCHS + 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 16}, "batch_size 32; it is 16 now"),
        ({"augment": "flip"}, "augment"),
        ({"validation": 0.1}, "training examples 160; it is 180 now"),
    ],
)
def test_data_that_changed_is_named(straight, options, words):
    before = {p: p.read_bytes() for p in straight.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=words):
        trainer(straight).fit(everything_model(), data(**options), ckpt_path="last")
    assert before == {p: p.read_bytes() for p in straight.rglob("*") if p.is_file()}


def test_another_optimizer_starts_afresh_with_a_warning(tmp_path):
    path = tmp_path / "run"
    trainer(path, max_epochs=1, schedule=None).fit(everything_model(), data())
    weights = dict(last(path).state)
    with pytest.warns(UserWarning, match=r"optimizer is another one .*adam_w.* starts afresh"):
        result = trainer(path, max_steps=6, schedule=None).fit(
            built_model(keras.optimizers.SGD(0.0)), data(), ckpt_path="last"
        )
    assert result.summary["steps"] == 6
    after = dict(last(path).state)
    assert np.array_equal(
        weights["model/everything/hidden/kernel"], after["model/everything/hidden/kernel"]
    )
    assert next(a for name, a in after.items() if name.endswith("/iteration")) == 1


def test_a_second_fit_of_a_model_begins_with_the_learning_rate_of_the_first(tmp_path):
    model = everything_model()
    for name in ("one", "two"):
        result = trainer(tmp_path / name, max_epochs=1).fit(model, data())
        rates = [r["lr"] for r in result.history if r["event"] == "step"]
        assert rates[0] == pytest.approx(0.01)
        assert float(np.asarray(model.optimizer.learning_rate)) == pytest.approx(0.01)


def test_callbacks_and_checkpoints_of_an_earlier_fit_are_forgotten(tmp_path):
    shared = trainer(tmp_path / "one", max_epochs=2)
    one = shared.fit(everything_model(), data())
    shared.run_dir = tmp_path / "two"
    two = shared.fit(everything_model(), data())
    assert two.last_checkpoint.is_relative_to(tmp_path / "two")
    assert two.best_checkpoint.is_relative_to(tmp_path / "two")
    assert [without_times(r) for r in one.history] == [without_times(r) for r in two.history]


def continue_elsewhere(path: str) -> str:
    """Go on with the run in ``path`` on the backend of this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the other backend is said; tested below
        trainer(Path(path)).fit(everything_model(), data(), ckpt_path="last")
    return keras.backend.backend()


def test_a_checkpoint_goes_on_on_the_other_backend(straight, other_backend, tmp_path):
    """Weights and optimizer are taken over exactly, the batches are the same."""
    path = tmp_path / "run"
    trainer(path, At(8, terminate)).fit(everything_model(), data())
    mine = last(path)
    assert other_backend(continue_elsewhere, str(path)) == other_backend.name
    there = last(path)
    assert there.manifest["backend"] == other_backend.name
    assert there.manifest["step"] == STEPS * EPOCHS
    losses = [
        [r["loss"] for r in read_metrics(p / "metrics.jsonl") if r["event"] == "step"]
        for p in (path, straight)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # And back: what the other backend wrote is read here as it was written.
    with pytest.warns(UserWarning, match=f"checkpoint is of backend {other_backend.name}"):
        trainer(path, max_epochs=EPOCHS + 1, max_steps=STEPS * EPOCHS).fit(
            everything_model(), data(), ckpt_path="last"
        )
    for (name, a), (_, b) in zip(last(path).state, there.state, strict=True):
        assert np.array_equal(a, b), name
    assert mine.manifest["step"] == 8


def test_the_other_backend_reads_every_array_exactly(other_backend, tmp_path):
    path = tmp_path / "run"
    trainer(path, At(8, terminate)).fit(everything_model(), data())
    mine = {n: a.tolist() for n, a in last(path).state}
    assert other_backend(arrays_after_restore, str(path)) == mine


def arrays_after_restore(path: str) -> dict:
    """Return what the engine of this backend holds after a resume, before any step."""
    held = {}

    class Look(Callback):
        def on_fit_start(self, fit):
            held.update({n: a.tolist() for n, a in fit.engine.export_state()})
            raise Interrupted("SIGTERM")

    with warnings.catch_warnings(), contextlib.suppress(Interrupted):
        warnings.simplefilter("ignore")
        trainer(Path(path), Look()).fit(everything_model(), data(), ckpt_path="last")
    return held


def test_a_callback_may_put_values_into_a_checkpoint_and_gets_them_back(tmp_path):
    class Notes(Callback):
        def on_save_checkpoint(self, fit, manifest):
            manifest["notes"] = {"step": fit.position.step}

        def on_load_checkpoint(self, fit, manifest):
            self.found = manifest["notes"]

    trainer(tmp_path / "run", Notes(), max_epochs=1).fit(everything_model(), data())
    notes = Notes()
    trainer(tmp_path / "run", notes).fit(everything_model(), data(), ckpt_path="last")
    assert notes.found == {"step": STEPS}
