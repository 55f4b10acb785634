"""Many processes of JAX that train one model, each on devices of its own."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

from fmnist_keras3.engines.world import World


class Processes(World):
    """The processes that `jax.distributed.initialize` has brought together."""

    def __init__(self) -> None:
        self.rank, self.size = jax.process_index(), jax.process_count()

    def agree(self, value: int) -> int:
        return int(self._of_all(value)[0, 0])

    def highest(self, *values: int) -> tuple[int, ...]:
        return tuple(self._of_all(*values).max(0).tolist())

    def barrier(self) -> None:
        self._of_all(0)

    @staticmethod
    def _of_all(*values: int) -> np.ndarray:
        found = multihost_utils.process_allgather(np.array(values, np.int32))
        return found.reshape(-1, len(values))
