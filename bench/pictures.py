"""`python -m bench.pictures RUN [OUTPUT]` measures `fmnist predict` on pasted test images."""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from bench.pasted import BACKGROUNDS, paste
from fmnist_keras3 import Predictor, load_run, runtime
from fmnist_keras3.data import sources
from fmnist_keras3.data.dataset import Split

OUTPUT = Path(__file__).parent / "results/predict/pasted.json"


def measure(predictor: Predictor, test: Split, backgrounds: Any = BACKGROUNDS) -> dict[str, Any]:
    """Return the accuracy on the images of ``test`` as they are, and on each of the backgrounds.

    The pictures are files, as those of users are.
    """
    names = np.array(predictor.class_names)[test.y]

    def accuracy(images: Any) -> float:
        return float(np.mean([p.label == name for p, name in zip(images, names, strict=True)]))

    found = {"direct": accuracy(predictor(list(test.x)))}
    with tempfile.TemporaryDirectory() as folder:
        for background in backgrounds:
            rng = np.random.default_rng(zlib.crc32(background.encode()))
            files = [Path(folder) / f"{number:05}.jpg" for number in range(len(test))]
            for file, image in zip(files, test.x, strict=True):
                file.write_bytes(paste(image[..., 0], background, rng))
            found[background] = accuracy(predictor(files))
    return found


def main() -> None:
    run = load_run(sys.argv[1])
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else OUTPUT
    test = sources.load("fashion_mnist").test.take(slice(400))
    result = {
        "images": len(test),
        "accuracy": measure(Predictor(run), test),
        "model": {k: run.summary[k] for k in ("model", "epochs", "seed", "test_accuracy")},
        "versions": {name: runtime.version(name) for name in ("keras", "numpy", "pillow", "scipy")},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["accuracy"], indent=2))


if __name__ == "__main__":
    main()
