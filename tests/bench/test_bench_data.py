"""The bench of pipelines: its table, and one real measurement of tiny folders."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import data


def measured(images, backend, who, seconds):
    epochs = [{"seconds": s, "loss": 1.0} for s in (9.0, *seconds)]
    cell = {"model": images, "backend": backend, "contestant": who, "images": 100}
    return {**cell, "epochs": epochs, "peak_memory_mb": 500.0}


def test_ours_are_compared_with_the_better_peer():
    found = [
        measured("jpeg-64", "jax", "files", [1.0, 1.0]),
        measured("jpeg-64", "jax", "image_dataset_from_directory", [4.0, 4.0]),
        measured("jpeg-64", "torch", "Lightning", [2.0, 2.0]),
        {"model": "jpeg-64", "backend": "tensorflow", "contestant": "files", "error": "no room"},
        measured("jpeg-64", "jax", "files", [1.0, 0.5]),
    ]
    rows = data.table(found)
    assert [row[-2:] for row in rows] == [
        ["2.00", "Lightning (torch)"],
        ["-", "-"],
        ["-", "-"],
        ["-", "-"],
    ]
    assert rows[0][2:5] == ["100", "100 to 200", "500"]
    assert rows[3][2] == "failed: no room"
    assert data.line(found[1]).endswith("image_dataset_from_directory: 25 images/s, loss 1.000")


def test_streams_are_compared_with_the_device_on_their_backend():
    found = [
        measured("lenet", backend, who, [seconds])
        for backend, times in (("jax", (1.0, 1.25, 1.0)), ("tensorflow", (2.0, 2.0, 2.5)))
        for who, seconds in zip(("resident", "stream", "cache"), times, strict=True)
    ]
    expected = ["- -", "0.80 resident (jax)", "1.00 resident (jax)"]
    expected += ["- -", "1.00 resident (tensorflow)", "0.80 resident (tensorflow)"]
    assert [" ".join(row[-2:]) for row in data.table(found)] == expected


@pytest.mark.slow
def test_one_real_comparison(backend, tmp_path, monkeypatch):
    words = ["--epochs", "1", "--rounds", "1", "--backends", backend, "--output", str(tmp_path)]
    small = "from bench import data, __main__ as m\n"
    small += "data.SETS = {n: (*s[:2], 128, 32, s[4]) for n, s in data.SETS.items()}\n"
    small += f"raise SystemExit(m.main(['data', *{words}]))"
    done = subprocess.run(
        [sys.executable, "-c", small],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("data-*.json"))]
    cells = [cell for result in results for cell in result["cells"]]
    assert [len(result["cells"]) for result in results] == [3, 3, 3]
    for cell in cells:  # the peers may not be installed
        if cell["contestant"] != "Lightning" or "No module named" not in cell.get("error", ""):
            assert cell["images"] == 128
            assert len(cell["epochs"]) == 2, cell
            assert 0 < cell["epochs"][1]["loss"] < 10
