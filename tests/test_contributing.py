"""What CONTRIBUTING.md tells newcomers to do, done in a copy of the package."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fmnist_keras3.engines.base import Engine

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = {
    part.split("\n", 1)[0]: part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
}
WORKED = [name for name, text in SECTIONS.items() if "\nThen:\n" in text]
FENCE = r"```\w+\n(.*?)```"


def test_each_kind_of_change_is_worked():
    kinds = ["A model", "An augmentation", "A kind of data", "A callback", "A logger", "A setting"]
    assert kinds == WORKED


@pytest.mark.parametrize("name", WORKED)
def test_it_is_one_new_file_and_one_line_of_a_table(tmp_path, name):
    text, package = SECTIONS[name], tmp_path / "fmnist_keras3"
    shutil.copytree(ROOT / "fmnist_keras3", package, ignore=shutil.ignore_patterns("__pycache__"))
    files = re.findall(rf"New file `(.*?)`:\n\n{FENCE}", text, re.DOTALL)
    assert len(files) == (name != "A setting")
    for place, content in files:
        assert not (tmp_path / place).exists()
        (tmp_path / place).write_text(content)
    for place, anchor, line in re.findall(
        rf"A line in `(.*?)`, below `(.*?)`:\n\n{FENCE}", text, re.DOTALL
    ):
        source = (tmp_path / place).read_text()
        assert source.count(f"{anchor}\n") == 1, anchor
        assert line.count("\n") == 1
        (tmp_path / place).write_text(source.replace(f"{anchor}\n", f"{anchor}\n{line}"))
    (tmp_path / "letters").mkdir()  # for the kind of data
    for name in "ab":
        (tmp_path / f"letters/{name}.raw").write_bytes(bytes(28 * 28 * 5))
    (command,) = re.findall(r"Then:\n\n```bash\nfmnist (.*?)\n```", text)
    done = subprocess.run(
        [sys.executable, "-m", "fmnist_keras3", *shlex.split(command)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if name == "A logger":
        (log,) = (tmp_path / "runs").glob("*/metrics.txt")
        assert log.read_text().startswith("2 {'train/epoch': 1.0, 'train/loss'")


def test_what_a_backend_has_to_define_is_listed():
    listed = SECTIONS["A backend"].split("has to define ")[1].split(";")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == Engine.__abstractmethods__


def test_the_documents_that_are_named_are_there():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
