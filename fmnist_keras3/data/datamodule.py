"""DataModules: where a Trainer gets its training, validation and test splits from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fmnist_keras3.data.augment import is_mixing, parse_augment
from fmnist_keras3.data.dataset import ImageData, Split
from fmnist_keras3.data.plan import held_out
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.lightning import DATA_HOOKS, check_hooks
from fmnist_keras3.ground.tree import mapped
from fmnist_keras3.settings import check_arguments

BATCH_SIZE = 128


class DataModule:
    """Splits, batch size and augmentation; subclasses say in `load` where the examples come from.

    ``batch_size`` >= 1; ``augment`` as for `parse_augment`; ``validation`` is the fraction
    (0 <= f < 1) of the training examples that is held out, chosen by ``seed``: of each class, where
    labels are integers ``[N]`` or ``[N, 1]``; of all together, where they are anything else
    (floats, one-hot, several targets). ``train``, ``validation`` (or None) and ``test`` (or None)
    are read by `setup`, at the latest when they are asked for. ``views`` of more than 1 gives the
    training of a `Module` a tuple of so many images for each, augmented independently.
    ``sampling`` "balanced" trains on each class equally often: an epoch has as many examples as
    else, of rare classes some several times, of others not all.
    Raises UserError for values outside their range.

    Example: ``class Mine(DataModule): load = lambda self: ArrayData(x, y).load()``
    """

    train: Split
    validation: Split | None
    test: Split | None
    source: ImageData
    class_weight: list[float] | None = None  # of each class, see `weights.weighted`

    def __init_subclass__(cls) -> None:
        check_hooks(vars(cls), DATA_HOOKS)

    def __init__(
        self,
        batch_size: int = BATCH_SIZE,
        augment: str | None = None,
        validation: float = 0.1,
        seed: int = 0,
        *,
        views: int = 1,
        sampling: str = "all",
    ) -> None:
        given = {"batch_size": batch_size, "validation": validation, "seed": seed}
        given |= {"sampling": sampling}
        check_arguments(DataModule, given)
        self.batch_size = batch_size
        self.augment = parse_augment(augment)
        self.validation_fraction = validation
        self.seed = seed
        self.views, self.sampling = views, sampling
        self._check_views()
        self._ready = False

    def _check_views(self) -> None:
        drawn = [name for name, augmentation in self.augment if not is_mixing(augmentation)]
        if not isinstance(self.views, int) or self.views < 1:
            raise UserError(f"views is {self.views!r}; it must be a whole number, at least 1.")
        if self.views > 1 and len(drawn) < max(1, len(self.augment)):
            raise UserError(
                f"views is {self.views}, of images that are augmented, and not mixed with others. "
                "Give augment='crop:4,flip', or others of one image."
            )

    def load(self) -> ImageData:
        """Return the examples; called once, before training."""
        raise NotImplementedError(f"{type(self).__name__} must define load()")

    def __getattr__(self, name: str) -> Any:
        # Called for what is not there yet only.
        if name in ("train", "validation", "test", "source") and "_ready" in vars(self):
            return vars(self.setup())[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        parts = ["not read yet"]
        if self._ready:
            splits = {"train": self.train, "validation": self.validation, "test": self.test}
            parts = [
                f"{len(split):,} {name}" for name, split in splits.items() if split is not None
            ]
        augment = ",".join(name for name, _ in self.augment)
        parts += [f"batch_size={self.batch_size}", *[f"augment={augment!r}"] * bool(augment)]
        return f"{type(self).__name__}({', '.join(parts)})"

    def setup(self, stage: str | None = None) -> DataModule:
        """Load and split the data, once; returns the module.

        ``stage`` is Lightning's ("fit", "test") and changes nothing: all splits are read together.
        """
        if self._ready:
            return self
        source = self.load()
        train, validation = source.train, source.validation
        if validation is None:
            train, validation = _split(train, self.validation_fraction, self.seed)
        if self.batch_size > len(train):
            raise UserError(
                f"batch_size {self.batch_size} is larger than the {len(train)} training "
                f"examples. Type --batch_size {len(train)} or less."
            )
        if self.augment and len(train.image_shape) != 3:
            raise UserError(
                f"augment is for images [N, H, W, C]; these examples are {_shapes(train.x)}. "
                "Leave augment out."
            )
        for name, augmentation in self.augment:
            if augmentation.uint8_only and train.x.dtype != np.uint8:
                raise UserError(
                    f"The augmentation {name} is for images in uint8, 0..255; these are "
                    f"{train.x.dtype}. Leave {name} out, or give uint8."
                )
        if self.sampling == "balanced" and classes_of(train) is None:
            raise UserError(
                "sampling is 'balanced', for labels that are classes, whole numbers [N], and in "
                "memory. Leave it out."
            )
        train = dataclasses.replace(train, views=self.views)
        self.source, self.train, self.validation = source, train, validation
        self.test = source.test if len(source.test) else None
        self._ready = True
        return self

    @property
    def balanced_by(self) -> np.ndarray | None:
        """The classes ``[N]`` of the training examples, if these come equally often."""
        return classes_of(self.train) if self.sampling == "balanced" else None

    def describe(self) -> dict[str, Any]:
        """Return name, source, sizes and checksum, as they stand in a run's summary."""
        return {
            "name": self.source.name,
            "source": self.source.source,
            "train": len(self.train),
            "validation": len(self.validation) if self.validation is not None else 0,
            "test": len(self.test) if self.test is not None else 0,
            "sha256": self.source.sha256,
            "note": self.source.note,
            "classes": list(self.source.class_names),
            "image_shape": list(self.train.image_shape),
            **({} if self.train.in_memory else {"read": "as it is needed"}),
        }


def classes_of(split: Split) -> np.ndarray | None:
    """Return the classes ``[N]`` of a split whose labels are such, ``[N]`` or ``[N, 1]``."""
    y = split.y
    y = y[:, 0] if isinstance(y, np.ndarray) and y.shape[1:] == (1,) else y
    return y if is_classes(y) else None


def is_classes(y: Any) -> bool:
    """Tell whether ``y`` is an array of whole numbers ``[N]``."""
    return isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "iu"


def _shapes(x: Any) -> Any:
    return mapped(lambda a: list(a.shape), x)


def _split(data: Split, fraction: float, seed: int) -> tuple[Split, Split | None]:
    """Hold out ``fraction`` of the examples; both parts keep the order of ``data``."""
    if fraction == 0:
        return data, None
    y, plain = classes_of(data), np.zeros(len(data), np.int32)
    held = held_out(plain if y is None else y, fraction, seed, "validation")
    if not held.any():  # whole numbers of which each is rare
        held = held_out(plain, fraction, seed, "validation")
    if not held.any() or held.all():
        raise UserError(
            f"validation {fraction} of {len(data)} examples leaves one side empty. "
            "Type --validation 0 to train without, or another fraction."
        )
    return data.take(np.flatnonzero(~held)), data.take(np.flatnonzero(held))
