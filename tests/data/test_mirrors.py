"""Downloads from servers on this machine: good, damaged, silent and gone."""

import functools
import hashlib
import http.server
import os
import shutil
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from fmnist_keras3.data import idx, mirrors
from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData, Split
from fmnist_keras3.ground.errors import UserError

NAMES = {f"{name}.gz" for name in idx.FILES}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; lists what it was asked for; knows no HEAD below /no-head."""

    def do_GET(self):
        self.server.sent.append(self.path)
        super().do_GET()

    def do_HEAD(self):
        if self.path.startswith("/no-head/"):
            self.send_error(405)
        else:
            super().do_HEAD()

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder ``good`` of four files that are taken for genuine, served; ``.url``, ``.sent``."""
    monkeypatch.setenv("no_proxy", "*")
    rng = np.random.default_rng(1)
    split = Split(rng.integers(0, 256, (10, 4, 4, 1), np.uint8), np.arange(10, dtype=np.int32))
    root = tmp_path / "site"
    idx.write_folder(root / "good", ImageData("t", "t", split, split, FASHION_CLASSES))
    known = {
        name: hashlib.sha256((root / "good" / f"{name}.gz").read_bytes()).hexdigest()
        for name in idx.FILES
    }
    monkeypatch.setattr(mirrors, "ARCHIVES", known)
    handler = functools.partial(Handler, directory=str(root))
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        server.root, server.sent = root, []
        server.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def failure(folder: Path, *urls: str, timeout: float = 5.0) -> str:
    with pytest.raises(mirrors.Unreachable) as caught:
        mirrors.download(folder, mirrors=urls, timeout=timeout)
    return str(caught.value)


def test_download(site, tmp_path):
    mirrors.download(tmp_path / "a" / "cache", mirrors=[site.url + "good"])
    assert contents(tmp_path / "a" / "cache") == NAMES
    assert len(idx.read_folder(tmp_path / "a" / "cache").train) == 10
    assert len(site.sent) == 4


def test_genuine_files_are_not_fetched_again(site, tmp_path):
    mirrors.download(tmp_path / "cache", mirrors=[site.url + "good/"])
    damaged = tmp_path / "cache" / "t10k-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    site.sent.clear()
    mirrors.download(tmp_path / "cache", mirrors=[site.url + "good/"])
    assert site.sent == ["/good/t10k-labels-idx1-ubyte.gz"]
    site.sent.clear()
    mirrors.download(tmp_path / "cache", mirrors=["https://example.invalid/"])
    assert site.sent == []


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"x" + b[1:]])
def test_wrong_content_is_refused_and_the_next_mirror_used(site, tmp_path, change):
    shutil.copytree(site.root / "good", site.root / "bad")
    path = site.root / "bad" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    message = failure(tmp_path / "cache", site.url + "bad")
    assert f"{site.url}bad/t10k-images-idx3-ubyte.gz: damaged or another file" in message
    assert contents(tmp_path / "cache") == {
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    }
    mirrors.download(tmp_path / "cache", mirrors=[site.url + "bad", site.url + "good"])
    assert contents(tmp_path / "cache") == NAMES


def test_every_mirror_and_reason_is_named(site, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: refuses connections
        gone = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        message = failure(
            tmp_path / "cache",
            gone,
            site.url + "nothing",
            "http://example.invalid/files",
            "not-a-url",
        )
    assert f"{gone}train-images-idx3-ubyte.gz: [Errno" in message
    assert "nothing/train-images-idx3-ubyte.gz: HTTP 404" in message
    assert "http://example.invalid/files/train-images-idx3-ubyte.gz: plain http" in message
    assert "not-a-url/" in message
    assert contents(tmp_path / "cache") == set()


def test_server_without_head(site, tmp_path):
    shutil.copytree(site.root / "good", site.root / "no-head")
    mirrors.download(tmp_path / "cache", mirrors=[site.url + "no-head"])
    assert contents(tmp_path / "cache") == NAMES


def test_silent_server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        message = failure(tmp_path, url, timeout=0.05)
    assert "no answer within 0.05 s" in message or "timed out" in message
    for thread in set(threading.enumerate()) - before:
        thread.join()


def test_folder_that_cannot_be_written(site, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written: Not a directory") as caught:
        mirrors.download(tmp_path / "file" / "cache", mirrors=[site.url + "good"])
    assert not isinstance(caught.value, mirrors.Unreachable)


def test_failed_write_leaves_nothing(site, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        mirrors.download(tmp_path / "cache", mirrors=[site.url + "good"])
    assert contents(tmp_path / "cache") == set()


def test_default_mirrors_are_https():
    assert all(mirror.startswith("https://") for mirror in mirrors.MIRRORS)
    assert list(mirrors.ARCHIVES) == list(idx.FILES)
