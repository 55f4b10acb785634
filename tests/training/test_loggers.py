"""Loggers: own ones, several, failing ones, TensorBoard's files, and what services are sent."""

import contextlib
import csv
import math
import os
import subprocess
import sys
from collections import namedtuple
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from everything import EPOCHS, STEPS, At, data, everything_model, kill, last, terminate, trainer

from fmnist_keras3 import (
    CSVLogger,
    Diverged,
    Logger,
    MLFlowLogger,
    ModelCheckpoint,
    TensorBoardLogger,
    TrackioLogger,
    Trainer,
    UserError,
    WandbLogger,
)
from fmnist_keras3.cli import main
from fmnist_keras3.data import idx
from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData, Split
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.loggers import LOGGERS, Loggers, make_loggers
from fmnist_keras3.loggers.ledger import Ledger
from fmnist_keras3.runs.history import read_metrics
from fmnist_keras3.training.logger import require, scalars

SERVICES = {"mlflow": MLFlowLogger, "wandb": WandbLogger, "trackio": TrackioLogger}
NAMES = ["tensorboard", *SERVICES]
Run = namedtuple("Run", "name options points params ends")


class Spy(Logger):
    """Keeps its calls, and raises in the hook that it is told."""

    def __init__(self, harm=None):
        self.harm, self.calls = harm, []

    def begin(self, run_dir):
        self.take("begin", run_dir)

    def log_hyperparams(self, params):
        self.take("log_hyperparams", params)

    def replay(self, records):
        self.take("replay", list(records))

    def log(self, record):
        self.take("log", record)

    def finalize(self, status):
        self.take("finalize", status)

    def take(self, hook, value):
        self.calls.append((hook, value))
        if hook == self.harm:
            raise OSError("no route to host")

    def of(self, hook):
        return [value for name, value in self.calls if name == hook]


def fit(path, logger, *callbacks, **options):
    made = trainer(path, *callbacks, logger=logger, **options)
    return made.fit(everything_model(), data(), ckpt_path=options.get("resume"))


def resumed(path, logger):
    return trainer(path, logger=logger).fit(everything_model(), data(), ckpt_path="last")


def points(records):
    """What a service shows of records: name, step and value of every number."""
    return sorted((k, r["step"], v) for r in records for k, v in scalars(r).items())


def timeless(shown):
    """Points without measurements of time, which differ between runs."""
    return [p for p in shown if p[0] not in ("train/seconds", "train/images_per_second")]


def module(monkeypatch, name, **content):
    """Put a module of that name in the place of a package."""
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None, origin="of the test")
    made.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, made)


