"""What `Trainer.fit` is given, made into a DataModule: arrays, datasets, sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil

from fmnist_keras3.data.arrays import ArrayData
from fmnist_keras3.data.datamodule import BATCH_SIZE, DataModule
from fmnist_keras3.data.dataset import fits
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.tree import leaves, mapped, packed

# How much is read of a tf.data.Dataset whose length nobody knows.
MAX_BYTES, MAX_EXAMPLES = 2**30, 2**20


def as_datamodule(
    data: Any, validation: Any = None, model: Any = None, steps: int | float | None = None
) -> DataModule:
    """Return ``data`` as a DataModule; ``(x, y)``, ``(x, y, sample_weight)`` or a dataset of such.

    Or ``x`` alone, an array or a dict of them, for a model whose loss needs no targets.

    A `tf.data.Dataset` or `keras.utils.PyDataset` is read into memory, once, so that its examples
    can be shuffled exactly; the batch size is that of its first batch, else 128 or all examples.
    What gives an example by its number is a source, see `SourceData`. ``validation`` is a
    fraction, or examples of the same kinds. ``model`` is the one that the data is for: its input
    tells examples from batches. ``steps`` are the batches of an epoch: a dataset that does not
    fit into memory, or never ends, is streamed in its own order. Raises UserError for anything
    else.
    """
    if isinstance(data, DataModule):
        if validation is not None:
            raise UserError("validation_data is given, but the DataModule has its own validation.")
        return data.setup()
    from fmnist_keras3.data.items import SourceData, is_source

    options = {}
    if isinstance(data, Mapping) and all(map(is_source, data.values())):
        # As Hugging Face keeps the splits of a set.
        if "train" not in data:
            raise UserError(f"The data has {', '.join(data)}; train is needed.")
        found = {name: data.get(name) for name in ("validation", "test")}
        options = {name: split for name, split in found.items() if split is not None}
        data = data["train"]
    if is_source(data) and not _is_py_dataset(data):
        options |= {} if validation is None else {"validation": validation}
        source = SourceData(data, batch_size=1, **options).setup()
        source.batch_size = min(BATCH_SIZE, len(source.train))
        return source
    if validation is not None:
        number = isinstance(validation, float)
        options["validation"] = validation if number else _examples(validation, model)[0]
    try:
        examples, batch_size = _examples(data, model)
    except _TooLong as why:
        return _streamed(data, model, options.get("validation"), steps, why)
    module = ArrayData(*examples, batch_size=1, **options).setup()
    module.batch_size = min(batch_size or BATCH_SIZE, len(module.train))
    return module


class _TooLong(UserError):
    """A dataset cannot be read into memory: it does not fit, or does not end."""


def _streamed(
    dataset: Any, model: Any, validation: Any, steps: int | float | None, why: _TooLong
) -> DataModule:
    """Return a dataset that is not read into memory as a module; raises ``why`` it must be."""
    from fmnist_keras3.data.stream import Stream, StreamData

    batched, count = _is_batched(dataset, model), int(dataset.cardinality())
    first = leaves(next(dataset.as_numpy_iterator()))[0]
    size = len(first) if batched else BATCH_SIZE
    if isinstance(steps, int) and steps:
        examples = steps * size
    elif count > 0 and not batched:
        examples = count
    else:
        raise why
    if isinstance(validation, float):
        if validation:
            raise UserError(
                f"validation_data is {validation}, of a dataset that is streamed in its own order. "
                "Give a dataset or arrays (x, y) for the validation."
            )
        validation = None
    stream = Stream(dataset, examples, batched=batched)
    return StreamData(stream, validation, min(size, examples)).setup()


def _examples(data: Any, model: Any) -> tuple[tuple[Any, ...], int | None]:
    """Return ``(x, y, sample_weight)`` or less, and the batch size if ``data`` has one."""
    if isinstance(data, tuple) and len(data) in (1, 2, 3):
        return data, None
    if isinstance(data, (np.ndarray, dict)):
        return (data,), None
    if _is_py_dataset(data):
        return _from_py_dataset(data)
    if hasattr(data, "element_spec") and hasattr(data, "as_numpy_iterator"):
        return _from_dataset(data, model)
    raise UserError(
        f"Cannot train on a {type(data).__name__}. Give a DataModule (FashionMNIST(...)), arrays "
        "(x, y) or (x, y, sample_weight), a finite tf.data.Dataset of such, or what has __len__ "
        "and __getitem__; x alone for a model whose compute_loss needs no targets."
    )


def _from_dataset(dataset: Any, model: Any) -> tuple[tuple[Any, ...], int | None]:
    """Read a `tf.data.Dataset`, batched or not, into arrays; returns also the batch size."""
    spec = dataset.element_spec
    if isinstance(spec, tuple) and len(spec) not in (1, 2, 3):
        raise UserError(f"The dataset gives {spec}; it must give (x, y) or (x, y, sample_weight).")
    if int(dataset.cardinality()) == -1:
        raise _TooLong(
            "The dataset never ends. Leave out repeat(), add take(N), or say how many batches an "
            "epoch has: limit_train_batches=N."
        )
    batched, limit = _is_batched(dataset, model), psutil.virtual_memory().available // 2
    elements, nbytes, count = [], 0, 0
    for element in dataset.as_numpy_iterator():
        elements.append(leaves(element))
        nbytes += sum(part.nbytes for part in elements[-1])
        count += len(elements[-1][0]) if batched else 1
        if int(dataset.cardinality()) < 0 and (nbytes > MAX_BYTES or count > MAX_EXAMPLES):
            raise _TooLong(
                f"The dataset, of unknown length, was read for {count:,} examples "
                f"({nbytes / 2**20:,.0f} MB) and has not ended; perhaps it never does. Add "
                "take(N), tell its length: "
                "dataset.apply(tf.data.experimental.assert_cardinality(N)), or say how many "
                "batches an epoch has: limit_train_batches=N."
            )
        expected = nbytes * int(dataset.cardinality()) / len(elements)
        if expected > limit:
            raise _TooLong(
                f"The dataset takes about {expected / 2**30:.1f} GB, more than half of the free "
                "memory. Say how many batches an epoch has: limit_train_batches=N. It is streamed "
                "in its own order then."
            )
    if not elements:
        raise UserError("The dataset is empty.")
    join = np.concatenate if batched else np.stack
    arrays = [join(parts) for parts in zip(*elements, strict=True)]
    parts = packed(spec, arrays)
    parts = parts if isinstance(spec, tuple) else (parts,)  # x alone
    return parts, len(elements[0][0]) if batched else None


def _is_batched(dataset: Any, model: Any) -> bool:
    """Tell whether the elements of ``dataset`` are batches, not single examples."""
    spec = dataset.element_spec
    first = {part.shape[0] if len(part.shape) else "none" for part in leaves(spec)}
    if len(first) != 1 or first == {"none"}:
        return False  # one example: its parts are of different lengths, or single numbers
    if first == {None}:
        return True
    # Parts of one fixed length are a batch, or an example whose inputs and targets are as long.
    x = leaves(spec[0] if isinstance(spec, tuple) else spec)
    takes = getattr(model, "input_shape", None)
    if isinstance(takes, tuple) and len(x) == 1:
        as_batch, as_example = (fits(tuple(s), takes[1:]) for s in (x[0].shape[1:], x[0].shape))
        if as_batch != as_example:
            return as_batch
    return _has_batch(dataset)


def _has_batch(dataset: Any) -> bool:
    """Tell whether a `batch` is among the steps by which ``dataset`` was made, and no `unbatch`."""
    name = type(dataset).__name__
    if any(word in name for word in ("Unbatch", "FlatMap", "Interleave")):
        return False
    if "Batch" in name or "Ragged" in name:
        return True
    return any(_has_batch(of) for of in dataset._inputs())


def _is_py_dataset(data: Any) -> bool:
    return any(kind.__name__ == "PyDataset" for kind in type(data).__mro__)


def _from_py_dataset(data: Any) -> tuple[tuple[Any, ...], int | None]:
    """Read a `keras.utils.PyDataset`, whose items are batches, into arrays."""
    count = data.num_batches if hasattr(data, "num_batches") else len(data)
    name = type(data).__name__
    if not count:
        raise UserError(
            f"{name} {'never ends' if count is None else 'is empty'}. Give it a length."
        )
    batches, size, limit = [], 0, psutil.virtual_memory().available // 2
    for i in range(count):
        batch = data[i]
        batch = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        if len(batch) not in (1, 2, 3):
            raise UserError(f"{name} gives {len(batch)} things; (x, y) or (x, y, sample_weight).")
        batches.append(mapped(np.asarray, batch))
        size += sum(part.nbytes for part in leaves(batches[-1]))
        if size * count / (i + 1) > limit:
            raise UserError(
                f"{name} gives about {size * count / (i + 1) / 2**30:.1f} GB, more than half of "
                "the free memory, into which a PyDataset is read, as it gives whole batches. Give "
                "a class with __len__ and __getitem__ of one example: it is read as it is needed."
            )
    arrays = [np.concatenate(parts) for parts in zip(*map(leaves, batches), strict=True)]
    return packed(batches[0], arrays), len(leaves(batches[0])[0])
