"""Sets that do not fit: little memory, a first step soon, and a resume to the same bits.

FMNIST_TEST_GB=3 makes the set on disk larger; it is removed afterwards.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
MOST_MB = 1500  # more than a small set needs
GIGABYTES = float(os.environ.get("FMNIST_TEST_GB", "1"))

pytestmark = pytest.mark.slow


def process(kind, argument, steps, run, kill=0):
    command = [sys.executable, str(HERE / "victim.py"), kind, str(argument), str(steps), str(run)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(
        [*command, str(kill)], env=environment, capture_output=True, text=True, cwd=run.parent
    )
    if kill:
        assert done.returncode == -9, done.stderr[-3000:]
        return None
    assert done.returncode == 0, done.stderr[-3000:]
    print(kind, argument, done.stdout.strip())
    return json.loads(done.stdout.splitlines()[-1])


def check(kind, small, large, steps, folder):
    """Run a small and a large set, and the large one killed amid its second epoch and resumed."""
    few = process(kind, small, steps, folder / "small")
    many = process(kind, large, steps, folder / "large")
    assert many["pipeline"] == "stream"
    assert many["peak"] - few["peak"] < MOST_MB
    process(kind, large, steps, folder / "killed", kill=steps + steps // 2 + 1)
    again = process(kind, large, steps, folder / "killed")
    assert (again["weights"], again["losses"]) == (many["weights"], many["losses"])
    return many


def test_40_gigabytes_that_are_made_from_their_numbers(tmp_path):
    found = check("described", 3_000, 3_300_000, 20, tmp_path)
    assert found["gigabytes"] > 40


def folder_of(path, files, bases):
    for split, count in (("train", files), ("test", 20)):
        for i in range(count):
            file = path / split / f"class{i % 10}" / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bases[i % len(bases)])
    return path


def test_a_folder_of_photos(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(100):
        pixels = rng.integers(i, 256, (192, 256, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg", quality=95)
    bases = [(tmp_path / f"{i}.jpg").read_bytes() for i in range(100)]
    count = int(GIGABYTES * 1e9 / np.mean([len(base) for base in bases]))
    small = folder_of(tmp_path / "small_set", 100, bases)
    large = folder_of(tmp_path / "large_set", count, bases)
    on_disk = sum(file.stat().st_size for file in large.rglob("*.jpg"))
    assert on_disk > 0.99e9 * GIGABYTES
    found = check("folder", small, large, 20, tmp_path)
    print(f"{count:,} files of {on_disk / 1e9:.2f} GB")
    assert found["gigabytes"] > 0.6
