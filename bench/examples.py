"""`python -m bench.examples NAME --epochs N` runs an example and stores what it measured.

The result is `bench/results/examples/NAME-BACKEND.json`, and the picture is left in the run.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from fmnist_keras3 import runtime

FOLDER = Path(__file__).parent / "results/examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--run_dir", required=True, help="new folder of the run")
    given = parser.parse_args()
    if os.path.exists(given.run_dir):
        parser.error(f"{given.run_dir} is there, and a training that goes on would not be timed")
    backend = runtime.prepare()
    example = import_module(f"fmnist_keras3.examples.{given.name}")
    began = time.perf_counter()
    figures = example.main(epochs=given.epochs, run_dir=given.run_dir)
    ends = [json.loads(f.read_text())["status"] for f in Path(given.run_dir).rglob("summary.json")]
    if set(ends) != {"completed"}:
        parser.exit(1, f"{given.run_dir} was not trained to its end, so nothing is stored\n")
    result = {
        "command": f"KERAS_BACKEND={backend} python -m fmnist_keras3.examples.{given.name} "
        f"--epochs {given.epochs}",
        "backend": backend,
        "epochs": given.epochs,
        "figures": {name: round(value, 5) for name, value in figures.items()},
        "seconds": round(time.perf_counter() - began, 1),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": runtime.hardware(),
        "versions": runtime.versions(),
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{given.name}-{backend}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["figures"]))


if __name__ == "__main__":
    main()
