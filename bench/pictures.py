"""`python -m bench.pictures RUN...` measures `fmnist predict` on pasted test images.

The pictures are prepared once; the models of all runs, of several seeds, tell what they show.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.pasted import BACKGROUNDS, paste
from fmnist_keras3 import Predictor, load_run, runtime
from fmnist_keras3.data import sources
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.inference.predictor import Prediction

OUTPUT = Path(__file__).parent / "results/predict/pasted.json"


FILLING = ", filling"  # behind the name of a background: the garment runs out of the picture
PICTURES = (*BACKGROUNDS, *(name + FILLING for name in ("white", "coloured", "wooden")))


def looked(
    predictor: Predictor, test: Split, kinds: Iterable[str]
) -> Iterator[tuple[str, list[Prediction]]]:
    """Yield what is said of the images of ``test`` as they are, and of each kind of pictures.

    The pictures are files, as those of users are.
    """
    yield "direct", predictor(list(test.x))
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            rng = np.random.default_rng(zlib.crc32(kind.encode()))
            files = [Path(folder) / f"{number:05}.jpg" for number in range(len(test))]
            background, filling = kind.removesuffix(FILLING), kind.endswith(FILLING)
            for file, image in zip(files, test.x, strict=True):
                file.write_bytes(paste(image[..., 0], background, rng, filling))
            yield kind, predictor(files)


def measure(predictor: Predictor, test: Split, kinds: Iterable[str] = PICTURES) -> dict[str, Any]:
    """Return the accuracy on the images of ``test`` as they are, and on each kind of pictures."""
    names = np.array(predictor.class_names)[test.y]
    return {
        kind: float(np.mean([p.label == name for p, name in zip(said, names, strict=True)]))
        for kind, said in looked(predictor, test, kinds)
    }


def main() -> None:
    runs = [load_run(path) for path in sys.argv[1:]]
    test = sources.load("fashion_mnist").test.take(slice(400))
    found = {}
    for kind, said in looked(Predictor(runs[0]), test, PICTURES):
        images = np.stack([one.image for one in said])[..., None].astype(np.float32)
        outputs = [np.asarray(run.model.predict_on_batch(images)) for run in runs]
        found[kind] = [float((rows.argmax(axis=1) == test.y).mean()) for rows in outputs]
        print(f"{kind:20} {np.mean(found[kind]):.4f}  {found[kind]}", flush=True)
    keys = ("model", "backend", "epochs", "seed", "test_accuracy")
    result = {
        "command": "python -m bench.pictures RUN...",
        "images": len(test),
        "accuracy": {kind: round(float(np.mean(values)), 4) for kind, values in found.items()},
        "accuracies": found,
        "models": [{k: run.summary[k] for k in keys} for run in runs],
        "versions": {name: runtime.version(name) for name in ("keras", "numpy", "pillow", "scipy")},
    }
    OUTPUT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
