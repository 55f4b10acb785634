"""The study: its plan, that nothing runs twice, stops, repetition, and what it says it found."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from bench import __main__ as command
from bench import cells, findings, output, study
from fmnist_keras3 import UserError, recipes, runtime

once = pytest.mark.skipif(
    runtime.choose_backend() != "jax",
    reason="its processes choose their own backend: once is enough",
)
RECIPE = """
header:
  about: for tests
  parts:
    flipping: {augment: none}
    averaging: {ema: none}
model: lenet
epochs: 2
warmup: 0
limit_train_batches: 3
limit_val_batches: 2
limit_test_batches: 2
data: synthetic
augment: flip
ema: 0.5
tta: mirror
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The file of a recipe of some steps."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.setenv("FMNIST_EPOCHS", "7")  # which must not reach the runs
    monkeypatch.delenv("FMNIST_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return "tiny.yaml"


def summary(backend, seed, accuracy, part=None, **more):
    name = "validation" if part else "test"
    records = [
        {"event": "train", "epoch": e, "accuracy": accuracy - 0.1 / e, "seconds": 30.0}
        for e in (1, 2)
    ]
    return {
        "backend": backend,
        "seed": seed,
        "command": f"KERAS_BACKEND={backend} fmnist train --recipe r --seed {seed}",
        "parameters": 1000,
        "epochs": 2,
        f"{name}_accuracy": accuracy,
        f"{name}_loss": 1 - accuracy,
        "total_seconds": 70.0 + seed,
        "device": "CPU",
        "dataset": {"name": "fashion_mnist", "train": 54000, "validation": 6000},
        "hardware": {"processor": "a chip", "cores": 2},
        "versions": {"keras": "3", "jax": "1"},
        "records": records,
        **more,
    }


def write(results, place, found):
    """Store a summary as `study.store` does."""
    folder = results / place
    folder.mkdir(parents=True)
    records = found.pop("records")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "summary.json").write_text(json.dumps(found))


def test_the_plan_is_all_of_one_seed_before_the_next(tiny):
    jobs = study.plan(tiny, ["jax", "tensorflow"], 2)
    assert [(j.seed, j.backend) for j in jobs] == [
        (0, "jax"), (0, "tensorflow"), (1, "jax"), (1, "tensorflow"),
    ]  # fmt: skip
    assert all("--data fashion_mnist" in j.command for j in jobs)
    assert len({j.place for j in jobs}) == 4


def test_an_ablation_switches_one_part_off_at_a_time_and_never_tests(tiny):
    full, *others = study.plan(tiny, ["jax"], 1, [])
    assert [j.part for j in others] == ["flipping", "averaging"]
    expected = full.config()
    assert (expected["validation"], expected["limit_test_batches"]) == (0.1, 0)
    changed = [{k for k, v in j.config().items() if v != expected[k]} for j in others]
    assert changed == [{"augment"}, {"ema"}]
    assert others[1].config()["ema"] is None
    (_, chosen) = study.plan(tiny, ["jax"], 1, ["averaging"])
    assert chosen.part == "averaging"
    with pytest.raises(UserError, match=r"no part 'averagin'. Did you mean 'averaging'"):
        study.plan(tiny, ["jax"], 1, ["averagin"])


@pytest.mark.parametrize("name", recipes.names())
def test_every_part_of_a_recipe_is_on_in_it_and_off_without(name):
    for job in study.plan(name, ["jax"], 1, [])[1:]:
        full, without = study.plan(name, ["jax"], 1)[0].config(), job.config()
        off = {k: v for k, v in recipes.read(name)[0]["parts"][job.part].items() if k in full}
        assert any(full[key] != without[key] for key in off), job.part