def missing(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def services(monkeypatch):
    """The least of MLflow, W&B and Trackio that the loggers call; their runs by service and id."""
    runs = {name: {} for name in SERVICES}

    def begun(service, id, name, options):
        return runs[service].setdefault(id, Run(name, options, [], {}, []))

    class Client:
        def __init__(self, tracking_uri):
            self.uri = tracking_uri

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return f"{self.uri} {name}"

        def create_run(self, experiment_id, run_name):
            id = f"mlflow-{len(runs['mlflow'])}"
            begun("mlflow", id, run_name, experiment_id)
            return SimpleNamespace(info=SimpleNamespace(run_id=id))

        def update_run(self, run_id, status):
            runs["mlflow"][run_id].ends.append(status)

        def get_run(self, run_id):
            return SimpleNamespace(data=SimpleNamespace(params=dict(runs["mlflow"][run_id].params)))

        def log_batch(self, run_id, metrics=(), params=()):
            run = runs["mlflow"][run_id]
            assert not run.params.keys() & {p.key for p in params}  # MLflow refuses to change one
            run.params.update({p.key: p.value for p in params})
            run.points.extend((m.key, m.step, m.value) for m in metrics)

        def set_terminated(self, run_id, status):
            runs["mlflow"][run_id].ends.append(status)

    entities = SimpleNamespace(
        Metric=namedtuple("Metric", "key value timestamp step"),
        Param=namedtuple("Param", "key value"),
    )
    module(monkeypatch, "mlflow", MlflowClient=Client, entities=entities)

    def wandb_init(**options):
        id = options["id"] or f"wandb-{len(runs['wandb'])}"
        run = begun("wandb", id, options["name"], options)

        def log(values):
            step = values.pop("trainer/global_step")
            run.points.extend((k, step, v) for k, v in values.items())

        config = SimpleNamespace(update=lambda params, allow_val_change: run.params.update(params))
        return SimpleNamespace(
            id=id,
            config=config,
            log=log,
            define_metric=lambda name, **_: None,
            finish=lambda exit_code: run.ends.append(exit_code),
        )

    module(monkeypatch, "wandb", init=wandb_init)

    def trackio_init(**options):
        there = runs["trackio"].get(options["name"])
        assert (options["resume"] == "allow") == (there is not None)
        run = begun("trackio", options["name"], options["name"], options)
        return SimpleNamespace(
            name=options["name"],
            config=run.params,
            log=lambda values, step: run.points.extend((k, step, v) for k, v in values.items()),
            finish=lambda: run.ends.append("finished"),
        )

    module(monkeypatch, "trackio", init=trackio_init)
    return runs


def only(runs):
    assert len(runs) == 1, list(runs)
    return next(iter(runs.values()))


def test_names_instances_and_lists_of_both_are_taken(monkeypatch):
    for name in NAMES:
        module(monkeypatch, name)
    spy = Spy()
    kinds = {
        None: [],
        False: [],
        True: [CSVLogger],
        "csv": [CSVLogger],
        "csv, tensorboard,mlflow": [CSVLogger, TensorBoardLogger, MLFlowLogger],
        spy: [Spy],
        ("wandb", "trackio", spy, Spy()): [WandbLogger, TrackioLogger, Spy, Spy],
    }
    for chosen, expected in kinds.items():
        assert [type(logger) for logger in make_loggers(chosen)] == expected


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("cvs", "'cvs'.*Did you mean 'csv'.*csv, tensorboard, mlflow, wandb, trackio"),
        (["csv", "tensorbord"], "Did you mean 'tensorboard'"),
        (3, "no logger 3"),
        ([None], "no logger None"),
        ("csv,csv", "2 of CSVLogger"),
        (["csv", CSVLogger()], "one of a kind"),
    ],
)
def test_what_is_no_logger_is_named(monkeypatch, chosen, words):
    with pytest.raises(UserError, match=words):
        Trainer(logger=chosen)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_told_before_anything_is_made(monkeypatch, tmp_path, capsys, name):
    monkeypatch.chdir(tmp_path)
    missing(monkeypatch, name)
    install = f"pip install 'fmnist-keras3[{name}]'"
    for make in (named(LOGGERS[name]), lambda: Trainer(logger=["csv", name])):
        with pytest.raises(UserError) as told:
            make()
        assert install in str(told.value)
    assert main(["train", "--logger", f"csv,{name}"]) == 2
    assert install in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_of_that_name_is_no_package(monkeypatch, tmp_path):
    (tmp_path / "no_such_service").mkdir()  # as W&B leaves one named wandb
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="not installed"):
        require("no_such_service")


def test_scalars_are_the_numbers_of_any_record():
    record = {"event": "device", "epoch": 3, "step": 7, "name": "cpu", "busy": True, "lost": None}
    shown = scalars(record | {"memory": 5, "grad_norm": np.float32(0.5), "shape": [1]})
    assert shown == {"device/memory": 5.0, "device/grad_norm": 0.5}
    assert all(type(value) is float for value in shown.values())
    assert scalars({"event": "train", "epoch": 3, "step": 7}) == {"train/epoch": 3.0}
    assert math.isnan(scalars({"event": "step", "step": 1, "loss": math.nan})["step/loss"])


def test_an_own_logger_sees_the_whole_run(tmp_path):
    spy = Spy()
    result = fit(tmp_path / "run", spy)
    hooks = [hook for hook, _ in spy.calls]
    assert hooks[:3] == ["begin", "log_hyperparams", "replay"]
    assert set(hooks[3:-1]) == {"log"}
    assert spy.calls[0][1] == result.run_dir
    assert spy.of("replay") == [[]]
    assert spy.of("log") == result.history
    assert spy.calls[-1] == ("finalize", "completed")
    params = spy.of("log_hyperparams")[0]
    assert params["model"] == "everything"
    assert params["parameters"] == result.summary["parameters"]
    assert params["trainer/max_epochs"] == EPOCHS
    assert params["dataset"] == result.summary["dataset"]["name"]
    again = fit(tmp_path / "two", spy, max_epochs=1)  # the same instance serves another fit
    assert spy.of("begin")[1] == again.run_dir
    assert spy.of("finalize") == ["completed", "completed"]


@pytest.mark.parametrize(
    ("action", "status"),
    [(terminate, "interrupted"), (kill, "interrupted"), (lambda: 1 / 0, "failed"), (None, "")],
)
def test_the_end_is_told_whatever_it_is(tmp_path, action, status):
    def diverge():
        raise Diverged("The loss is not finite.", 7)

    spy = Spy()
    with contextlib.suppress(KeyboardInterrupt, ZeroDivisionError, Diverged):
        fit(tmp_path / "run", spy, At(7, action or diverge))
    assert spy.of("finalize") == [status or "diverged"]


