"""Tells what pictures show: reads, prepares and classifies them in batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_keras3.data.dataset import FASHION_CLASSES
from fmnist_keras3.evaluation import temperature
from fmnist_keras3.evaluation.metrics import as_logits
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.inference import pictures
from fmnist_keras3.inference.preparation import EDGE, Shrunk, fitted, prepared, shrunk
from fmnist_keras3.runs import rundir
from fmnist_keras3.runs.load import Run, load_model, load_run

if TYPE_CHECKING:
    import keras

TOP = 3
BATCH = 64
SIDE = 28  # of the images of a model that takes any size
INVERT = ("auto", "yes", "no")
SCALES = ("255", "1")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a picture shows: the ``top`` classes with their probabilities, likeliest first.

    ``unusual``: the model has less to say of it than of 95 % of its test images. ``image``: what
    it saw, uint8 ``[H, W]`` or ``[H, W, 3]``; ``original``: the picture, at most a few hundred
    pixels large.
    """

    file: str
    top: tuple[tuple[str, float], ...]
    unusual: bool
    image: np.ndarray
    original: np.ndarray

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.top[0][0]

    @property
    def probability(self) -> float:
        """Of the likeliest class, 0..1."""
        return self.top[0][1]

    def to_dict(self) -> dict[str, Any]:
        """Return file, class, probability and top as plain values, and a note if there is one."""
        top = [{"class": name, "probability": share} for name, share in self.top]
        note = {"note": "unusual picture"} if self.unusual else {}
        return {"file": self.file, **top[0], "top": top, **note}


@dataclass(frozen=True)
class Unreadable:
    """A picture that could not be read, with the reason, which names it."""

    file: str
    reason: str


