"""Arrays in memory as a DataModule."""

from __future__ import annotations

from typing import Any

import numpy as np

from fmnist_keras3.data.datamodule import DataModule, is_classes
from fmnist_keras3.data.dataset import ImageData, Split, checksum
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import mapped


class ArrayData(DataModule):
    """Arrays in memory: ``x [N, ...]``, ``y [N, ...]`` and perhaps ``sample_weight [N]``.

    Each may be a tuple, list or dict of arrays, as the model takes it; ``y`` is None for a model
    whose `compute_loss` needs no targets. ``validation`` is a fraction, or examples ``(x, y)`` or
    ``(x, y, sample_weight)``; ``test`` such examples, too.
    ``options`` are those of `DataModule`. Raises UserError for arrays of different lengths.

    Example: ``ArrayData(x, y, validation=(x_val, y_val), batch_size=64)``
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        validation: float | tuple[Any, ...] = 0.1,
        test: tuple[Any, ...] | None = None,
        **options: Any,
    ) -> None:
        fraction, given = (0.0, validation) if isinstance(validation, tuple) else (validation, None)
        super().__init__(validation=fraction, **options)
        self._train = split_of(x, y, sample_weight)
        self._validation = None if given is None else split_of(*given)
        self._test = None if test is None else split_of(*test)

    def load(self) -> ImageData:
        names: tuple[str, ...] = ()
        if is_classes(self._train.y):
            names = tuple(str(i) for i in range(int(self._train.y.max()) + 1))
        return ImageData(
            "arrays",
            "memory",
            self._train,
            self._train.take(slice(0)) if self._test is None else self._test,
            names,
            sha256=checksum(self._train, self._validation, self._test),
            validation=self._validation,
        )


def split_of(x: Any, y: Any = None, sample_weight: Any = None) -> Split:
    """Return arrays, or what becomes some, as a split."""
    weight = mapped(lambda a: as_array(a).astype(np.float32), sample_weight)
    return Split(mapped(as_array, x), mapped(_labels, y), weight)


def as_array(values: Any) -> np.ndarray:
    """Return ``values`` as an array; raises UserError for what is a single thing."""
    array = np.asarray(values)
    if array.ndim == 0:
        raise UserError(
            f"The data has a single {type(values).__name__} where an array was expected. A list "
            "means several inputs or outputs here, so give NumPy arrays of the examples: "
            "np.asarray(x), np.asarray(y)."
        )
    return array


def _labels(y: Any) -> np.ndarray:
    y = as_array(y)
    return y.astype(np.int32) if y.dtype.kind in "iu" else y
