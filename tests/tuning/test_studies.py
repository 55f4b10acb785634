"""Studies with real trials: their order, storage, and what a process that is killed leaves."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from fmnist_keras3 import ArrayData, OptunaPruning, Trainer, UserError, build_model, tune
from fmnist_keras3.cli import main
from fmnist_keras3.data import sources
from fmnist_keras3.settings import TrainConfig, mapping
from fmnist_keras3.tuning.results import write_results
from fmnist_keras3.tuning.study import (
    Worker,
    counted,
    enqueue_again,
    make_pruner,
    make_sampler,
    open_study,
    quiet,
)
from fmnist_keras3.tuning.trial import TrialRunner, value_of

SMALL = {"model": "lenet", "data": "synthetic", "limit_train_batches": 3, "limit_val_batches": 1}
SMALL |= {"num_sanity_val_steps": 0, "schedule": "constant", "batch_size": 32}
LR = ["lr=log(1e-4,1e-1)"]

pytestmark = pytest.mark.usefixtures("compiled_once")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    """Work in an empty folder, with the generated garments made once."""
    monkeypatch.chdir(tmp_path)


def opened(name, backend, storage=None, params=LR, given=(), **settings):
    chosen = SMALL | settings
    study, plan, folder = open_study(name, storage, dict(given), params, chosen, {}, backend)
    study.sampler, study.pruner = make_sampler(plan), make_pruner(plan)
    return study, plan, folder


def work(study, plan, folder, run):
    with quiet():
        Worker(study, plan, folder, run).work()
    return [trial for trial in counted(study) if trial.state == TrialState.COMPLETE]


def quick(trial, folder):
    """A trial without a training."""
    values = [value for value in trial.params.values() if isinstance(value, float)]
    return [-sum(values)]


def start_worker(folder, storage, trials):
    """Start a process as `fmnist tune --workers` does."""
    order = {"study": str(folder.absolute()), "storage": storage, "given": {"trials": trials}}
    process = subprocess.Popen(
        [sys.executable, "-m", "fmnist_keras3.tuning.worker"],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    process.stdin.write(json.dumps(order).encode())
    process.stdin.close()
    return process


@pytest.fixture(scope="module")
def postgresql():
    """The URL of a database of PostgreSQL on loopback; skipped where it is not installed."""
    places = ["/usr/local/bin", *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")))]
    path = os.pathsep.join([os.environ["PATH"], *places])
    if shutil.which("initdb", path=path) is None or shutil.which("pg_ctl", path=path) is None:
        pytest.skip("no PostgreSQL: install Debian's package postgresql")
    pytest.importorskip("psycopg2", reason="no driver: pip install psycopg2-binary")
    import tempfile

    # PostgreSQL refuses to run as root, and the folders of pytest are its user's alone.
    user = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="fmnist-postgresql-", dir="/tmp"))
    if user:
        shutil.chown(folder, **user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"

    def run(*words):
        environment = {**os.environ, "PATH": path, "HOME": str(folder), "LC_ALL": "C"}
        subprocess.run(
            words, check=True, env=environment, cwd=folder, stdout=subprocess.DEVNULL, **user
        )

    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
    try:
        run("initdb", "-D", str(data), "-U", "tuner", "-A", "trust", "-E", "UTF8")
        run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://tuner@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def without_a_kill(trial, plan, folder):
    """What a trial would have given without the kill."""
    fixed = optuna.create_study(direction="maximize")
    fixed.enqueue_trial(trial.params)
    return TrialRunner(plan)(fixed.ask({"lr": trial.distributions["lr"]}), folder)


def of_storages(quick):
    """Take each kind of storage; all but one, ``quick``, are for `nox -s slow`."""
    slow = [pytest.mark.slow]
    kinds = ("sqlite", "journal", "postgresql")
    return pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=slow * (kind != quick)) for kind in kinds]
    )


@pytest.fixture
def storage(request, kind):
    """The text of --storage of a kind."""
    if kind == "postgresql":
        return request.getfixturevalue("postgresql")
    return {"sqlite": None, "journal": "journal"}[kind]


@of_storages(quick="journal")
def test_a_killed_trial_goes_on_from_its_checkpoint_to_the_same_bits(
    kind, storage, backend, tmp_path
):
    epochs = 15
    study, plan, folder = opened(
        f"{kind}-killed", backend, storage, epochs=epochs, given={"trials": 1}
    )
    victim = start_worker(folder, storage, 1)
    pointer = folder / "trials/trial-0000/checkpoints/last.json"
    while not pointer.exists():
        assert victim.poll() is None, "the worker ended before its first checkpoint"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    trained = []
    (trial,) = work(study, plan, folder, TrialRunner(plan, shown=lambda: trained.append(1)))
    assert 0 < len(trained) - 1 < epochs  # the begin, and the rest of the epochs
    killed, again = study.get_trials()
    assert (killed.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert killed.params == again.params
    assert killed.user_attrs["run_dir"] == again.user_attrs["run_dir"] == "trials/trial-0000"
    assert without_a_kill(trial, plan, tmp_path / "whole") == trial.values


@of_storages(quick="postgresql")
def test_no_trial_twice_and_none_lost_with_several_processes(kind, storage, backend):
    study, _, folder = opened(
        f"{kind}-many", backend, storage, epochs=1, given={"trials": 6, "sampler": "random"}
    )
    processes = [start_worker(folder, storage, 6) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    trials = study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert len({trial.params["lr"] for trial in trials}) == 6
    assert len({trial.user_attrs["run_dir"] for trial in trials}) == 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_of_four_processes_one_is_killed_and_nothing_is_lost(kind, storage, backend, tmp_path):
    given = {"trials": 8, "sampler": "random"}
    study, plan, folder = opened(f"{kind}-four", backend, storage, epochs=20, given=given)
    processes = [start_worker(folder, storage, 8) for _ in range(4)]
    victim = None
    while victim is None:
        assert all(process.poll() is None for process in processes)
        for pointer in folder.glob("trials/*/checkpoints/last.json"):
            held = (pointer.parents[1] / ".worker").resolve()
            victim = next((p for p in processes if str(held) in open_files(p)), victim)
    victim.send_signal(signal.SIGKILL)
    assert sorted(process.wait() for process in processes) == [-signal.SIGKILL, 0, 0, 0]
    (killed,) = [t for t in study.get_trials() if t.state == TrialState.FAIL]
    trials = counted(study)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 8
    assert len({trial.params["lr"] for trial in trials}) == 8
    (again,) = [t for t in trials if t.user_attrs["run_dir"] == killed.user_attrs["run_dir"]]
    assert again.params == killed.params
    assert without_a_kill(again, plan, tmp_path / "whole") == again.values


def open_files(process):
    """The paths that a process has open."""
    links = Path(f"/proc/{process.pid}/fd")
    found = set()
    for link in links.iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.add(os.readlink(link))
    return found


def test_the_same_seed_gives_the_same_trials_and_values(backend):
    found = []
    for name in ("one", "two"):
        study, plan, folder = opened(name, backend, given={"trials": 2}, epochs=1)
        trials = work(study, plan, folder, TrialRunner(plan))
        found.append([(trial.params, trial.values) for trial in trials])
    assert found[0] == found[1]


def test_a_study_that_was_stopped_has_the_same_trials_as_one_that_was_not(backend):
    params = ["lr=log(1e-4,1e-1)", "dropout=0.1..0.6"]
    whole = work(*opened("whole", backend, params=params, given={"trials": 20}), quick)
    work(*opened("parts", backend, params=params, given={"trials": 7}), quick)
    parts = work(*opened("parts", backend, params=(), given={"trials": 20}), quick)
    assert [trial.params for trial in parts] == [trial.params for trial in whole]


def test_an_interrupted_trial_waits_in_its_run_directory(backend):
    study, plan, folder = opened("interrupted", backend, given={"trials": 2})

    def interrupted(trial, folder):
        (folder / "begun").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(study, plan, folder, interrupted)
    places = []
    trials = work(study, plan, folder, lambda t, place: places.append(place) or quick(t, place))
    assert len(trials) == 2
    assert (places[0] / "begun").exists()
    assert not (places[1] / "begun").exists()


def test_a_live_trial_of_another_machine_is_let_alone_and_a_silent_one_taken_up(
    backend, monkeypatch
):
    from fmnist_keras3.tuning import study as module

    study, plan, folder = opened("elsewhere", backend, given={"trials": 1})
    far = study.ask()
    plan.space["lr"].suggest(far)
    far.set_user_attr("run_dir", "trials/trial-0000")
    far.set_user_attr("host", "another machine")
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    worker = Worker(study, plan, folder, quick)
    for second in (0, 100, 200, 300):
        far.set_user_attr("alive", second)
        clock[0] = float(second)
        worker._take_up()
        assert study.trials[0].state == TrialState.RUNNING
    clock[0] += module.GRACE + 1
    worker._take_up()
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_a_trial_is_put_back_once(backend):
    study, plan, _ = opened("once", backend)
    plan.space["lr"].suggest(study.ask())
    for _ in range(2):
        enqueue_again(study, 0)
    assert len(study.trials) == 2


def test_a_grid_ends_when_all_its_points_were_tried(backend):
    params = ["lr=[0.1,0.01]", "dropout=[0.1,0.2]"]
    study = opened("grid", backend, params=params, given={"sampler": "grid", "trials": 50})
    points = {(trial.params["lr"], trial.params["dropout"]) for trial in work(*study, quick)}
    assert points == {(0.1, 0.1), (0.1, 0.2), (0.01, 0.1), (0.01, 0.2)}
    assert len(study[0].trials) == 4


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])
def test_every_sampler_searches(sampler, backend):
    params = ["lr=log(1e-4,1e-1)", "dropout=0.1..0.6"]
    given = {"sampler": sampler, "trials": 12}
    trials = work(*opened(sampler, backend, params=params, given=given), quick)
    assert len({trial.params["lr"] for trial in trials}) == 12


@pytest.mark.parametrize("pruner", ["median", "hyperband", "halving"])
def test_every_pruner_ends_poor_trials(pruner, backend):
    given = {"pruner": pruner, "trials": 40, "sampler": "random"}
    study, plan, folder = opened(pruner, backend, given=given, epochs=9)

    def run(trial, folder):
        for epoch in range(1, 10):
            trial.report(-trial.params["lr"], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return quick(trial, folder)

    work(study, plan, folder, run)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.PRUNED) >= 5
    assert states.count(TrialState.COMPLETE) >= 1


def test_a_pruned_training_stops_at_an_epochs_end(backend):
    given = {"pruner": "median", "trials": 1}
    study, plan, folder = opened("pruned", backend, given=given, epochs=6)
    study.pruner = optuna.pruners.ThresholdPruner(lower=2)  # no accuracy is
    assert work(study, plan, folder, TrialRunner(plan)) == []
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [1]
    summary = json.loads((folder / "trials/trial-0000/summary.json").read_text())
    assert (summary["status"], summary["epochs"]) == ("stopped", 1)


def test_a_trial_that_diverges_is_no_value_and_no_end(backend):
    given = {"trials": 2, "sampler": "grid"}
    params = ["lr=[1e+20,1e-3]"]
    study, plan, folder = opened("diverges", backend, params=params, given=given, epochs=2)
    (good,) = work(study, plan, folder, TrialRunner(plan))
    (bad,) = (trial for trial in study.trials if trial.number != good.number)
    assert good.params["lr"] == 1e-3
    assert (bad.state, bad.user_attrs["reason"]) == (TrialState.PRUNED, "diverged")


def test_the_mean_of_seeds_counts_and_data_is_read_once(backend, monkeypatch):
    loads, load = [], sources.load
    monkeypatch.setattr(sources, "load", lambda *a, **k: loads.append(a) or load(*a, **k))
    study, plan, folder = opened("seeds", backend, given={"trials": 1, "seeds": 2}, epochs=1)
    for trial in work(study, plan, folder, TrialRunner(plan)):
        place = folder / trial.user_attrs["run_dir"]
        values = [
            json.loads((place / f"seed-{seed}" / "summary.json").read_text())["validation_accuracy"]
            for seed in (0, 1)
        ]
        assert trial.value == pytest.approx(sum(values) / 2, rel=1e-12)
    assert len(loads) == 1


def test_trials_have_the_data_that_their_settings_say(backend, tmp_path):
    given = {"class_weight": "balanced", "image_size": "14,14", "model": "baseline"}
    _, plan, _ = opened("data", backend, given={"trials": 1}, epochs=1, **given)
    runner = TrialRunner(plan)
    data = runner._data(plan.config(lr=1e-3, run_dir=str(tmp_path)))
    assert data.train.image_shape == (14, 14, 1)
    counts = np.bincount(data.train.y)
    wanted = len(data.train) / (len(counts) * counts[data.train.y])
    np.testing.assert_allclose(data.train.weight, wanted, rtol=1e-6)
    other = plan.config(lr=1e-3, run_dir=str(tmp_path), image_size="12,12", class_weight=None)
    assert runner._data(other).train.image_shape == (12, 12, 1)
    assert runner._data(other).train.weight is None
    own = TrialRunner(plan, data=ArrayData(data.train.x, data.train.y))
    assert own._data(plan.config(lr=1e-3, run_dir=str(tmp_path))).train.weight is not None


def test_two_objectives_give_a_front(backend):
    given = {"objective": "accuracy,parameters", "trials": 2, "sampler": "grid"}
    params = ["model=[lenet,cnn]"]
    sizes = {"lenet": [0.8, 61706.0], "cnn": [0.9, 225034.0]}
    study, plan, folder = opened("front", backend, params=params, given=given)
    work(study, plan, folder, lambda trial, place: sizes[trial.params["model"]])
    assert len(study.best_trials) == 2
    best = write_results(study, plan, folder, synthetic=True)
    assert best.params["model"] == "cnn"
    assert (folder / "plots/front.png").exists()
    assert TrainConfig(**mapping(folder / "best.yaml")).model == "cnn"


def test_an_objective_is_read_from_the_summary_of_a_run():
    summary = {"validation_accuracy": 0.8, "epoch_seconds": [1.0, 2.5], "parameters": 7}
    names = ("accuracy", "seconds", "parameters")
    assert [value_of(name, summary) for name in names] == [0.8, 3.5, 7.0]
    assert value_of("accuracy", summary | {"validation_averaged_accuracy": 0.9}) == 0.9


def test_another_plan_is_refused_and_the_same_one_joins(backend):
    opened("plan", backend, given={"seeds": 2})
    with pytest.raises(UserError, match="has seeds 2, not 3"):
        open_study("plan", None, {"seeds": 3}, (), {}, {}, backend)
    with pytest.raises(UserError, match="has lr 'log"):
        open_study("plan", None, {}, ["lr=0.1..0.2"], {}, {}, backend)
    with pytest.raises(UserError, match="has model 'lenet', not 'cnn'"):
        open_study("plan", None, {}, (), {}, {"model": "cnn"}, backend)
    with pytest.raises(UserError, match="has backend"):
        open_study("plan", None, {}, (), {}, {}, "another")
    _, plan, _ = open_study("plan", None, {"seeds": 2, "trials": 9}, LR, SMALL, SMALL, backend)
    assert (plan.seeds, plan.trials) == (2, 9)


def test_a_proxy_of_grpc_is_a_storage(backend, tmp_path):
    pytest.importorskip("grpc", reason="no gRPC: pip install grpcio protobuf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"""import warnings, optuna; warnings.simplefilter("ignore")