class Predictor:
    """Tells what garments, or other classes, a user's own pictures show.

    ``run`` is a run directory, a .keras file, a `Run`, or a Keras classifier of one image; without
    a run the classes are called by their numbers. ``invert`` is whether dark becomes bright, as
    the garments of Fashion-MNIST are on black: "auto" (unless the border is dark), "yes" or "no".
    ``scale`` is the brightest value that the model takes: 255, or 1 for models that were trained
    on pixels divided by 255. Of garments, and for models of grey images, a picture is prepared as
    `inference.preparation` says; for other models of colour images it is fitted in whole.
    Raises UserError for what is no such model.

    Example: ``Predictor("runs/20261122-231500-baseline-jax")(["shoe.jpg", "coat.png"])[0].label``
    """

    def __init__(
        self, run: str | Path | Run | keras.Model, *, invert: str = "auto", scale: float = 255
    ) -> None:
        for name, value, allowed in (("invert", invert, INVERT), ("scale", f"{scale:g}", SCALES)):
            if value not in allowed:
                raise UserError(
                    f"{name} is {value!r}; it must be one of {', '.join(allowed)}."
                    + nearest(value, allowed)
                )
        self.invert, self.scale = invert, scale
        self.model, found = model_of(run)
        self.size, self.channels = takes(self.model)
        gives = self.model.output_shape
        if not isinstance(gives, tuple) or len(gives) != 2 or (gives[1] or 0) < 2:
            raise UserError(
                f"The model returns {gives}; it must be a row of logits for each image, of two "
                "classes or more."
            )
        self.class_names, self._energy = knowledge(found, gives[1])
        self.temperature = 1.0 if found is None else temperature.read(found.path, self.model)
        grey = self.channels in (0, 1)
        self._garments = grey or self.class_names == FASHION_CLASSES

    @property
    def scale_unknown(self) -> bool:
        """Whether ``scale`` is a guess: a model from elsewhere, which does not scale pixels."""
        return scale_unknown(self.model, self.class_names, self._energy)

    def __call__(self, images: Any) -> list[Prediction]:
        """Return a `Prediction` for each of ``images``: paths, images of Pillow, or arrays.

        One or several; folders and patterns as on the command line. An array is ``[H, W]`` or
        ``[H, W, 1|3|4]``, uint8, or float in 0..1 or 0..255; several are a list of these, or
        ``[N, H, W, C]``. Raises UserError that names the pictures which cannot be read.
        """
        single = isinstance(images, (str, Path)) or not hasattr(images, "__iter__")
        if isinstance(images, np.ndarray):
            single = images.ndim < 4
        given: Any = [images] if single else images
        several: list[Any] = []
        for one in given:
            is_path = isinstance(one, (str, Path))
            several += list(pictures.found([one])) if is_path else [one]
        results = list(self.stream(several))
        if broken := [result.reason for result in results if isinstance(result, Unreadable)]:
            raise UserError("\n".join(broken))
        return [result for result in results if isinstance(result, Prediction)]

    def stream(self, images: Iterable[Any]) -> Iterator[Prediction | Unreadable]:
        """Yield what each of ``images`` shows, or why it cannot be read, in their order.

        ``images`` are single pictures as for `__call__`; a batch of them is in memory at a time.
        Raises UserError where the model's output is not finite.
        """
        waiting: list[Unreadable | tuple[str, Shrunk, np.ndarray]] = []
        count = 0
        for number, given in enumerate(images):
            is_path = isinstance(given, (str, Path))
            file = pictures.shown(given) if is_path else f"image {number}"
            try:
                picture = shrunk(pictures.as_image(given), max(EDGE, 2 * max(self.size)))
            except UserError as error:
                reason = str(error) if is_path else f"{file}: {error}"
                waiting.append(Unreadable(file, reason))
            else:
                waiting.append((file, picture, self._prepare(picture)))
                count += 1
            if count == BATCH or (waiting and not count):
                yield from self._classify(waiting, count)
                waiting, count = [], 0
        yield from self._classify(waiting, count)

    def _prepare(self, picture: Shrunk) -> np.ndarray:
        if self._garments:
            return prepared(picture, self.size, self.invert)
        return fitted(picture, self.size, self.invert == "yes")

    def _classify(self, waiting: list[Any], count: int) -> Iterator[Prediction | Unreadable]:
        ready = [one for one in waiting if not isinstance(one, Unreadable)]
        probabilities, energies = self._probabilities([image for _, _, image in ready])
        number = 0
        for one in waiting:
            if isinstance(one, Unreadable):
                yield one
                continue
            row, energy = probabilities[number], energies[number]
            number += 1
            best = np.argsort(-row, kind="stable")[:TOP]
            top = tuple((self.class_names[k], float(row[k])) for k in best)
            unusual = self._energy is not None and bool(energy > self._energy + 1e-3)
            yield Prediction(one[0], top, unusual, one[2], one[1].pixels)

    def _probabilities(self, images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities ``[N, K]`` and free energies ``[N]`` of prepared images."""
        from scipy.special import logsumexp, softmax

        if not images:
            return np.zeros((0, 0)), np.zeros(0)
        batch = np.stack(images).astype(np.float32) * np.float32(self.scale / 255)
        if self._garments and self.channels:
            batch = np.repeat(batch[..., None], self.channels, axis=3)
        # Two sizes of batches, so that a program is compiled for no third one.
        short = (1 if len(batch) == 1 else BATCH) - len(batch)
        batch = np.pad(batch, ((0, short), *[(0, 0)] * (batch.ndim - 1)))
        outputs = np.asarray(self.model.predict_on_batch(batch))[: len(images)]
        logits = as_logits(outputs)
        if not np.isfinite(logits).all():
            raise UserError("The model's output is not finite: it has diverged. Take another one.")
        return softmax(logits / self.temperature, axis=1), -logsumexp(logits, axis=1)


def model_of(run: Any) -> tuple[keras.Model, Run | None]:
    """Return the model that is meant, and its run, if there is one."""
    if isinstance(run, Run):
        return run.model, run
    if not isinstance(run, (str, Path)):
        return run, None
    path = Path(run)
    if not path.exists():
        raise UserError(f"{run} does not exist. Give a run directory or a .keras file.")
    if path.is_dir():
        return load_model(path), load_run(path)
    model = load_model(path)
    if path.name in (rundir.MODEL, rundir.RAW_MODEL) and (path.parent / rundir.CONFIG).is_file():
        return model, load_run(path.parent)
    return model, None


def takes(model: Any) -> tuple[tuple[int, int], int]:
    """Return height and width of the images that ``model`` takes, and channels; 0 for no axis."""
    shape = getattr(model, "input_shape", None)
    if isinstance(shape, tuple) and len(shape) in (3, 4) and not isinstance(shape[1], tuple):
        height, width, channels = (*shape[1:], 0)[:3]
        if channels in (0, 1, 3):
            return (height or width or SIDE, width or height or SIDE), channels
    raise UserError(
        f"The model takes input of shape {shape}; it must be images, "
        "(None, height, width) or (None, height, width, 1 or 3)."
    )


def scale_unknown(model: Any, class_names: tuple[str, ...], energy: float | None) -> bool:
    """Tell whether a model is from elsewhere (see `knowledge`) and does not scale pixels."""
    from fmnist_keras3.layers.keras_private import all_layers  # which brings Keras

    kinds = {type(layer).__name__ for layer in all_layers(model)}
    foreign = energy is None and class_names[0] == "0"
    return foreign and not kinds & {"Rescaling", "Normalization"}


def knowledge(run: Run | None, classes: int) -> tuple[tuple[str, ...], float | None]:
    """Return the names of the classes, and above which energy 5 % of the test images were."""
    numbers = tuple(map(str, range(classes)))
    if run is None:
        return numbers, None
    try:
        names = tuple(map(str, run.summary["dataset"]["classes"]))
    except (KeyError, TypeError):
        names = numbers
    try:
        energy = float(json.loads((run.path / "evaluation.json").read_text())["energy_95_percent"])
    except (OSError, ValueError, KeyError, TypeError):  # no test, or one by an earlier version
        energy = None
    return (names if len(names) == classes else numbers), energy
