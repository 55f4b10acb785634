"""The types that a user's editor sees: a script of right and wrong uses, checked by pyright."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="needs pyright")
def test_right_uses_pass_and_wrong_ones_are_seen():
    command = [sys.executable, "-m", "pyright", "-p", HERE / "typed"]
    done = subprocess.run(
        [*command, "--pythonpath", sys.executable],
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 warnings" in done.stdout