@pytest.mark.parametrize("hook", ["begin", "log_hyperparams", "replay", "log", "finalize"])
def test_one_that_raises_is_left_out_and_the_rest_goes_on(tmp_path, hook):
    straight, bad, good = fit(tmp_path / "straight", None), Spy(hook), Spy()
    with pytest.warns(UserWarning, match="Spy failed and is left out") as told:
        result = fit(tmp_path / "run", [bad, good])
    [warning] = [str(w.message) for w in told if w.category is UserWarning]
    assert "OSError: no route to host" in warning
    assert bad.calls[-1][0] == hook
    assert len(bad.of(hook)) == 1
    assert good.of("log") == result.history
    assert good.of("finalize") == ["completed"]
    assert points(good.of("log"))[:20] == points(straight.history)[:20]  # the losses of the steps
    assert result.status == "completed"
    pairs = zip(last(result.run_dir).state, last(straight.run_dir).state, strict=True)
    assert all(a.tobytes() == b.tobytes() for (_, a), (_, b) in pairs)


def test_a_user_error_at_the_beginning_ends_the_fit(tmp_path):
    class Refusing(Spy):
        def begin(self, run_dir):
            raise UserError("There is no project garments.")

    before, refusing = Spy(), Refusing()
    with pytest.raises(UserError, match="no project garments"):
        fit(tmp_path / "run", [before, refusing])
    assert before.of("finalize") == ["failed"]
    assert not before.of("log")
    assert not refusing.calls


def test_a_trial_run_tells_no_logger(tmp_path):
    spy = Spy()
    trainer(tmp_path / "run", logger=spy, fast_dev_run=True).fit(everything_model(), data())
    assert not spy.calls


def test_held_loggers_take_more_and_end_with_the_block(tmp_path):
    spy = Spy()
    made = trainer(tmp_path / "run", logger=spy, max_epochs=1)
    with made.loggers.held():
        made.fit(everything_model(), data())
        made.loggers.log({"event": "test", "epoch": 1, "step": 5, "loss": 0.5})
        assert not spy.of("finalize")
    assert spy.calls[-2:] == [("log", spy.of("log")[-1]), ("finalize", "completed")]
    made.loggers.log({"event": "test", "epoch": 1, "step": 5})
    assert spy.calls[-1] == ("finalize", "completed")


def test_held_loggers_that_never_began_are_left_alone():
    spy = Spy()
    with pytest.raises(ZeroDivisionError), Loggers([spy]).held():
        _ = 1 / 0
    assert not spy.calls


def test_the_command_line_sends_the_test_figures(tmp_path, monkeypatch, services, tiny_data):
    x, y = tiny_data
    monkeypatch.chdir(tmp_path)
    idx.write_folder(
        tmp_path / "idx", ImageData("idx", "", Split(x, y), Split(x[:60], y[:60]), FASHION_CLASSES)
    )
    words = "train --data_dir idx --model lenet --epochs 1 --limit_train_batches 1 --augment none"
    words += " --batch_size 50 --run_dir r --logger trackio,csv"
    assert main(words.split()) == 0
    run, records = only(services["trackio"]), read_metrics(Path("r/metrics.jsonl"))
    assert [r["event"] for r in records] == ["train", "validation", "test"]
    assert sorted(run.points) == points(records)
    assert run.params["model"] == "lenet"
    assert run.params["lr"] == 2e-3
    assert run.ends == ["finished"]
    assert Path("r/metrics.csv").exists()


@pytest.mark.parametrize("stop", [terminate, kill])
def test_services_get_each_point_once_over_a_resume(tmp_path, services, stop):
    run = tmp_path / "run"
    names = [*SERVICES, "csv"]
    try:
        fit(run, names, At(8, stop))
    except KeyboardInterrupt:
        assert stop is kill
    result = resumed(run, names)
    assert result.summary["steps"] == STEPS * EPOCHS
    for service in SERVICES:
        got = only(services[service])
        assert got.name == "run"
        assert timeless(sorted(got.points)) == timeless(points(result.history)), service
        assert got.params["model"] == "everything"
    assert only(services["mlflow"]).ends == ["KILLED", "RUNNING", "FINISHED"]
    assert only(services["wandb"]).ends == [1, 0]
    assert only(services["trackio"]).ends == ["finished"] * 2
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 1))


