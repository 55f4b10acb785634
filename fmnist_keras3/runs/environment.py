"""What a summary says of the machine and the command."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from fmnist_keras3 import runtime


def command_line() -> str:
    """Return the command of this process as it was typed, with the backend it ran on."""
    program = Path(sys.argv[0])
    module = program.name == "__main__.py"
    words = [*(["python", "-m", program.parent.name] if module else [program.name]), *sys.argv[1:]]
    backend = os.environ.get("KERAS_BACKEND", "")
    return f"KERAS_BACKEND={backend} " * bool(backend) + shlex.join(words)


def environment() -> dict[str, Any]:
    """Return what a summary says of the machine: versions, flags, hardware, command."""
    return {
        "command": command_line(),
        "versions": runtime.versions(),
        "hardware": {**runtime.hardware(), "xla_flags": os.environ.get("XLA_FLAGS", "")},
    }
