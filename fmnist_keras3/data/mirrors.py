"""Downloads of the four Fashion-MNIST files over https, checked against known SHA-256."""

from __future__ import annotations

import hashlib
import http.client
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import save

MIRRORS = (
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
# SHA-256 of the compressed files, as in TFDS' url_checksums/fashion_mnist.txt.
ARCHIVES = {
    "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
LARGEST = 64 << 20  # bytes; nothing longer is read
LOOPBACK = ("127.0.0.1", "::1", "localhost")

log = logging.getLogger(__name__)


class Unreachable(UserError):
    """Data that could not be had from the network; the message names the sites and reasons."""


def download(folder: str | Path, *, mirrors: Sequence[str] = MIRRORS, timeout: float = 5.0) -> None:
    """Fetch the four ``.gz`` files into ``folder`` from the first mirrors that give them.

    Genuine files that are there stay; a file appears whole and checked or not at all. Plain http
    is for loopback only. ``timeout`` (seconds) is for finding a mirror and for each silence
    after that. Raises Unreachable with every mirror's reason, UserError if the folder cannot
    be written.
    """
    folder = Path(folder).expanduser()
    failures = []
    for mirror in mirrors:
        wanted = [name for name in ARCHIVES if not _is_genuine(folder, name)]
        try:
            for name in wanted:
                url = f"{mirror.rstrip('/')}/{name}.gz"
                if name == wanted[0]:
                    _check_safe(url)
                    reach(url, timeout)
                save(folder / f"{name}.gz", _fetch(url, ARCHIVES[name], timeout))
            return
        except Unreachable as failure:
            failures.append(str(failure))
        except UserError as error:  # of the file system
            hint = "Or set XDG_CACHE_HOME to a folder that can be written."
            raise UserError(f"{error} {hint}") from error
    raise Unreachable("No mirror gave the Fashion-MNIST files: " + "; ".join(failures))


def reach(url: str, timeout: float = 5.0) -> None:
    """Raise Unreachable unless ``url`` answers a HEAD request within ``timeout`` seconds in all.

    urllib's own timeout starts again for each address of a host and leaves out name look-up: a
    firewall that drops packets would cost minutes. Hence a thread that is not waited for.
    """
    failures: list[Exception] = []

    def attempt() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=timeout).close()
        except urllib.error.HTTPError as error:
            if error.code not in (405, 501):  # it answers, but not to HEAD
                failures.append(error)
            error.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            failures.append(error)

    thread = threading.Thread(target=attempt, name="fmnist-reach", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise Unreachable(f"{url}: no answer within {timeout:g} s")
    if failures:
        raise Unreachable(f"{url}: {_reason(failures[0])}")


def _is_genuine(folder: Path, name: str) -> bool:
    path = folder / f"{name}.gz"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == ARCHIVES[name]
    except OSError:
        return False


def _fetch(url: str, sha256: str, timeout: float) -> bytes:
    """Return the file's bytes; raise Unreachable for a failure or wrong content."""
    log.info("downloading %s", url)
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            content = response.read(LARGEST)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{url}: {_reason(error)}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Unreachable(
            f"{url}: damaged or another file ({len(content)} bytes with a wrong SHA-256)"
        )
    return content


def _check_safe(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in LOOPBACK):
        raise Unreachable(f"{url}: plain http is not used")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return str(getattr(error, "reason", error)) or type(error).__name__
