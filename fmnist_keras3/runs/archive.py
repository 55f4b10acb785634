"""Looks at a `.keras` file before Keras does: it may come from a stranger, or be damaged.

Keras runs no code of a file in safe mode. But it makes a model's arrays before it reads their
values, so that a file of a kilobyte could ask for terabytes, and it reads weights without looking
at the archive's checksums.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from pathlib import Path

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MEMBERS = {"metadata.json", CONFIG, WEIGHTS}
EXPANSION = 10  # what is packed may be this much larger; Keras itself packs nothing


def check(path: Path) -> None:
    """Check that ``path`` is a whole `.keras` archive, and its model as large as its weights.

    Raises ValueError, or what the readers of zip, HDF5 and JSON and Keras raise for what is amiss.
    """
    most = EXPANSION * path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            outside = ".." in re.split(r"[/\\]", name)
            if outside or not (name in MEMBERS or name.startswith("assets/")):
                raise ValueError(f"a model has no member {name!r}.")
        if len(names) != len(set(names)) or not set(names) >= MEMBERS:
            raise ValueError(f"it must have each of {', '.join(sorted(MEMBERS))} once.")
        if (size := sum(info.file_size for info in archive.infolist())) > most:
            raise ValueError(f"it would be {size:,} bytes when unpacked, too many for its size.")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"its {damaged} is damaged (another checksum).")
        stored, size = _arrays(archive.read(WEIGHTS))
        if size > most:
            raise ValueError(f"its weights would be {size:,} bytes, too many for its size.")
        asked = _numbers(archive.read(CONFIG))
    if asked > 2 * stored + 1000:  # not all need be stored: a LoRA's are merged
        raise ValueError(f"its model has {asked:,} weights, and {stored:,} are stored.")


def _arrays(content: bytes) -> tuple[int, int]:
    """Return how many numbers an HDF5 file holds, and how many bytes they would take."""
    import h5py

    found = []
    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(lambda _, item: found.append(item) if hasattr(item, "nbytes") else None)
        return sum(item.size or 0 for item in found), sum(item.nbytes for item in found)


def _numbers(description: bytes) -> int:
    """Return how many numbers the arrays of a model have, without making them."""
    import keras

    from fmnist_keras3.layers.keras_private import shapes_only

    config = json.loads(description)
    if isinstance(config, dict):
        config["compile_config"] = None  # an optimizer has arrays as large as the model's
    with shapes_only():
        model = keras.saving.deserialize_keras_object(config, safe_mode=True)
        if not isinstance(model, keras.Model):
            raise ValueError(f"it holds no model, but: {type(model).__name__}.")
        return sum(math.prod(variable.shape) for variable in model.variables)


def reason(error: Exception) -> str:
    """Return the first sentence of an error's innermost cause, as far as Keras quotes it.

    Without control characters and not too long: it may quote the file.
    """
    cause = re.split(r"Exception encountered: |Example error message for [^\n]*\n", str(error))[-1]
    sentence = cause.strip().split("\n")[0].split(". ")[0] or type(error).__name__
    return "".join(filter(str.isprintable, sentence))[:300].rstrip(".") + "."
