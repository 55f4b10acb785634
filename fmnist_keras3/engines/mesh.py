"""Several devices of JAX as one: a batch is split over them, and each holds all weights, or, where
that is asked for (FSDP), its part of each large one.

The programs are those of one device. XLA cuts them along the batch axis of what they are given
(GSPMD), and adds up what goes over the whole batch: gradients, metrics, statistics of batch
normalisation. So a program means the same on any number of devices, and differs by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fmnist_keras3.engines.world import part_of
from fmnist_keras3.ground.errors import UserError

AXIS = "batch"
SPLIT_FROM = 2**16  # values of a weight; to gather a smaller one takes longer than it saves memory


def choose_devices(asked: int | str | None) -> list[Any]:
    """Return the devices of a training: ``asked`` is a number, "auto" for all, or None.

    With None those of the user's `keras.distribution`, else one. In a job of many processes, so
    many of each process. Raises UserError where there are not so many, and for a distribution
    that does more than split the batch.
    """
    theirs = _distributed()
    if theirs is not None:
        if asked not in (None, "auto", len(theirs)):
            raise UserError(
                f"devices is {asked}, but keras.distribution was set to {len(theirs)} devices. "
                "Leave devices out, or call keras.distribution.set_distribution(None)."
            )
        return theirs
    here = jax.local_devices()
    count = len(here) if asked == "auto" else int(asked or 1)
    if count > len(here):
        kind = here[0].platform
        more = (
            f" To try it on a CPU: XLA_FLAGS=--xla_force_host_platform_device_count={count} "
            "before the command."
        )
        raise UserError(
            f"devices is {count}, but JAX sees {len(here)} ({kind}) here. Type --devices auto, or "
            f"a number up to {len(here)}.{more * (kind == 'cpu')}"
        )
    by_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    return [device for devices in by_process.values() for device in devices[:count]]


def _distributed() -> list[Any] | None:
    """Return the devices of the distribution that a user has set for Keras, or None."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    if type(distribution) is not keras.distribution.DataParallel:
        raise UserError(
            f"keras.distribution is a {type(distribution).__name__}, which may split the weights; "
            "here each device holds them all. Set keras.distribution.DataParallel(), or call "
            "keras.distribution.set_distribution(None) and give devices."
        )
    known = {f"{device.platform}:{device.id}": device for device in jax.devices()}
    names = np.ravel(distribution.device_mesh.devices).tolist()
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"keras.distribution names the device {unknown[0]}, and JAX has {', '.join(known)}."
        )
    return [known[name] for name in names]


class Mesh:
    """Puts arrays on several devices."""

    def __init__(self, devices: list[Any], splits_weights: bool = False) -> None:
        self.count = len(devices)
        self._splits_weights = splits_weights
        self._owners = [device.process_index for device in devices]
        self._mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
        self.whole = NamedSharding(self._mesh, PartitionSpec())  # the same on each device

    def sharding(self, shape: tuple[int, ...], batch_axis: int | None) -> NamedSharding:
        """Return how an array of ``shape`` lies on the devices.

        Where the devices cannot share the batch equally, each has all of it: a short last batch is
        computed everywhere, which is right, and no faster.
        """
        if batch_axis is None or shape[batch_axis] % self.count:
            return self.whole
        return NamedSharding(self._mesh, PartitionSpec(*(None,) * batch_axis, AXIS))

    def of_state(self, shape: tuple[int, ...]) -> NamedSharding:
        """Return how a weight of ``shape`` lies, and whatever is kept of each of its values.

        One that is split is so along its longest axis of those that the devices can share.
        """
        axes = [axis for axis, size in enumerate(shape) if size % self.count == 0]
        if not (self._splits_weights and axes and math.prod(shape) >= SPLIT_FROM):
            return self.whole
        longest = max(axes, key=shape.__getitem__)
        return NamedSharding(self._mesh, PartitionSpec(*(None,) * longest, AXIS))

    def place_state(self, value: Any) -> jax.Array:
        """Copy a value of the host to the devices as `of_state` says."""
        sharding = self.of_state(value.shape)
        return jax.make_array_from_process_local_data(sharding, np.array(value), value.shape)

    def part(self, size: int) -> np.ndarray:
        """Return which examples of a batch of ``size`` the devices of this process take."""
        return part_of(size, self._owners, jax.process_index())

    def place(
        self, array: Any, batch_axis: int | None = None, size: int | None = None
    ) -> jax.Array:
        """Copy an array of the host to the devices.

        Of batches of ``size`` it has what `part` says, or, where none is given, all.
        """
        array = np.asarray(array)
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
        shape = list(array.shape)
        if batch_axis is not None and size is not None:
            shape[batch_axis] = size
        sharding = self.sharding(tuple(shape), batch_axis)
        return jax.make_array_from_process_local_data(sharding, array, tuple(shape))

    def first(self, tree: Any, count: int) -> Callable[[Any], Any]:
        """Return a program that gives of the first batch of each ``[K, B, ...]`` so many examples.

        ``tree`` is what it will be given.
        """

        def cut(tree: Any) -> Any:
            return jax.tree.map(lambda array: array[:1, :count], tree)

        kept = jax.tree.map(lambda array: self.sharding((1, count, *array.shape[2:]), 1), tree)
        return jax.jit(cut, out_shardings=kept)


def here(array: jax.Array) -> jax.Array:
    """Return a copy on the default device of what is the same on all devices, or split there."""
    one = array.addressable_data(0) if array.is_fully_replicated else array
    return jax.numpy.array(np.asarray(one))
