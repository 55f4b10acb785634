"""Decoded images kept on disk: one file a split, made once, mapped into memory by any process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import Any, BinaryIO

import numpy as np

from fmnist_keras3.ground.files import temporary, write_errors, write_json
from fmnist_keras3.runtime import cache_dir

HEADER = 128  # bytes of an .npy file before its numbers
INDEX = "index.json"


class Store:
    """The images of a set as ``.npy`` files ``[N, H, W, C]``, under the set's ``identity``.

    They appear all at once. A file that was changed since is found by its checksum.
    """

    def __init__(self, identity: str) -> None:
        self.folder = cache_dir() / "decoded" / identity[:32]

    def open(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return the arrays, mapped, and what `Writing` was told of them; None where there is no
        sound copy."""
        try:
            index = json.loads((self.folder / INDEX).read_text())
            arrays = {}
            for split, about in index["splits"].items():
                path = self.folder / f"{split}.npy"
                state = os.stat(path)
                if [state.st_size, state.st_mtime_ns] != about["state"]:
                    with open(path, "rb") as file:
                        file.seek(HEADER)
                        if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
                            return None
                arrays[split] = np.load(path, mmap_mode="r")
            return arrays, index["said"]
        except (OSError, ValueError, KeyError, TypeError):
            return None


class Writing:
    """Writes a `Store`, image by image; call `finish` at the end, and leave it by `close`."""

    def __init__(self, store: Store, shape: tuple[int, ...]) -> None:
        self._store, self._shape = store, shape
        self._beside = temporary(store.folder)
        with write_errors(store.folder):
            self._beside.mkdir(parents=True)
        self._files: dict[str, BinaryIO] = {}
        self._digests = {}
        self._counts: dict[str, int] = {}

    def add(self, split: str, image: np.ndarray) -> None:
        with write_errors(self._store.folder):
            if split not in self._files:
                self._files[split] = open(self._beside / f"{split}.npy", "wb")  # noqa: SIM115
                self._files[split].write(bytes(HEADER))
                self._digests[split], self._counts[split] = hashlib.sha256(), 0
            self._files[split].write(image.data)
        self._digests[split].update(image.data)
        self._counts[split] += 1

    def finish(self, said: dict[str, Any]) -> None:
        """Put the files in their place, with ``said``, as JSON has it."""
        splits = {}
        with write_errors(self._store.folder):
            for split, file in self._files.items():
                shape = (self._counts[split], *self._shape)
                file.seek(0)
                about = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, about)
                assert file.tell() == HEADER
                file.flush()
                os.fsync(file.fileno())
                state = os.fstat(file.fileno())
                splits[split] = {
                    "sha256": self._digests[split].hexdigest(),
                    "state": [state.st_size, state.st_mtime_ns],
                }
            write_json(self._beside / INDEX, {"splits": splits, "said": said})
            if self._store.open() is None:  # else another process was faster
                shutil.rmtree(self._store.folder, ignore_errors=True)
                os.rename(self._beside, self._store.folder)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._beside, ignore_errors=True)