def test_a_rollback_repeats_no_point(tmp_path, services):
    def poison():
        if not spoilt:
            spoilt.append(True)
            engine = at.fit.engine
            state = engine.export_state()
            engine.import_state([(n, a * np.nan if "hidden" in n else a) for n, a in state])

    spoilt, at = [], At(9, poison)
    spy, saver = Spy(), ModelCheckpoint(every_n_train_steps=7)
    options = {"on_nonfinite": "rollback", "logger": [spy, "mlflow"]}
    result = trainer(tmp_path / "run", at, saver, **options).fit(everything_model(), data())
    assert [len(records) for records in spy.of("replay")] == [0, 9]  # 7 steps and an epoch's two
    assert len(spy.of("log")) == len(result.history) + 2  # steps 8 and 9 were taken twice
    assert timeless(sorted(only(services["mlflow"]).points)) == timeless(points(result.history))


def test_a_service_that_joins_later_gets_what_was_before(tmp_path, services):
    fit(tmp_path / "run", None, At(8, terminate))
    result = resumed(tmp_path / "run", "mlflow")
    assert sorted(only(services["mlflow"]).points) == points(result.history)


def test_tensorboard_that_joins_later_gets_what_was_before(tmp_path):
    pytest.importorskip("tensorboard")
    fit(tmp_path / "run", None, At(8, terminate))
    result = resumed(tmp_path / "run", "tensorboard")
    assert accumulated(tmp_path / "run/tensorboard")[0] == as_float32(points(result.history))


def test_a_resume_without_a_checkpoint_goes_on_in_the_same_place(tmp_path, services):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", "wandb", At(1, kill))
    made = trainer(tmp_path / "run", logger="wandb")
    result = made.fit(everything_model(), data(), ckpt_path="auto")
    got = only(services["wandb"])
    assert timeless(sorted(got.points)) == timeless(points(result.history))