storage = optuna.storages.RDBStorage("sqlite:///{tmp_path}/proxied.db")
optuna.storages.run_grpc_proxy_server(storage, host="127.0.0.1", port={port})"""
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        url = f"grpc://127.0.0.1:{port}"
        study = opened("proxied", backend, url, given={"trials": 3})
        assert len(work(*study, quick)) == 3
        study[0]._storage.close()
    finally:
        server.kill()
        server.wait()


def test_the_command_ends_with_a_best_yaml_that_train_runs(backend, capsys):
    settings = ["--epochs", "1", *[w for k, v in SMALL.items() for w in (f"--{k}", str(v))]]
    assert main(["tune", "--study", "s", "--trials", "2", "--param", *LR, *settings]) == 0
    text = capsys.readouterr().out
    assert "The best 2 trials" in text
    assert "optuna-dashboard sqlite:///studies/s/study.db" in text
    page = Path("studies/s/report.html").read_text()
    assert "Generated garments" in page
    assert page.count("data:image/png;base64,") == 4
    best = optuna.load_study(study_name="s", storage="sqlite:///studies/s/study.db").best_trial
    words = ["--config", "studies/s/best.yaml", "--run_dir", "best", "--limit_test_batches", "1"]
    assert main(["train", *words]) == 0
    summary = json.loads(Path("best/summary.json").read_text())
    assert summary["validation_accuracy"] == best.value


def test_a_study_from_python_is_optunas(backend, tiny_data, capsys):
    data = (tiny_data[0], tiny_data[1])
    settings = {"model": "lenet", "epochs": 1, "augment": "none"}
    study = tune({"batch_size": [32, 64]}, data, trials=2, sampler="grid", study="p", **settings)
    assert isinstance(study, optuna.Study)
    assert {trial.params["batch_size"] for trial in study.trials} == {32, 64}
    assert "best trial" in capsys.readouterr().out
    with pytest.raises(UserError, match="Did you mean 'epochs'"):
        tune(epoch=3)


def test_an_objective_of_ones_own_is_pruned(tiny_data, tmp_path):
    def objective(trial):
        pruning = OptunaPruning(trial, "val_loss")
        trainer = Trainer(5, callbacks=[pruning], default_root_dir=tmp_path)
        return trainer.fit(build_model("lenet"), tiny_data).summary["validation_loss"]

    with quiet():
        study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0))
        study.optimize(objective, n_trials=1)
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [1]
    trainer = Trainer(1, callbacks=[OptunaPruning(trial, "val_lost")], fast_dev_run=True)
    with pytest.raises(UserError, match="Did you mean 'val_loss'"):
        trainer.fit(build_model("lenet"), tiny_data)


def test_a_job_script_has_tasks_of_one_study(capsys, monkeypatch):
    words = ["tune", "--model", "cnn", "--workers", "3", "--trials", "9", "--sbatch"]
    monkeypatch.setattr(sys, "argv", ["fmnist", *words])
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --array=0-2" in text
    assert "srun fmnist tune --model cnn --trials 9 --study cnn --storage journal" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
