"""Writes a trained model for other programs, and looks whether they compute the same."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fmnist_keras3.evaluation import temperature
from fmnist_keras3.evaluation.metrics import are_probabilities
from fmnist_keras3.ground import files
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.leaves import named
from fmnist_keras3.inference import to_html, to_hub
from fmnist_keras3.inference.graph import as_graph
from fmnist_keras3.inference.predictor import SCALES, knowledge, model_of, scale_unknown
from fmnist_keras3.runs.load import Run

if TYPE_CHECKING:
    import keras

FORMATS = {  # who writes it, how its files' names end, what packages it needs
    "keras": ("inference.to_keras", ".keras", ()),
    "onnx": ("inference.to_onnx", ".onnx", ("onnx", "onnxruntime")),
    "saved_model": ("inference.to_saved_model", "", ("tensorflow",)),  # a folder
    "litert": ("inference.to_litert", ".tflite", ("tensorflow", "ai_edge_litert")),
    "openvino": ("inference.to_openvino", "", ("onnx", "openvino")),  # a folder
    "html": ("inference.to_html", ".html", ("tensorflow",)),  # which reads it back
    "hub": ("inference.to_hub", "", ()),  # a folder
}
EXTRAS = ("onnx", "litert", "openvino")  # of the package, with what a format of the name needs
OUTPUTS = ("probabilities", "logits")
QUANTIZE = ("none", "int8")
QUANTIZED = ("html", "onnx", "litert")  # formats that can be of 8 bits
CALIBRATED = ("onnx", "litert")  # of these, those that compute in 8 bits, too
IMAGES, BATCH = 256, 128
MOST_IMAGES = 10_000  # of the check of 8 bits
CALIBRATION = 256
RANDOM = "images of random pixels"
TOLERANCE = 2e-5  # of outputs up to 10 in size; larger ones have fewer digits behind the point
TOLERANCES = {"html": to_html.TOLERANCE}
# By 8 bits, whose outputs are free to differ: labels that change, and how many fewer are right.
MOST_CHANGED, MOST_LOST = 0.012, 0.003
TOLERANCE_UP_TO = 10


class Inexact(Exception):
    """An exported file computes something else than its model; it was not kept."""


class Images(NamedTuple):
    """Images ``pixels [N, ...]``, uint8, that a model takes, and what is known of them.

    ``labels [N]`` and images for a ``calibration``, of the training, are None where it is not known
    that they are of what the model was trained on.
    """

    pixels: np.ndarray
    about: str
    labels: np.ndarray | None = None
    calibration: np.ndarray | None = None


@dataclass(frozen=True)
class Export:
    """A file that was written and checked.

    ``difference``: the largest of any output from the model's in float32, on ``images`` images, of
    which ``changed`` got another label; ``data``: what images. ``model`` is the original.
    ``size``: bytes. ``scale_unknown``: whether the model's scale was a guess, see `Predictor`.
    ``accuracies``: of 8 bits, that of the model and of the file on these images, where they have
    labels.
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
    accuracies: tuple[float, float] | None = None

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

    ``run_or_model`` is a run directory, a .keras file, a `Run` or a Keras model, also a `Module`
    whose `predict_step` only calls layers; ``path`` a new file, of saved_model, openvino and hub a
    new folder. ``format`` is "onnx", "saved_model", "litert", "openvino" (these take raw pixels,
    uint8, any number of images), "keras" (without the optimizer, all in float32), "hub" (the same
    as a folder with a model card, for Hugging Face) or "html" (a page that shows what the model
    says of drawings and pictures, with weights of 16 bits). ``outputs`` are "probabilities" or
    "logits"; ``scale`` is 255, or 1 for a model that was trained on pixels divided by 255, which
    the file then does. ``quantize`` "int8" is for html, with weights of 8 bits, and for onnx and
    litert, which then compute in 8 bits, in ranges that training images tell. The check is on
    images of the run's data set, or of ``data`` in ``data_dir``, as for `FashionMNIST`.
    Probabilities have the run's temperature, if it has one. Raises UserError for what cannot be
    exported, and for a file that is there already; `Inexact`, and leaves no file, where outputs
    differ by more than 2e-5, of a page 0.02; with "int8" where more than 1.2 % of the labels change
    or the accuracy is lower by more than 0.3 points.

    Example: ``export("runs/20261122-231500-baseline-jax", "model.onnx").difference``
    """
    check(path, format, outputs, scale, quantize)
    path = Path(path)
    model, run = model_of(run_or_model)
    model = as_graph(model)
    to_keras, writer = (named(FORMATS[name][0]) for name in ("keras", format))
    takes, gives = (_one_shape(model, side) for side in ("input_shape", "output_shape"))
    if len(gives) != 2 or None in takes[1:] or len(takes) < 2:
        raise UserError(
            f"The model makes {gives} of {takes}; it must make a row of logits for each image of "
            "one size."
        )
    plain = model if to_keras.is_float32(model) else to_keras.in_float32(model)
    images = _images(run, takes[1:], data, data_dir, quantize)
    pixels, about_data = images.pixels, images.about
    more: dict[str, Any] = {}
    if quantize != "none" and format in CALIBRATED:
        if images.calibration is None:
            raise UserError(
                f"--quantize int8 needs images that the model was trained on, {takes[1:]}, which "
                "were not found. Say what they are: --data fashion_mnist"
            )
        more = {"calibration": images.calibration}
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
        about["weights"] = "float16"
    if quantize != "none":
        about["weights"] = quantize
    if format == "hub":
        about["card"] = to_hub.about(run, outputs, takes[1:])
    beside = files.temporary(path)
    try:
        with files.write_errors(path):
            writer.write(plain, beside, softmax, factor, about, **more)
            # The last image alone shows that any number will do; Keras would compile once more.
            alone = () if format in ("keras", "hub") else (len(pixels) - 1,)
            found = _outputs(writer.read(beside), pixels, alone)
            if beside.is_file():
                with open(beside, "rb") as file:
                    os.fsync(file.fileno())
            tolerance = TOLERANCES.get(format, TOLERANCE) if quantize == "none" else math.inf
            difference, changed = _compared(expected / warmth, found, softmax, path, tolerance)
            accuracies = None
            if quantize != "none":
                accuracies = _accuracies(images.labels, expected, found)
                _check_int8(path, changed, len(pixels), accuracies)
            if path.exists():  # made meanwhile by somebody else
                raise UserError(f"{path} exists already. Give another name.")
            os.replace(beside, path)
    finally:
        files.remove(beside)
    inside = path.rglob("*") if path.is_dir() else [path]
    size = sum(one.stat().st_size for one in inside if one.is_file())
    unknown = scale == 255 and scale_unknown(model, names, energy)
    seen = (difference, changed, len(pixels), about_data)
    return Export(path, format, outputs, names, *seen, size, model, unknown, accuracies)


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
    if format not in QUANTIZED and quantize != "none":
        raise UserError(
            f"The format {format} has weights of 32 bits only; quantize is for "
            f"{', '.join(QUANTIZED)}."
        )
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise UserError(f"{path} exists already. Give another name, or remove it.")
    folder = target.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"There is no folder {folder} that can be written, for {target.name}.")
    _, suffix, packages = FORMATS[format]
    if suffix and target.suffix != suffix:
        raise UserError(f"{path} must end in {suffix}, as files of the format {format} do.")
    missing = [n.replace("_", "-") for n in packages if importlib.util.find_spec(n) is None]
    if missing:
        raise UserError(
            f"The format {format} needs {' and '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed. Type: pip install "
            + (f"'fmnist-keras3[{format}]'" if format in EXTRAS else " ".join(missing))
        )


def _one_shape(model: Any, side: str) -> tuple[Any, ...]:
    shape = getattr(model, side, None)
    if not isinstance(shape, tuple) or any(isinstance(n, (tuple, list)) for n in shape):
        raise UserError(f"The model has {side} {shape}; it must take and return one array.")
    return shape


def _images(
    run: Run | None, shape: tuple[int, ...], data: str | None, data_dir: str | None, quantize: str
) -> Images:
    """Return images of ``shape``: 256 for a check, or what 8 bits need.

    Of the test split of the run's data; random pixels where that has none of this shape.
    """
    from fmnist_keras3.data.fashion import FashionMNIST
    from fmnist_keras3.data.pixels import Pixels

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
            split = module.setup().test or module.train
            if math.prod(shape) == math.prod(split.image_shape) and split.x.dtype == np.uint8:
                count = IMAGES if quantize == "none" else MOST_IMAGES
                kind = "generated" if module.source.name == "synthetic" else "real"
                pixels = split.x[:count].reshape(-1, *shape)
                about = f"{kind} images of {module.source.name}"
                dataset = run.summary.get("dataset") if run is not None else None
                trained_on = dataset.get("name") if isinstance(dataset, dict) else None
                if not (data or data_dir or module.source.name in (config.get("data"), trained_on)):
                    return Images(pixels, about)  # which may be of something else
                training = np.linspace(0, len(module.train) - 1, CALIBRATION).astype(int)
                calibration = module.train.x[training].reshape(-1, *shape)
                return Images(pixels, about, np.asarray(split.y[:count]), calibration)
        except UserError:  # the run's data may be gone
            if data is not None or data_dir is not None:
                raise
    noise = np.random.default_rng(0).integers(0, 256, (IMAGES, *shape), np.uint8)
    return Images(noise, RANDOM)


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


def _accuracies(
    labels: np.ndarray | None, expected: np.ndarray, found: np.ndarray
) -> tuple[float, float] | None:
    """Return the accuracy of the model and of the file; None without labels of its classes."""
    if labels is None or labels.max() >= expected.shape[1]:
        return None
    before, after = (float((rows.argmax(1) == labels).mean()) for rows in (expected, found))
    return before, after


def _check_int8(
    path: Path, changed: int, images: int, accuracies: tuple[float, float] | None
) -> None:
    """Raise `Inexact` where 8 bits cost too much."""
    if changed > MOST_CHANGED * images:
        raise Inexact(f"{path} was not kept: {changed} of {images} labels changed.")
    # Of few images, single ones do not count.
    lost = round((accuracies[0] - accuracies[1]) * images) if accuracies else 0
    if accuracies and lost > max(3, MOST_LOST * images):
        before, after = (f"{100 * accuracy:.2f}" for accuracy in accuracies)
        raise Inexact(f"{path} was not kept: its accuracy is {after} %, the model's {before} %.")


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
