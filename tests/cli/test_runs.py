"""`fmnist runs`: what there is, in which order; and that pruning takes nothing it should not."""

import io
import json
import sys

import pytest

from fmnist_keras3.cli import main
from fmnist_keras3.runs.lock import locked


def make(folder, validation=None, **changes):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: lenet\n")
    summary = {
        "status": "completed", "model": "lenet", "backend": "jax", "epochs": 3,
        "validation_accuracy": validation, "test_accuracy": None, "total_seconds": 61.0,
        "dataset": {"name": "fashion_mnist"},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary | changes))
    (folder / "checkpoints/step-00000003").mkdir(parents=True)
    (folder / "checkpoints/step-00000003/state.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs/a", 0.91, model="airnet", test_accuracy=0.9)
    make(tmp_path / "runs/b", 0.93, test_accuracy=0.92)
    make(tmp_path / "runs/c", 0.92, epochs=9)
    make(tmp_path / "runs/deep/other", 0.5, dataset={"name": "idx"})
    make(tmp_path / "runs/none", status="failed", epochs=None)
    make(tmp_path / "runs/going", 0.4, status="running")
    make(tmp_path / "runs/study/trials/trial-0001", 0.3)
    return tmp_path / "runs"


def listed(capsys, *words):
    assert main(["runs", "--output", "json", *words]) == 0
    return [row["run"].removeprefix("runs/") for row in json.loads(capsys.readouterr().out)]


ALL = ["a", "b", "c", "deep/other", "going", "none", "study/trials/trial-0001"]


def test_runs_are_sorted_and_filtered(runs, capsys):
    assert listed(capsys) == ALL
    assert listed(capsys, "runs") == ALL
    assert listed(capsys, "--reverse") == ALL[::-1]
    best = listed(capsys, "--sort", "validation")
    assert best[:3] == ["b", "c", "a"]
    assert best[-1] == "none"  # not known
    assert listed(capsys, "--sort", "epochs", "--reverse")[-2:] == ["c", "none"]
    assert listed(capsys, "--filter", "model=air*") == ["a"]
    assert listed(capsys, "--filter", "validation>0.9", "--filter", "epochs<5") == ["a", "b"]
    assert listed(capsys, "--filter", "status=failed") == ["none"]
    assert listed(capsys, "--sort", "accuracy")[:2] == ["b", "a"]


def test_a_row_tells_what_the_summary_does(runs, capsys):
    main(["runs", "--output", "json", "--filter", "run=runs/a"])
    (row,) = json.loads(capsys.readouterr().out)
    size = sum(path.stat().st_size for path in (runs / "a").rglob("*") if path.is_file())
    assert row == {
        "run": "runs/a", "status": "completed", "model": "airnet", "backend": "jax", "epochs": 3,
        "validation_accuracy": 0.91, "test_accuracy": 0.9, "data": "fashion_mnist",
        "seconds": 61.0, "bytes": size,
    }  # fmt: skip


def test_the_table(runs, capsys):
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    for shown in ("airnet", "91.00 %", "1 min 01 s", "fashion_mnist", "7 runs, 0.0 MB"):
        assert shown in out
    (runs / "a/summary.json").write_text('{"status"')
    assert main(["runs", "--filter", "run=*/a"]) == 0
    assert "damaged summary" in capsys.readouterr().out
    assert main(["runs", "--filter", "model=no"]) == 0
    assert "No run below runs is like that." in capsys.readouterr().out


def left(runs):
    return sorted(str(p.parent.relative_to(runs)) for p in runs.rglob("summary.json"))


def test_prune_says_and_deletes_nothing_without_yes(runs, capsys):
    assert main(["runs", "prune"]) == 0
    out = capsys.readouterr().out
    assert "stays: runs/b (best of fashion_mnist by validation accuracy)" in out
    assert "stays: runs/deep/other (best of idx by validation accuracy)" in out
    assert "stays: runs/going (it is running" in out
    assert "trial-0001 (it is a trial of study)" in out
    assert "Would delete 3 runs, 0.0 MB. Nothing was deleted" in out
    assert left(runs) == ALL


def test_prune_keeps_the_best(runs, capsys):
    assert main(["runs", "prune", "runs", "--keep", "2", "--yes"]) == 0
    assert left(runs) == ["b", "c", "deep/other", "going", "study/trials/trial-0001"]
    assert "deleted 2 of 2" in capsys.readouterr().out
    assert main(["runs", "prune", "--keep", "0", "--yes"]) == 0
    assert left(runs) == ["going", "study/trials/trial-0001"]
    assert main(["runs", "prune", "--keep", "0", "--yes"]) == 0
    assert "Nothing is to be deleted." in capsys.readouterr().out


def test_what_has_no_validation_accuracy_stays_unless_it_is_broken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs/recipe", test_accuracy=0.93)
    make(tmp_path / "runs/stopped", status="stopped")
    make(tmp_path / "runs/diverged", status="diverged")
    assert main(["runs", "prune", "--yes"]) == 0
    assert "stays: runs/recipe (it has no validation accuracy" in capsys.readouterr().out
    assert left(tmp_path / "runs") == ["recipe", "stopped"]
    assert main(["runs", "prune", "--keep", "0", "--yes"]) == 0
    assert left(tmp_path / "runs") == []


@pytest.mark.parametrize(("answer", "gone"), [("y\n", 3), ("\n", 0), ("n\n", 0)])
def test_a_person_is_asked(runs, monkeypatch, answer, gone):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert main(["runs", "prune"]) == 0
    assert len(left(runs)) == 7 - gone


def test_what_is_in_use_stays(runs, capsys, monkeypatch):
    make(runs / "a/inner", 0.1)
    (runs / "link").symlink_to(runs / "c")
    with locked(runs / "c"):
        assert main(["runs", "prune", "--yes"]) == 2
    captured = capsys.readouterr()
    assert "runs/c was not deleted" in captured.err
    assert "being written by" in captured.err
    assert "stays: runs/a (its folder holds other runs" in captured.out
    assert {"a", "b", "c"} <= {*left(runs)}
    monkeypatch.chdir(runs / "c")
    assert main(["runs", "prune", "..", "--yes"]) == 0
    assert "c" in left(runs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "There is no folder nowhere"),
        (["--sort", "sise"], "no column 'sise'; there are run, status"),
        (["--filter", "model"], "is no condition"),
        (["--filter", "test>high"], "'high' is no number"),
        (["--output", "xml"], "must be table or json"),
        (["a", "b"], "Unexpected 'b'"),
        (["--keep", "2"], "--keep is of fmnist runs prune"),
        (["prune", "--sort", "size"], "--sort is of fmnist runs, not"),
        (["prune", "--output", "json"], "--output json is of fmnist runs"),
        (["prune", "--keep", "-1"], "--keep"),
        (["prune", "--keep", "all"], "--keep is 'all'"),
    ],
)
def test_bad_input_gets_one_message(runs, words, said, capsys):
    assert main(["runs", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert left(runs) == ALL
