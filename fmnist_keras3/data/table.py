"""Tables of examples: CSV and Parquet, with pixels, paths or encoded images beside the labels.

Read by pyarrow, which TensorFlow Datasets brings.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from fmnist_keras3.data.dataset import ImageData
from fmnist_keras3.data.found import Found, assemble, files_in
from fmnist_keras3.data.pixels import SUFFIXES, Pixels
from fmnist_keras3.ground.errors import UserError

LABELS = ("label", "labels", "class", "target", "y", "category", "fine_label", "class_name")
IMAGES = ("image", "img", "images", "path", "file", "file_name", "filename", "image_path", "png")
NEEDED = "Needed are a label and pixels (label,pixel1,pixel2,...), or path,label in each row."
CSV = (".csv", ".csv.gz", ".tsv", ".txt")
PARQUET = (".parquet", ".parq")


def read_csv(path: Path, pixels: Pixels) -> ImageData:
    """Return the examples of a CSV file, or of a folder's with train and test in their names.

    A row is a label and pixels, or a path (from the file's folder on) and a label; a first row of
    names may lead. Raises UserError.
    """
    return _read("csv", path, pixels, CSV, _csv)


def read_parquet(path: Path, pixels: Pixels) -> ImageData:
    """Return the examples of Parquet files: encoded images, paths or pixels, and labels.

    As `read_csv`; also as Hugging Face stores images, with the names of the classes.
    """
    return _read("parquet", path, pixels, PARQUET, _parquet)


def _read(kind: str, path: Path, pixels: Pixels, suffixes: Any, load: Any) -> ImageData:
    arrow, found, names = _arrow(kind), {}, ()
    for split, files in files_in(path, suffixes, NEEDED).items():
        parts = []
        for file in files:
            try:
                table = load(arrow, file)
            except (OSError, EOFError, arrow.ArrowException) as error:
                text = getattr(error, "strerror", None) or str(error).split("\n")[0]
                raise UserError(f"{file} cannot be read as {kind}: {text}") from error
            if not table.num_rows:
                raise UserError(f"{file} has no rows. {NEEDED}")
            names = names or _class_names(table)
            parts.append(_examples(arrow, table, file, labelled=split == "train"))
        if len({type(part.images) for part in parts}) > 1:
            raise UserError(f"{path} has files of {split} with pixels and others with paths.")
        first = parts[0]
        for part in parts[1:]:
            if isinstance(first.images, np.ndarray):
                first.images = _joined(first.images, part.images, path)
            else:
                first.images = first.images + part.images
            if first.labels is not None and part.labels is not None:
                first.labels = first.labels + part.labels
        found[split] = first
    return assemble(f"{kind}:{path.name}", path, found, pixels, classes=names)


def _joined(first: np.ndarray, second: np.ndarray, path: Path) -> np.ndarray:
    if first.shape[1:] != second.shape[1:]:
        raise UserError(f"{path} has rows of {first.shape[1]} and of {second.shape[1]} pixels.")
    return np.concatenate([first, second])


def _arrow(kind: str) -> Any:
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{kind}: needs the package pyarrow. Run: pip install 'fmnist-keras3[parquet]'"
        ) from error
    return pyarrow


def _csv(arrow: Any, file: Path) -> Any:
    content = file.read_bytes()
    if file.suffix == ".gz":
        content = gzip.decompress(content)
    content = content.removeprefix(b"\xef\xbb\xbf")  # a mark of UTF-8, as spreadsheets write it
    first = content.split(b"\n", 1)[0].decode(errors="replace").strip("\r ")
    other = f"{file} is not in UTF-8. Save it as CSV in UTF-8."
    if "\ufffd" in first:
        raise UserError(other)
    tabs = first.count("\t") > first.count(",")
    cells = [cell.strip().strip('"') for cell in first.split("\t" if tabs else ",")]
    leads = not (all(map(_is_number, cells)) or any(map(_is_image, cells)))
    if len(set(cells)) < len(cells) and leads:
        raise UserError(f"{file} names a column twice in its first row. Give each its own name.")
    parse = arrow.csv.ParseOptions(delimiter="\t" if tabs else ",")

    def parsed(block: int) -> Any:
        options = {"autogenerate_column_names": not leads, "block_size": block}
        content_of = arrow.BufferReader(content)
        return arrow.csv.read_csv(content_of, arrow.csv.ReadOptions(**options), parse)

    try:
        table = parsed(2**24)
    except arrow.ArrowInvalid:
        # Types go by the first block. One that holds all takes twice as long, and goes by all rows.
        table = parsed(min(len(content) + 1, 2**31 - 1))
    if any(map(arrow.types.is_binary, table.schema.types)):
        raise UserError(other)
    return table


def _parquet(arrow: Any, file: Path) -> Any:
    return arrow.parquet.read_table(file)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|", text, re.IGNORECASE) is not None


def _is_image(text: str) -> bool:
    return PurePath(text).suffix.lower() in SUFFIXES


def _examples(arrow: Any, table: Any, file: Path, *, labelled: bool) -> Found:
    """Return what the rows of a table hold, by the names and types of its columns."""
    types, names = arrow.types, table.column_names
    by_name = {name.lower(): name for name in reversed(names)}
    label = next((by_name[word] for word in LABELS if word in by_name), None)

    def holds_images(name: str) -> bool:
        kind = table.schema.field(name).type
        encoded = types.is_binary(kind) or types.is_large_binary(kind) or types.is_struct(kind)
        texts = types.is_string(kind) or types.is_large_string(kind)
        return encoded or (texts and _is_image(str(table[name][0])))

    images = [name for name in names if name != label and holds_images(name)]
    images.sort(key=lambda name: name.lower() not in IMAGES)
    numeric = [n for n in names if n != label and _is_numeric(types, table.schema.field(n).type)]
    unnamed = names == [f"f{i}" for i in range(len(names))]
    if images:
        rest = [name for name in names if name not in images]
        label = label or (rest[0] if len(rest) == 1 else None)
        values = [_encoded(value, file) for value in table[images[0]].to_pylist()]
        if None in values:
            raise UserError(f"{file} has no image in row {values.index(None)} (the first is 0).")
    else:
        if label is None and (unnamed or (labelled and len(names) == len(numeric) + 1)):
            label = next((n for n in names if n not in numeric), names[0])
        numeric = [name for name in numeric if name != label and not _is_index(name)]
        strange = [n for n in names if n not in numeric and n != label and not _is_index(n)]
        if strange or not numeric:
            about = f"the column {strange[0]!r}, which holds no numbers" if strange else "no pixels"
            raise UserError(f"{file} has {about}. {NEEDED}")
        values = _pixels(table, numeric, file)
    if label is None and labelled:
        raise UserError(
            f"{file} has no column of labels, only {', '.join(names[:5])}"
            f"{', ...' * (len(names) > 5)}. Name one of them: {', '.join(LABELS[:4])}."
        )
    return Found(values, None if label is None else table[label].to_pylist())


def _is_index(name: str) -> bool:
    # What pandas writes for the numbers of rows.
    return name in ("", "Unnamed: 0", "__index_level_0__")


def _is_numeric(types: Any, kind: Any) -> bool:
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _pixels(table: Any, names: list[str], file: Path) -> np.ndarray:
    """Return the numbers of columns as ``[N, pixels]``, as small as they can be."""
    columns = [table[name] for name in names]
    for name, column in zip(names, columns, strict=True):
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise UserError(f"{file} has no number for {name!r} in row {row} (the first is 0).")
    arrays = [column.to_numpy() for column in columns]
    fits = all(a.dtype.kind in "biu" and a.min() >= 0 and a.max() <= 255 for a in arrays)
    dtype = np.uint8 if fits else np.result_type(*arrays, np.uint8)
    result = np.empty((len(table), len(arrays)), dtype)
    for i, array in enumerate(arrays):
        result[:, i] = array
    return result


def _encoded(value: Any, file: Path) -> Path | bytes | None:
    if isinstance(value, dict):  # as Hugging Face stores an image
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return file.parent / value
    return value


def _class_names(table: Any) -> tuple[str, ...]:
    """Return the names of the classes that Hugging Face keeps in a Parquet file."""
    try:
        about = json.loads((table.schema.metadata or {})[b"huggingface"])
        features = about["info"]["features"].values()
        return next(tuple(f["names"]) for f in features if f.get("_type") == "ClassLabel")
    except (KeyError, ValueError, AttributeError, TypeError, StopIteration):
        return ()