@once
def test_a_study_runs_stores_and_does_nothing_twice(tiny, tmp_path, capsys, monkeypatch):
    words = ["study", tiny, "--seeds", "2", "--backends", "jax", "--set", "data=synthetic"]
    assert command.main(words) == 2
    assert "--output" in capsys.readouterr().err
    words += ["--output", "out"]
    assert command.main(words) == 0
    said = capsys.readouterr().out
    results = tmp_path / "out" / "tiny"
    stored = study.stored(results)
    assert [s["seed"] for s in stored[None]] == [0, 1]
    assert stored[None][0]["epochs"] == 2
    assert f"fmnist train --recipe {tiny} --seed 0" in stored[None][0]["command"]
    assert stored[None][0]["test_accuracy_tta"] is not None
    assert "SYNTHETIC DATA" in said
    assert (results / "curves.png").stat().st_size > 10_000
    assert "SYNTHETIC DATA" in (results / "README.md").read_text()

    before = (results / "jax-0" / "summary.json").stat().st_mtime_ns
    monkeypatch.setattr(study, "train", lambda *_: pytest.fail("ran twice"))
    assert command.main(words) == 0
    assert (results / "jax-0" / "summary.json").stat().st_mtime_ns == before


@pytest.mark.slow
@once
def test_a_repetition_is_compared_value_by_value(tiny, tmp_path, capsys):
    words = ["study", tiny, "--seeds", "1", "--set", "data=synthetic", "--output", "out"]
    assert command.main([*words, "--again"]) == 2
    assert "no stored run" in capsys.readouterr().err
    assert command.main(words) == 0
    assert command.main([*words, "--again"]) == 0
    assert "equal to the bit" in capsys.readouterr().out
    path = tmp_path / "out" / "tiny" / "jax-0" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"accuracy": 0', '"accuracy": 1', 1))
    # What an earlier repetition left must not be taken for this one.
    left = tmp_path / "runs" / "study" / "tiny" / "again" / "jax-0" / "metrics.jsonl"
    left.write_text(path.read_text())
    summary = path.parent / "summary.json"
    told = json.loads(summary.read_text())
    told["hardware"]["processor"] = "another"
    summary.write_text(json.dumps(told))
    assert command.main([*words, "--again"]) == 1
    said = capsys.readouterr().out
    assert "stored" in said
    assert "processor: another then, " in said


@pytest.mark.slow
@once
def test_minutes_stop_within_a_run_which_goes_on(tiny, tmp_path, capsys):
    words = ["study", tiny, "--seeds", "1", "--output", "out"]
    words += ["--set", "data=synthetic", "epochs=400", "limit_train_batches=20"]
    assert command.main([*words, "--minutes", "0.3"]) == 143
    assert "the same command" in capsys.readouterr().out
    assert not (tmp_path / "out" / "tiny" / "jax-0" / "summary.json").exists()
    run = tmp_path / "runs" / "study" / "tiny" / "jax-0"
    steps = json.loads((run / "summary.json").read_text())["steps"]
    assert 0 < steps < 8000
    job = study.plan(tiny, ["jax"], 1, None, {"data": "synthetic", "epochs": 400})[0]
    with pytest.raises(UserError, match=r"limit_train_batches 20; .* has 3 now"):
        study.check(job, run)


@once
def test_a_signal_to_the_study_stops_its_training_at_a_checkpoint(tiny, tmp_path):
    words = [sys.executable, "-m", "bench", "study", tiny, "--seeds", "1", "--output", "out"]
    words += ["--set", "data=synthetic", "epochs=2000", "limit_train_batches=20"]
    env = {**os.environ, "PYTHONPATH": str(cells.ROOT)}
    run = tmp_path / "runs" / "study" / "tiny" / "jax-0"
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while not list(run.glob("checkpoints/step-*")) and time.monotonic() < deadline:
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)  # SIGINT is ignored below a shell's background job
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 143
    assert said == "bench: interrupted; what was measured is kept\n"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("interrupted", "SIGTERM")