def test_arguments_reach_the_services(tmp_path, services):
    fit(
        tmp_path / "run",
        [
            MLFlowLogger("garments", "first", "sqlite:///x.db"),
            WandbLogger("first", tmp_path / "w", True, "abc", "garments", tags=["t"]),
            TrackioLogger("first", "garments", space_id="me/space"),
        ],
        max_epochs=1,
    )
    runs = {service: only(services[service]) for service in SERVICES}
    assert {run.name for run in runs.values()} == {"first"}
    assert runs["mlflow"].options == "sqlite:///x.db garments"
    expected = {"project": "garments", "dir": str(tmp_path / "w"), "mode": "offline"}
    expected |= {"id": "abc", "tags": ["t"], "resume": "allow"}
    assert runs["wandb"].options.items() >= expected.items()
    assert (
        runs["trackio"].options.items() >= {"project": "garments", "space_id": "me/space"}.items()
    )
    fit(tmp_path / "two", MLFlowLogger(run_id="mlflow-0"), max_epochs=1)
    assert only(services["mlflow"]).ends == ["FINISHED", "RUNNING", "FINISHED"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": "a"}', b'{"id": "a", "steps": 3}'])
def test_a_damaged_ledger_counts_as_none(tmp_path, content):
    (tmp_path / "l.json").write_bytes(content)
    ledger = Ledger(tmp_path / "l.json")
    assert ledger.id is None
    ledger.open("b")
    record = {"event": "step", "epoch": 1, "step": 5, "loss": 1.0}
    assert ledger.unsent(record) == {"step/loss": 1.0}
    again = Ledger(tmp_path / "l.json")
    assert again.id == "b"
    assert again.unsent(record | {"lr": 0.1}) == {"step/lr": 0.1}
    assert again.unsent(record | {"step": 6}) == {"step/loss": 1.0}


def accumulated(folder):
    """What TensorBoard shows of a folder."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = shown.Tags()["scalars"]
    return sorted((tag, e.step, e.value) for tag in tags for e in shown.Scalars(tag)), shown


def as_float32(shown):
    return [(name, step, float(np.float32(value))) for name, step, value in shown]


def test_tensorboard_reads_back_every_number(tmp_path):
    pytest.importorskip("tensorboard")
    result = fit(tmp_path / "run", [TensorBoardLogger(), "csv"])
    found, shown = accumulated(tmp_path / "run/tensorboard")
    assert found == as_float32(points(result.history))
    assert found[0][0] == "step/loss"
    info = shown.summary_metadata["_hparams_/session_start_info"].plugin_data
    assert info.plugin_name == "hparams"
    assert b"max_epochs" in info.content
    fit(tmp_path / "two", TensorBoardLogger(tmp_path / "tb", "first"), max_epochs=1)
    fit(tmp_path / "three", TensorBoardLogger(tmp_path / "tb"), max_epochs=1)
    assert {path.name for path in (tmp_path / "tb").iterdir()} == {"first", "three"}


@pytest.mark.parametrize("stop", [terminate, kill])
def test_tensorboard_shows_no_point_twice_after_a_resume(tmp_path, stop):
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    try:
        fit(run, "tensorboard", At(8, stop), val_check_interval=2)
    except KeyboardInterrupt:
        first = max((run / "tensorboard").iterdir())
        first.write_bytes(first.read_bytes()[:-3])  # what a kill may leave of its last record
    made = trainer(run, logger="tensorboard", val_check_interval=2)
    result = made.fit(everything_model(), data(), ckpt_path="last")
    found, _ = accumulated(run / "tensorboard")
    assert timeless(found) == timeless(as_float32(points(result.history)))
    assert len(list((run / "tensorboard").iterdir())) == 2


def test_tensorboard_forgets_a_run_that_begins_again(tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", "tensorboard", At(1, kill))
    made = trainer(tmp_path / "run", logger="tensorboard")
    result = made.fit(everything_model(), data(), ckpt_path="auto")
    found, _ = accumulated(tmp_path / "run/tensorboard")
    assert timeless(found) == timeless(as_float32(points(result.history)))


def test_tensorboard_goes_without_tensorflow(tmp_path):
    pytest.importorskip("tensorboard")
    code = """
import sys
from pathlib import Path
from fmnist_keras3 import TensorBoardLogger
logger = TensorBoardLogger()
logger.begin(Path(sys.argv[1]))
logger.log_hyperparams({"lr": 0.1, "schedule": None})
logger.replay([])
logger.log({"event": "train", "epoch": 1, "step": 5, "loss": 0.5})
logger.finalize("completed")
sys.exit("tensorflow" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert [p for p in accumulated(tmp_path / "tensorboard")[0] if p[0] == "train/loss"] == [
        ("train/loss", 5, 0.5)
    ]


REAL = {
    "mlflow": """
logger = MLFlowLogger("garments")
def read():
    from mlflow import MlflowClient
    client = MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("garments").experiment_id])
    assert run.data.params == {"lr": "0.1", "schedule": "None"}
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")]
""",
    "trackio": """
logger = TrackioLogger(project="garments")
def read():
    import trackio
    from trackio.sqlite_storage import SQLiteStorage
    [run] = trackio.Api().runs("garments")
    assert run.name == "run"
    assert run.config["lr"] == 0.1
    return [(row["step"], row["train/loss"]) for row in SQLiteStorage.get_logs("garments", "run")]
""",
    "wandb": """
logger = WandbLogger(project="garments", offline=True)
def blocks(content):  # of LevelDB's log: pieces of records, cut at each 32 KiB
    place = 7
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        size, kind = struct.unpack_from("<HB", content, place + 4)
        yield content[place + 7 : place + 7 + size], kind in (1, 4)
        place += 7 + size
def read():
    from wandb.proto.wandb_internal_pb2 import Record
    points, ids, whole = [], set(), b""
    for path in Path("run/wandb").glob("offline-run-*/*.wandb"):
        for piece, last in blocks(path.read_bytes()):
            whole += piece
            if last:
                record, whole = Record.FromString(whole), b""
                row = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
                if "train/loss" in row:
                    points.append((int(row["trainer/global_step"]), float(row["train/loss"])))
                ids |= {(record.run.run_id, record.run.display_name)} - {("", "")}
    assert len(ids) == 1 and "run" in ids.pop()
    return points
""",
}


@pytest.mark.parametrize("service", REAL)
def test_the_service_itself_shows_each_point_once(tmp_path, service):
    pytest.importorskip(service)
    code = f"""
import struct
from pathlib import Path
from fmnist_keras3 import MLFlowLogger, TrackioLogger, WandbLogger
{REAL[service]}
run = Path("run")
run.mkdir()
records = [{{"event": "train", "epoch": 1, "step": i, "loss": 1 / i}} for i in (1, 2, 3, 4)]
for kept, new in (([], records[:3]), (records[:2], records[2:])):
    logger.begin(run)
    logger.log_hyperparams({{"lr": 0.1, "schedule": None}})
    logger.replay(kept)
    for record in new:
        logger.log(record)
    logger.finalize("completed")
assert sorted(read()) == [(r["step"], r["loss"]) for r in records], read()
"""
    env = {**os.environ, "HOME": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
