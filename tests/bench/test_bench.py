"""The bench: options, order, pooling, comparison, tables, and one real cell."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import __main__ as command
from bench import cells, charts, data, scaling, tables, tuners
from bench.cells import CONTESTANTS, Cell, Settings
from bench.worker import WORK

FIT, TRAINER = ("fit", "jax", "lenet"), ("trainer", "jax", "lenet")
KEYS = ("contestant", "backend", "model")


def parsed(*words: str) -> Settings:
    return command.settings_from(vars(command.parser().parse(words)))


def cell(key, seconds, *, seed=0, loss=0.5, **more):
    """A measured cell: a slow epoch of warm-up, then ``seconds`` for each 1,000 images."""
    epochs = [{"seconds": s, "elapsed": s, "loss": loss, "accuracy": 0.8} for s in (9.0, *seconds)]
    contestant, backend, model = key
    return {
        "contestant": contestant,
        "backend": backend,
        "model": model,
        "seed": seed,
        "images": 1000,
        "parameters": 61706,
        "epochs": epochs,
        "compile_seconds": 2.0,
        "first_step": 5.0,
        "peak_memory_mb": 800.0,
        **more,
    }


def failed(key, error="it broke", seed=0):
    return {**dict(zip(KEYS, key, strict=True)), "seed": seed, "error": error}


def result(measured, name="synthetic"):
    return {
        "command": "python -m bench --quick",
        "date": "2026-11-23 07:00:00 +0000",
        "hardware": {"processor": "a chip", "cores": 2, "memory_gib": 8.0},
        "versions": {"keras": "3.15.1"},
        "settings": {"epochs": 3, "rounds": 1, "batch_size": 128},
        "dataset": {"name": name, "train": 1000, "validation": 256},
        "cells": measured,
    }


def test_the_options_become_settings(monkeypatch):
    monkeypatch.delenv("FMNIST_DATA_DIR", raising=False)
    assert parsed() == Settings(data="synthetic")
    quick = parsed("--quick", "--limit-train", "1280", "--models", "cnn", "cnn")
    assert (quick.rounds, quick.limit_train, quick.models) == (1, 1280, ("cnn",))
    assert set(parsed("--quick", "--peers").contestants) >= {"fit", "jax", "torch", "lightning"}
    monkeypatch.setenv("FMNIST_DATA_DIR", "somewhere")
    assert parsed().data == "real"
    assert parsed("--data", "synthetic").data == "synthetic"


@pytest.mark.parametrize(
    "words",
    [
        ["--models", "lenett"],
        ["--epochs", "0"],
        ["--limit_train", "5"],
        ["--epochs", "many"],
        ["--bakends", "jax"],
        ["compare", "nowhere.json", "nowhere.json"],
        ["compare", "only-one.json"],
        ["scaling", "--quick"],
        ["--batch_sizes", "0"],
        ["--precisions", "fp8"],
    ],
)
def test_bad_options_end_with_one_message(words, capsys):
    assert command.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("bench: ")
    assert len(said.splitlines()) == 1
    assert "Traceback" not in said


def test_an_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "taken").touch()
    assert command.main(["--output", str(tmp_path / "taken")]) == 2
    assert "taken" in capsys.readouterr().err


def test_rounds_interleave_all_cells_and_every_other_runs_backwards():
    settings = Settings(rounds=2, contestants=("trainer", "fit", "torch"))
    order = cells.plan(settings)
    half = len(order) // 2
    first, second = order[:half], order[half:]
    assert [c.seed for c in order] == [0] * half + [1] * half
    assert [str(c) for c in second] == [str(c) for c in first[::-1]]
    assert len(set(map(str, first))) == half == 2 * (2 + 2 + 1)


def test_peers_run_whatever_the_backends_and_keras_contestants_on_those_asked_for():
    order = cells.plan(Settings(backends=("tensorflow",), contestants=("fit", "jax"), rounds=1))
    assert {(c.contestant, c.backend) for c in order} == {("fit", "tensorflow"), ("jax", "jax")}


def test_work_is_what_contestants_share():
    settings = Settings(
        models=("cnn",), precisions=("32", "bf16-mixed"), batch_sizes=(128, 512), rounds=1
    )
    works = dict.fromkeys(str(c).rsplit(" ", 2)[0] for c in cells.plan(settings))
    assert list(works) == ["cnn", "cnn batch 512", "cnn bf16-mixed", "cnn bf16-mixed batch 512"]
    only_float32 = Settings(contestants=("jax",), precisions=("bf16-mixed",))
    assert cells.plan(only_float32) == []
    big = {"precision": "bf16-mixed", "batch_size": 512}
    rows = cells.pool([cell(FIT, (1,)), cell(FIT, (2,), **big), cell(TRAINER, (1,), **big)])
    assert [row.work for row in rows] == ["lenet", *["lenet bf16-mixed batch 512"] * 2]
    assert tables.cells_of(rows)[2][5] == "2.00"  # against the fit of the same work


def test_the_device_is_chosen_by_variables():
    assert cells.environment("fit", "jax", "cpu")["JAX_PLATFORMS"] == "cpu"
    assert cells.environment("torch", "torch", "cpu")["CUDA_VISIBLE_DEVICES"] == ""
    assert cells.environment("fit", "jax", "gpu")["JAX_PLATFORMS"] == "cuda"


def test_backends_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(command.runtime, "version", {"jax": "0.10"}.get)
    assert parsed().backends == ("jax",)
    assert parsed("--backends", "tensorflow").backends == ("tensorflow",)


def test_overhead_and_evaluation_have_their_lines():
    engine = ("engine", "jax", "lenet")
    measured = [
        cell(TRAINER, (1.25,), evaluate=[0.5, 0.5, 2], predict=[1, 1, 1]),
        cell(FIT, (4,), evaluate=[1, 1, 1], predict=[2, 2, 2]),
        cell(engine, (1,)),
    ]
    rows = cells.pool(measured)
    assert tables.overheads(rows) == [
        "Overhead of lenet trainer (jax) over the bare engine: +25.0 %."
    ]
    assert tables.outside_of(rows)[0][3:] == ["2,000", "2.00", "1,000", "2.00"]
    assert "evaluation, images/s" in tables.markdown(result(measured))
    assert "evaluation, images/s" not in tables.markdown(result([cell(engine, (1,))]))


def test_the_readme_shows_the_stored_result():
    root = Path(__file__).parents[2]
    stored = json.loads((root / "bench/results/cpu-2-cores.json").read_text())
    assert not tables.is_synthetic(stored)
    readme = (root / "README.md").read_text()
    assert tables.readme(stored, "bench/results/cpu-2-cores") in readme
    assert tables.markdown(stored) == (root / "bench/results/cpu-2-cores.md").read_text()


def test_scaling_compares_time_and_memory():
    def grown(images, seconds, megabytes):
        epochs = [
            {"seconds": s, "peak_memory_mb": m} for s, m in zip(seconds, megabytes, strict=True)
        ]
        return {"model": "lenet", "backend": "jax", "limit": images, "epochs": epochs}

    less, more = (
        grown(n, [9, *[n / 12_800] * 9], [500, 500, 550, 600, 600, 600, 600, 600, 600, 630])
        for n in scaling.IMAGES
    )
    time, memory = scaling.table([less, more])
    assert time[2:] == ["seconds an epoch, 12,800 and 25,600 images", "1", "2", "2.00", "2"]
    assert memory[2:] == ["peak MB after 5 and 10 epochs", "600", "630", "1.05", "1"]
    broken = {**more, "error": "no memory"}
    assert [row[2] for row in scaling.table([less, broken])] == ["failed: no memory"]


def test_every_contestant_has_a_function():
    assert set(WORK) == {"prepare", *CONTESTANTS, *tuners.TUNERS, *data.CONTESTANTS}


def test_a_plain_contestant_does_not_get_the_trainers_flag(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_cpu_experimental_ynn_fusion_type=")
    assert cells.environment("fit", "jax")["XLA_FLAGS"] == "--xla_a=1"
    assert cells.environment("fit", "tensorflow")["KERAS_BACKEND"] == "tensorflow"


def test_rounds_are_pooled_without_their_warm_up():
    measured = [cell(FIT, (1, 2)), failed(TRAINER), cell(FIT, (4, 4), seed=1), failed(TRAINER)]
    fit, trainer = cells.pool(measured)
    assert [list(rates) for rates in fit.rates] == [[1000, 500], [250, 250]]
    assert (fit.rate(), fit.rate(0), fit.rate(100)) == (375, 250, 1000)
    assert fit.final("accuracy") == pytest.approx(0.8)
    assert not trainer
    assert np.isnan(trainer.rate())
    assert trainer.errors == ["it broke"] * 2


def test_the_table_shows_ratios_and_failures():
    torch = ("torch", "torch", "lenet")
    other = ("fit", "tensorflow", "lenet")
    measured = [cell(TRAINER, (1,)), cell(FIT, (4,)), cell(other, (2,)), failed(torch)]
    rows = {tuple(row[1:3]): row[3:7] for row in tables.cells_of(cells.pool(measured))}
    assert rows["jax", "trainer"] == ["1,000", "1,000 to 1,000", "4.00", "2.00"]
    assert rows["tensorflow", "fit"] == ["500", "500 to 500", "1.00", "1.00"]
    assert rows["torch", "torch"] == ["failed", "-", "-", "-"]


def test_markdown_says_data_failures_and_environment():
    text = tables.markdown(result([cell(FIT, (1,)), failed(TRAINER, "no memory")]))
    assert text.startswith("**SYNTHETIC DATA")
    assert "| lenet | jax | fit | 1,000 |" in text
    assert "FAILED lenet trainer (jax), 1 of 1: no memory" in text
    assert "without the XLA flag" in text
    assert "SYNTHETIC" not in tables.markdown(result([cell(FIT, (1,))], "fashion_mnist"))


def test_different_work_is_noticed():
    same = [cell(FIT, (1,)), cell(TRAINER, (1,))]
    assert tables.doubts(cells.pool(same)) == []
    size = tables.doubts(cells.pool([same[0], cell(TRAINER, (1,), parameters=7)]))
    assert "not the same parameters" in size[0]
    others = [cell(("fit", "tensorflow", "lenet"), (1,)), cell(TRAINER, (1,), loss=2.0)]
    assert "trainer (jax) is 2.000" in tables.doubts(cells.pool([same[0], *others]))[0]


def test_the_charts_are_drawn_with_failures_too(tmp_path):
    drawn = result([cell(FIT, (1, 1.1)), failed(TRAINER), cell(("fit", "jax", "cnn"), (2, 3))])
    for draw in (charts.speeds, charts.accuracies):
        path = draw(drawn, tmp_path / f"{draw.__name__}.png")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_interval_of_a_ratio_holds_it_and_widens_with_the_spread():
    steady = [np.full(3, 100.0), np.full(3, 100.0)]
    assert tables.bootstrap_ratio(steady, [2 * r for r in steady]) == (2, 2, 2)
    noisy = [np.array([80.0, 100, 120]), np.array([90.0, 100, 130])]
    ratio, low, high = tables.bootstrap_ratio(noisy, noisy)
    assert low < ratio == 1 < high


def test_compare_tells_slower_faster_and_missing(tmp_path, capsys):
    trainer_tf = ("trainer", "tensorflow", "lenet")
    a = result([cell(FIT, (1, 1.01)), cell(TRAINER, (1, 1.01)), cell(trainer_tf, (1,))])
    b = result([cell(FIT, (2, 2.02)), cell(TRAINER, (0.5, 0.51)), failed(trainer_tf)])
    fit, trainer, missing = tables.compare(a, b)[0]
    assert (fit[5], fit[7], fit[-1]) == ("0.50", "1.00", "slower")
    assert (trainer[7], trainer[-1]) == ("3.98", "faster")
    assert missing[-1] == "no figure in B"
    for name, content in (("a", a), ("b", b)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert command.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "slower" in capsys.readouterr().out


def test_a_cell_that_cannot_run_is_reported(tmp_path):
    # The folder holds no data: the worker's exception must come back as the reason.
    done = cells.measure(Cell("jax", "jax", "lenet", 0), Settings(), tmp_path)
    assert "No such file" in done["error"]
    slow = cells.measure(Cell("jax", "jax", "lenet", 0), Settings(timeout=1), tmp_path)
    assert "error" in slow


def test_a_crash_and_a_timeout_are_reasons(monkeypatch):
    crash = subprocess.CompletedProcess([], -11, stdout="", stderr="warning\nSegmentation fault\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: crash)
    assert cells.run_worker({}, {}, 5)["error"] == "the process ended with -11: Segmentation fault"

    def endless(*args, **options):
        raise subprocess.TimeoutExpired("bench", options["timeout"])

    monkeypatch.setattr(subprocess, "run", endless)
    assert "no answer within 5 seconds" in cells.run_worker({}, {}, 5)["error"]


def tuned(who, backend, total, **more):
    found = {"contestant": who, "backend": backend, "trials": 4, "total": total, "best": 0.9}
    return {**found, "seconds": [total / 4] * 4, **more}


def test_trials_an_hour_are_compared_with_ours_on_the_same_backend_or_our_best():
    cost = {"to_first_steps": 0.2, "seconds_of_trial": 2.04, "seconds_of_training": 2.0}
    found = [
        tuned("fmnist tune", "jax", 10.0, **cost, overhead=0.02),
        tuned("fmnist tune", "tensorflow", 20.0, **cost, overhead=0.02),
        tuned("KerasTuner", "tensorflow", 60.0),
        tuned("Optuna and Lightning", "torch", 40.0),
        {"contestant": "KerasTuner", "backend": "jax", "error": "no keras_tuner"},
    ]
    rows = tuners.table(found)
    assert [row[-1] for row in rows] == ["1.00", "1.00", "3.00", "4.00", "-"]
    assert [row[-2] for row in rows[:2]] == ["1,440", "720"]
    assert rows[-1][2] == "failed: no keras_tuner"
    said = tuners.costs(found)
    assert len(said) == 2
    assert "0.20 s after the trial before" in said[0]
    assert said[0].endswith("2.000 s: +2.0%.")


@pytest.mark.slow
def test_one_real_comparison_of_tuners(backend, tmp_path):
    words = ["tune", "--trials", "3", "--backends", backend, "--output", str(tmp_path)]
    words += ["--data", "synthetic", "--limit_train", "256", "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SYNTHETIC DATA" in done.stdout
    content = json.loads((tmp_path / "tuners.json").read_text())
    ours, *peers = content["cells"]
    assert len(ours["seconds"]) == ours["trials"] == 3
    assert ours["to_first_steps"] < ours["seconds_of_trial"] + 1
    for peer in peers:  # which may not be installed
        assert peer.get("trials") == 3 or "No module named" in peer["error"], peer


@pytest.mark.slow
def test_one_real_cell_in_its_own_process(backend, tmp_path):
    words = ["--contestants", "trainer", "fit", "--models", "lenet", "--backends", backend]
    words += ["--data", "synthetic", "--limit_train", "256", "--epochs", "1", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words, "--output", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SYNTHETIC DATA" in done.stdout
    content = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert content["synthetic"]
    trainer, fit = content["cells"]
    assert trainer["parameters"] == fit["parameters"] == 61706
    assert len(trainer["epochs"]) == len(fit["epochs"]) == 2
    for measured in (trainer, fit):
        assert measured["compile_seconds"] < measured["first_step"] < measured["wall_seconds"]
        assert 0 < measured["epochs"][-1]["loss"] < 3
    assert "ynn_fusion" not in fit["flags"].get("XLA_FLAGS", "")
    assert len(list(tmp_path.glob("*.png"))) == 2