def test_stored_runs_of_other_settings_are_not_mixed_in(tiny, tmp_path):
    job = study.plan(tiny, ["jax"], 1)[0]
    folder = tmp_path / "run"
    folder.mkdir()
    config = job.config()
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"data_dir": "/elsewhere"}))
    study.check(job, folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"lr": 0.5}))
    with pytest.raises(UserError, match=r"made with lr 0.5; .* has 0.002 now"):
        study.check(job, folder)


@once
def test_a_run_that_fails_ends_the_study_with_its_message(tiny, capsys):
    words = ["study", tiny, "--output", "out", "--set", "data=synthetic"]
    words += ["--set", "model=lenet:depth=3"]  # given twice, both hold
    assert command.main(words) == 2
    printed = capsys.readouterr()
    assert "lenet" in printed.err
    assert "--data synthetic --model lenet:depth=3" in " ".join(printed.out.split())


def test_the_tables_say_mean_deviation_and_difference_of_pairs(tmp_path):
    for backend, seed, accuracy in (
        ("jax", 0, 0.94), ("jax", 1, 0.95), ("tensorflow", 0, 0.94), ("tensorflow", 1, 0.96),
    ):  # fmt: skip
        write(tmp_path, f"{backend}-{seed}", summary(backend, seed, accuracy))
    for part, shift in (("full", 0.0), ("label-smoothing", -0.01), ("flips", 0.002)):
        for seed in (0, 1):
            found = summary("jax", seed, 0.9 + 0.01 * seed + shift * (1 + seed), part=part)
            write(tmp_path, f"ablation/{part}/jax-{seed}", found)
    stored = study.stored(tmp_path)
    jax, tensorflow = findings.runs_table(stored[None])
    row = ["jax", "2 cores", "2", "1,000", "2", "94.50 ± 0.71", "-", "94.00, 95.00", "1 min 00 s"]
    assert jax == row
    assert tensorflow[5] == "95.00 ± 1.41"
    said = findings.agreement(stored[None])
    assert "-0.500 points" in said
    assert "error of the difference 1.118" in said
    assert said.endswith("the same test accuracy with seed 0")
    assert "error" not in findings.agreement([stored[None][0], stored[None][2]])
    full, worst, best = findings.parts_table(stored)
    assert full[0] == "(the full recipe)"
    assert (worst[0], worst[5]) == ("label smoothing", "-1.50 ± 0.50")
    assert (best[0], best[5]) == ("flips", "+0.30 ± 0.10")
    single = {part: runs[:1] for part, runs in stored.items() if part}
    assert [row[5] for row in findings.parts_table(single)] == ["-", "-1.00", "+0.20"]
    assert findings.header(stored[None]) == {
        "seconds": 70,
        "backends": ["jax", "tensorflow"],
        "test_accuracy": {"mean": 0.945, "std": 0.0071, "n": 2},
    }
    assert findings.header(stored[None][:1])["test_accuracy"].keys() == {"mean", "n"}
    text = findings.markdown("r", "a recipe", stored)
    assert "label smoothing" in text
    assert "--ablation --backends jax --seeds 2" in text
    assert "SYNTHETIC" not in text
    for path in (
        findings.curves("r", stored[None], tmp_path / "curves.png"),
        findings.ablation("r", stored, tmp_path / "ablation.png"),
    ):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_runs_without_a_test_are_told_by_their_validation(tmp_path):
    found = [summary("jax", seed, 0.9 + 0.01 * seed, part="none") for seed in (0, 1)]
    assert findings.columns(found)[5] == "validation"
    assert findings.runs_table(found)[0][5:8] == ["90.50 ± 0.71", "-", "90.00, 91.00"]
    text = findings.markdown("r", "a recipe", {None: found})
    assert "validation accuracy in per cent" in text
    assert findings.curves("r", found, tmp_path / "curves.png").stat().st_size > 10_000
    assert findings.columns([summary("jax", 0, 0.9)])[5] == "test"
    for one, backend in zip(found, runtime.BACKENDS, strict=True):  # held nothing out, either
        one |= {"validation_accuracy": None, "backend": backend}
    assert findings.runs_table(found)[0][5:8] == ["-", "-", "-"]
    assert findings.agreement(found) is None
    tested = [summary("jax", 0, 0.9)]
    table = findings.readme({"held": found, "tested": tested}, "results")
    assert "tested" in table
    assert "held" not in table  # its accuracies are no test's


