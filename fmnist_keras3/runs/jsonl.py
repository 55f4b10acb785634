"""The log that every run has: ``metrics.jsonl``, one object a line."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any

from fmnist_keras3.ground.files import write, write_errors


class JSONLLogger:
    """Appends records to ``metrics.jsonl``; values that are not finite are written as null."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self._bytes, self._hash = 0, hashlib.sha256()

    def log(self, record: dict[str, Any]) -> None:
        """Append one record and hand it to the operating system; UserError where it refuses."""
        clean = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in record.items()
        }
        line = (json.dumps(clean) + "\n").encode()
        with write_errors(self.path), open(self.path, "ab") as file:
            file.write(line)
        self._count(line)

    def drop(self, event: str) -> None:
        """Take away the records ``event`` at the file's end, before others take their place."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = len(lines)
        while kept and any(r["event"] == event for r in parsed(lines[kept - 1])):
            kept -= 1
        if kept < len(lines):
            write(self.path, b"".join(lines[:kept]))

    def state_dict(self) -> dict[str, Any]:
        """Return how far the file has come."""
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def begin(self) -> None:
        """Empty the file for a run that begins, should there be one."""
        if self.path.exists():
            write(self.path, b"")

    def rewind(self, state: dict[str, Any], step: int) -> list[dict[str, Any]]:
        """Go back to where the file was at `state_dict`, in a checkpoint of ``step``.

        Returns the records that are left. A damaged file keeps what can be read, with a warning.
        """
        try:
            content = self.path.read_bytes()
        except OSError:
            content = b""
        head = content[: state.get("bytes", 0)]
        if hashlib.sha256(head).hexdigest() != state.get("sha256"):
            head = _readable(content, step)
            warnings.warn(
                f"{self.path} is damaged or missing; {len(parsed(head))} records were kept.",
                stacklevel=2,
            )
        if head != content:
            write(self.path, head)
        self._bytes, self._hash = 0, hashlib.sha256()
        self._count(head)
        return parsed(head)

    def _count(self, content: bytes) -> None:
        self._bytes += len(content)
        self._hash.update(content)


def parsed(content: bytes) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``, without lines that are none."""
    records = []
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and {"event", "epoch", "step"} <= record.keys():
            records.append(record)
    return records


def _readable(content: bytes, step: int) -> bytes:
    """Return the lines of the training until ``step``, each once."""
    kept = {}
    for record in parsed(content):
        if isinstance(record["step"], int) and record["step"] <= step and record["event"] != "test":
            kept.setdefault((str(record["event"]), record["step"]), record)
    return b"".join((json.dumps(record) + "\n").encode() for record in kept.values())
