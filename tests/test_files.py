"""Files appear whole or not at all, and what the file system refuses is one clear message."""

import errno
import os

import pytest

from fmnist_keras3.ground import files
from fmnist_keras3.ground.errors import UserError


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file.json"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"file\.json cannot be written: No space.*Free some space"):
        files.write(path, b"after")
    assert [path] == list(tmp_path.iterdir())
    assert path.read_bytes() == b"before"


def test_an_exception_in_the_block_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail_halfway():
        with files.atomic(path) as beside:
            beside.write_bytes(b"half")
            raise RuntimeError("block")

    with pytest.raises(RuntimeError, match="block"):
        fail_halfway()
    assert [path] == list(tmp_path.iterdir())
    assert path.read_bytes() == b"before"


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(UserError, match="folder is where the file should be"):
        files.write(tmp_path / "file", b"")
    assert (tmp_path / "file").is_dir()


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(UserError, match="folder is gone"):
        files.write(tmp_path / "gone" / "file", b"")


def test_only_temporary_files_are_cleaned_away(tmp_path):
    mine = [tmp_path / name for name in (".hidden", "notes.tmp", ".env.tmp", ".a.b.tmp.json")]
    for path in mine:
        path.write_text("mine")
    file = files.temporary(tmp_path / "summary.json")
    folder = files.temporary(tmp_path / "step-00000001")
    file.touch()
    (folder / "deep").mkdir(parents=True)
    files.remove_temporary(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(mine)


def test_the_suffix_is_kept_and_names_differ(tmp_path):
    names = {files.temporary(tmp_path / "model.keras").name for _ in range(9)}
    assert len(names) == 9
    assert all(name.startswith(".model.") and name.endswith(".keras") for name in names)
