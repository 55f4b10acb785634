"""Tables of examples: CSV and Parquet, with pixels, paths or encoded images beside the labels.

Read by pyarrow, which TensorFlow Datasets brings.
"""

from __future__ import annotations

import gzip
import json
import mmap
import re
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from fmnist_keras3.data.dataset import ImageData
from fmnist_keras3.data.found import Found, assemble, files_in
from fmnist_keras3.data.pixels import SUFFIXES, Pixels
from fmnist_keras3.data.source import LetGo, identity_of_files
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import atomic, write_errors
from fmnist_keras3.runtime import cache_dir

LABELS = ("label", "labels", "class", "target", "y", "category", "fine_label", "class_name")
IMAGES = ("image", "img", "images", "path", "file", "file_name", "filename", "image_path", "png")
NEEDED = "Needed are a label and pixels (label,pixel1,pixel2,...), or path,label in each row."
CSV = (".csv", ".csv.gz", ".tsv", ".txt")
PARQUET = (".parquet", ".parq")
READ_BYTES = 2**28  # of a Parquet file that is read into memory


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
                table, mapping = load(arrow, file)
            except (OSError, EOFError, arrow.ArrowException) as error:
                text = getattr(error, "strerror", None) or str(error).split("\n")[0]
                raise UserError(f"{file} cannot be read as {kind}: {text}") from error
            if not table.num_rows:
                raise UserError(f"{file} has no rows. {NEEDED}")
            names = names or _class_names(table)
            parts.append(_examples(arrow, table, file, mapping, labelled=split == "train"))
        if len({type(part.images) for part in parts}) > 1:
            raise UserError(f"{path} has files of {split} with pixels and others with paths.")
        first = parts[0]
        if len(parts) > 1 and not isinstance(first.images, np.ndarray):
            first.images = Joined([part.images for part in parts])
        for part in parts[1:]:
            if isinstance(first.images, np.ndarray):
                first.images = _joined(first.images, part.images, path)
            first.files = (*first.files, *part.files) if first.files and part.files else ()
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
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{kind}: needs the package pyarrow. Run: pip install 'fmnist-keras3[parquet]'"
        ) from error
    return pyarrow


def _csv(arrow: Any, file: Path) -> tuple[Any, None]:
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
    return table, None


def _parquet(arrow: Any, file: Path) -> tuple[Any, mmap.mmap | None]:
    """Return the table of a file, and a mapped file that it lies in, if it is large.

    A row of Parquet cannot be read alone. So a large one is written once as Arrow's own file, into
    the cache, where each can.
    """
    if file.stat().st_size <= READ_BYTES:
        return arrow.parquet.read_table(file), None
    copy = cache_dir() / "tables" / f"{identity_of_files(file.parent, [file])[:32]}.arrow"
    if not copy.exists():
        with write_errors(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
        with (
            arrow.parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as rows,
            atomic(copy) as beside,
            arrow.ipc.new_file(str(beside), rows.schema_arrow) as written,
        ):
            for batch in rows.iter_batches(batch_size=256):
                written.write_batch(batch)
    with open(copy, "rb") as opened:
        mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return arrow.ipc.open_file(arrow.py_buffer(mapping)).read_all(), mapping


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|", text, re.IGNORECASE) is not None


def _is_image(text: str) -> bool:
    return PurePath(text).suffix.lower() in SUFFIXES


def _examples(arrow: Any, table: Any, file: Path, mapping: Any, *, labelled: bool) -> Found:
    """Return what the rows of a table hold, by the names and types of its columns."""
    types, names = arrow.types, table.column_names
    by_name = {name.lower(): name for name in reversed(names)}
    label = next((by_name[word] for word in LABELS if word in by_name), None)

    def holds_images(name: str) -> bool:
        kind = table.schema.field(name).type
        encoded = types.is_binary(kind) or types.is_large_binary(kind) or types.is_struct(kind)
        texts = types.is_string(kind) or types.is_large_string(kind)
        return encoded or (texts and _is_image(str(table[name][0])))

    files: tuple[Path, ...] = ()
    images = [name for name in names if name != label and holds_images(name)]
    images.sort(key=lambda name: name.lower() not in IMAGES)
    numeric = [n for n in names if n != label and _is_numeric(types, table.schema.field(n).type)]
    unnamed = names == [f"f{i}" for i in range(len(names))]
    if images:
        rest = [name for name in names if name not in images]
        label = label or (rest[0] if len(rest) == 1 else None)
        values: Any = Encoded(table[images[0]], file, mapping)
        looked = [values[i] for i in range(1 if mapping else len(values))]
        if None in looked:
            raise UserError(f"{file} has no image in row {looked.index(None)} (the first is 0).")
        if all(isinstance(value, bytes) for value in looked):
            files = (file,)  # else the images have files of their own
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
    return Found(values, None if label is None else table[label].to_pylist(), files)


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


class Encoded:
    """The images in a column of a table, as paths or bytes; each is taken when it is asked for.

    ``mapping`` is the file that the table lies in, if it is not in memory.
    """

    def __init__(self, column: Any, file: Path, mapping: mmap.mmap | None) -> None:
        self._column, self._file = column, file
        self._let_go, self._each = LetGo(mapping), column.nbytes // max(1, len(column))

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: int) -> Path | bytes | None:
        value = self._column[index].as_py()
        self._let_go.after(1, self._each)
        if isinstance(value, dict):  # as Hugging Face stores an image
            value = value.get("bytes") or value.get("path")
        return self._file.parent / value if isinstance(value, str) else value


class Joined:
    """Sequences, one after the other."""

    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        which = int(np.searchsorted(self._starts, index, "right")) - 1
        return self._parts[which][index - int(self._starts[which])]


def _class_names(table: Any) -> tuple[str, ...]:
    """Return the names of the classes that Hugging Face keeps in a Parquet file."""
    try:
        about = json.loads((table.schema.metadata or {})[b"huggingface"])
        features = about["info"]["features"].values()
        return next(tuple(f["names"]) for f in features if f.get("_type") == "ClassLabel")
    except (KeyError, ValueError, AttributeError, TypeError, StopIteration):
        return ()
