"""Writes a trained model for other programs, and looks whether they compute the same."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3.evaluation import temperature
from fmnist_keras3.evaluation.metrics import are_probabilities
from fmnist_keras3.ground import files
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.inference import to_html, to_hub
from fmnist_keras3.inference.predictor import SCALES, knowledge, model_of, scale_unknown
from fmnist_keras3.runs.load import Run

if TYPE_CHECKING:
    import keras

FORMATS = {  # who writes it, how its files' names end, what packages it needs
    "keras": ("inference.to_keras", ".keras", ()),
    "onnx": ("inference.to_onnx", ".onnx", ("onnx", "onnxruntime")),
    "saved_model": ("inference.to_saved_model", "", ("tensorflow",)),  # a folder
    "html": ("inference.to_html", ".html", ("tensorflow",)),  # which reads it back
    "hub": ("inference.to_hub", "", ()),  # a folder
}
OUTPUTS = ("probabilities", "logits")
QUANTIZE = ("none", "int8")
IMAGES, BATCH = 256, 128
RANDOM = "images of random pixels"
TOLERANCE = 2e-5  # of outputs up to 10 in size; larger ones have fewer digits behind the point
TOLERANCES = {"html": to_html.TOLERANCE}
MOST_CHANGED = 0.02  # of the labels, by weights of 8 bits, whose outputs are free to differ
TOLERANCE_UP_TO = 10


class Inexact(Exception):
    """An exported file computes something else than its model; it was not kept."""


@dataclass(frozen=True)
class Export:
    """A file that was written and checked.

    ``difference``: the largest of any output from the model's in float32, on ``images`` images, of
    which ``changed`` got another label; ``data``: what images. ``model`` is the original.
    ``size``: bytes. ``scale_unknown``: whether the model's scale was a guess, see `Predictor`.
    """

    path: Path
    format: str
    outputs: str
    class_names: tuple[str, ...]
    difference: float
    changed: int
    images: int
    data: str
    size: int
    model: keras.Model
    scale_unknown: bool

    def latencies(self) -> dict[int, tuple[float, float]]:
        """Return, for batches of 1 and 128, the milliseconds of the original and of the file.

        Nothing of a page: browsers differ, and it tells its own time.
        """
        if self.format == "html":
            return {}
        run = named(FORMATS[self.format][0]).read(self.path)
        shape = self.model.input_shape[1:]
        noise = np.random.default_rng(0).integers(0, 256, (BATCH, *shape), np.uint8)
        floats = noise.astype(np.float32)
        return {
            batch: (
                _milliseconds(lambda batch=batch: self.model.predict_on_batch(floats[:batch])),
                _milliseconds(lambda batch=batch: run(noise[:batch])),
            )
            for batch in (1, BATCH)
        }


def export(
    run_or_model: str | Path | Run | keras.Model,
    path: str | Path,
    format: str = "onnx",
    *,
    outputs: str = "probabilities",
    scale: float = 255,
    quantize: str = "none",
    data: str | None = None,
    data_dir: str | None = None,
) -> Export:
    """Write a trained classifier for other programs, and check that it computes the same there.

    ``run_or_model`` is a run directory, a .keras file, a `Run` or a Keras model; ``path`` a new
    file, of saved_model and hub a new folder. ``format`` is "onnx", "saved_model" (both take raw
    pixels, uint8, any number of images), "keras" (without the optimizer, all in float32), "hub"
    (the same as a folder with a model card, for Hugging Face) or "html" (a page that shows what the
    model says of drawings and pictures, with weights of 16 bits). ``outputs``
    are "probabilities" or "logits"; ``scale`` is 255, or 1 for a model that was trained on pixels
    divided by 255, which the file then does; ``quantize`` "int8" halves a page. The check is on
    images of the run's data set, or of ``data`` in ``data_dir``, as for `FashionMNIST`.
    Probabilities have the run's temperature, if it has one. Raises UserError for what cannot be
    exported, and for a file that is there already; `Inexact`, and leaves no file, where outputs
    differ by more than 2e-5, of a page 0.02; with "int8" where more than 2 % of the labels change.

    Example: ``export("runs/20261122-231500-baseline-jax", "model.onnx").difference``
    """
    check(path, format, outputs, scale, quantize)
    path = Path(path)
    model, run = model_of(run_or_model)
    to_keras, writer = (named(FORMATS[name][0]) for name in ("keras", format))
    takes, gives = (_one_shape(model, side) for side in ("input_shape", "output_shape"))
    if len(gives) != 2 or None in takes[1:] or len(takes) < 2:
        raise UserError(
            f"The model makes {gives} of {takes}; it must make a row of logits for each image of "
            "one size."
        )
    plain = model if to_keras.is_float32(model) else to_keras.in_float32(model)
    pixels, about_data = _images(run, takes[1:], data, data_dir)
    factor = scale / 255
    expected = _outputs(plain.predict_on_batch, pixels.astype(np.float32) * factor)
    if not np.isfinite(expected).all():
        raise UserError("The model's output is not finite: it has diverged. Take another one.")
    has_softmax = are_probabilities(expected)
    if has_softmax and outputs == "logits":
        raise UserError("The model returns probabilities, no logits. Leave outputs out.")
    softmax = outputs == "probabilities" and not has_softmax
    names, energy = knowledge(run, gives[1])
    about = {
        "model": model.name,
        "outputs": outputs,
        "classes": list(names),
        "input": f"{takes[1:]}, uint8, raw pixels 0..255",
    }
    warmth = temperature.read(run.path, model) if run is not None and softmax else 1.0
    if warmth != 1:
        about["temperature"] = warmth
    if format == "html":
        about |= to_html.about(run, pixels, expected, energy, about_data != RANDOM)
        about["weights"] = "int8" if quantize == "int8" else "float16"
    if format == "hub":
        about["card"] = to_hub.about(run, outputs, takes[1:])
    beside = files.temporary(path)
    try:
        with files.write_errors(path):
            writer.write(plain, beside, softmax, factor, about)
            # The last image alone shows that any number will do; Keras would compile once more.
            alone = () if format in ("keras", "hub") else (len(pixels) - 1,)
            found = _outputs(writer.read(beside), pixels, alone)
            if beside.is_file():
                with open(beside, "rb") as file:
                    os.fsync(file.fileno())
            tolerance = TOLERANCES.get(format, TOLERANCE) if quantize == "none" else math.inf
            difference, changed = _compared(expected / warmth, found, softmax, path, tolerance)
            if changed > MOST_CHANGED * len(pixels) and quantize != "none":
                raise Inexact(f"{path} was not kept: {changed} of {len(pixels)} labels changed.")
            if path.exists():  # made meanwhile by somebody else
                raise UserError(f"{path} exists already. Give another name.")
            os.replace(beside, path)
    finally:
        files.remove(beside)
    inside = path.rglob("*") if path.is_dir() else [path]
    size = sum(one.stat().st_size for one in inside if one.is_file())
    unknown = scale == 255 and scale_unknown(model, names, energy)
    seen = (difference, changed, len(pixels), about_data)
    return Export(path, format, outputs, names, *seen, size, model, unknown)


def check(
    path: str | Path, format: str, outputs: str, scale: float = 255, quantize: str = "none"
) -> None:
    """Raise UserError for what can be seen to be wrong before a model is loaded."""
    given = (
        ("format", format, FORMATS),
        ("outputs", outputs, OUTPUTS),
        ("scale", f"{scale:g}", SCALES),
        ("quantize", quantize, QUANTIZE),
    )
    for name, value, known in given:
        if value not in known:
            words = ", ".join(known)
            raise UserError(
                f"{name} is {value!r}; it must be one of {words}.{nearest(value, known)}"
            )
    if format == "html" and outputs != "probabilities":
        raise UserError("A page shows probabilities. Leave outputs out.")
    if format != "html" and quantize != "none":
        raise UserError(f"The format {format} has weights of 32 bits only; quantize is for html.")
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise UserError(f"{path} exists already. Give another name, or remove it.")
    folder = target.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"There is no folder {folder} that can be written, for {target.name}.")
    _, suffix, packages = FORMATS[format]
    if suffix and target.suffix != suffix:
        raise UserError(f"{path} must end in {suffix}, as files of the format {format} do.")
    missing = [n for n in packages if importlib.util.find_spec(n) is None]
    if missing:
        raise UserError(
            f"The format {format} needs {' and '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed. Type: pip install "
            + ("'fmnist-keras3[onnx]'" if format == "onnx" else " ".join(missing))
        )


def _one_shape(model: Any, side: str) -> tuple[Any, ...]:
    shape = getattr(model, side, None)
    if not isinstance(shape, tuple) or any(isinstance(n, (tuple, list)) for n in shape):
        raise UserError(f"The model has {side} {shape}; it must take and return one array.")
    return shape


def _images(
    run: Run | None, shape: tuple[int, ...], data: str | None, data_dir: str | None
) -> tuple[np.ndarray, str]:
    """Return images that the model takes, uint8, and what they are.

    Of the test split of the run's data; random pixels where that has none of this shape.
    """
    from fmnist_keras3.data.datamodule import FashionMNIST, Pixels

    config = run.config | run.config.get("data_module", {}) if run is not None else {}
    module = FashionMNIST(
        batch_size=1,  # which suits any number of training examples
        data=data or ("auto" if data_dir else config.get("data", "auto")),
        data_dir=data_dir or config.get("data_dir"),
        **{name: config[name] for name in vars(Pixels()) if name in config},
    )
    # Nothing is read, or even fetched, for a model that does not take these images.
    if ":" in module.data or math.prod(shape) == 28 * 28:
        try:
            images = (module.setup().test or module.train).x[:IMAGES]
            if math.prod(shape) == math.prod(images.shape[1:]) and images.dtype == np.uint8:
                kind = "generated" if module.source.name == "synthetic" else "real"
                return images.reshape(-1, *shape), f"{kind} images of {module.source.name}"
        except UserError:  # the run's data may be gone
            if data is not None or data_dir is not None:
                raise
    noise = np.random.default_rng(0).integers(0, 256, (IMAGES, *shape), np.uint8)
    return noise, RANDOM


def _outputs(
    run: Callable[[np.ndarray], Any], pixels: np.ndarray, more: tuple[int, ...] = ()
) -> np.ndarray:
    """Return the outputs for ``pixels``, in batches of 128 that end at the images ``more``, too."""
    cuts = sorted({*range(BATCH, len(pixels), BATCH), *more} - {0})
    return np.concatenate([np.asarray(run(part)) for part in np.split(pixels, cuts)])


def _compared(
    expected: np.ndarray, found: np.ndarray, softmax: bool, path: Path, tolerance: float
) -> tuple[float, int]:
    """Return the largest difference and how many labels changed.

    Raises `Inexact` where it is more than ``tolerance``.
    """
    expected = expected.astype(np.float64)
    if softmax:
        from scipy.special import softmax as of

        expected = of(expected, axis=1)
    if found.shape != expected.shape:
        raise Inexact(f"{path} makes {found.shape} where the model makes {expected.shape}.")
    difference = float(np.abs(found - expected).max())
    most = tolerance * max(1.0, float(np.abs(expected).max()) / TOLERANCE_UP_TO)
    if not difference <= most:
        raise Inexact(
            f"{path} was not kept: its outputs differ by up to {difference:.2g} from the model's, "
            f"more than {most:.2g}."
        )
    return difference, int((expected.argmax(1) != found.argmax(1)).sum())


def _milliseconds(run: Callable[[], Any]) -> float:
    """Return the median time of a call, after the first, which may compile."""
    run()
    times = []
    begin = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - begin < 0.5 and len(times) < 100):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))