def test_the_machine_of_each_run_is_told():
    gpu = {"device": "NVIDIA H", "hardware": {"processor": "host", "cores": 16}}
    runs = [summary("jax", 0, 0.9), summary("jax", 1, 0.9, **gpu)]
    assert findings.runs_table(runs)[0][1] == "2 cores, NVIDIA H"
    text = findings.markdown("r", "a recipe", {None: runs})
    assert "a chip, 2 cores; keras 3, jax 1." in text
    assert "host, 16 cores, NVIDIA H; keras 3, jax 1." in text


@pytest.mark.parametrize(
    "words",
    [
        ["study"],
        ["study", "baselin"],
        ["study", "baseline", "--seeds", "0"],
        ["study", "baseline", "--minutes", "0"],
        ["study", "baseline", "--ablation", "nothing"],
        ["study", "baseline", "--set", "epochs", "--output", "out"],
        ["study", "baseline", "--set", "epoch=1", "--output", "out"],
        ["study", "baseline", "--backends", "torch"],
    ],
)
def test_bad_options_end_with_one_message(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("bench: ")
    assert len(said.splitlines()) == 1


def genuine():
    """The stored runs of the recipes, by name, and the folder."""
    results = output.DEFAULT_OUTPUT
    found = {name: study.stored(results / name) for name in recipes.names()}
    return results, {name: stored for name, stored in found.items() if None in stored}


def test_the_readme_shows_the_stored_runs():
    results, found = genuine()
    text = findings.readme({n: stored[None] for n, stored in found.items()}, "bench/results")
    assert text in (results.parents[1] / "README.md").read_text()


def test_each_study_says_what_is_stored():
    results, found = genuine()
    for name, stored in found.items():
        text = findings.markdown(name, recipes.read(name)[0]["about"], stored)
        assert text == (results / name / "README.md").read_text()
        pictures = {"curves.png"} | ({"ablation.png"} if study.FULL in stored else set())
        assert pictures <= {path.name for path in (results / name).iterdir()}


def test_stored_runs_are_those_of_the_recipes_of_today():
    results, found = genuine()
    for name, stored in found.items():
        seeds = {s["seed"] for s in stored[None]}
        backends = {s["backend"] for s in stored[None]}
        parts = None if study.FULL not in stored else [p for p in stored if p not in (None, "full")]
        jobs = study.plan(name, sorted(backends), max(seeds) + 1)
        jobs += [] if parts is None else study.plan(name, ["jax"], max(seeds) + 1, parts)
        for job in jobs:
            study.check(job, results / name / job.place)


@pytest.mark.parametrize("name", ["baseline", "cpu-minute", "sprint"])
def test_stored_runs_of_a_seed_are_equal_across_backends(name):
    results, found = genuine()
    seeds = [s["seed"] for s in found[name][None] if s["backend"] == "tensorflow"]
    assert seeds
    for seed in seeds:
        jax, tensorflow = (
            list(study.values(results / name / f"{backend}-{seed}" / "metrics.jsonl"))
            for backend in runtime.BACKENDS
        )
        assert len(jax) > 50
        if "loss_tta" in jax[-1]:  # a mean outside the compiled programs, whose order is their own
            ours, theirs = (records[-1].pop("loss_tta") for records in (jax, tensorflow))
            assert ours == pytest.approx(theirs, rel=1e-6)
        assert jax == tensorflow
