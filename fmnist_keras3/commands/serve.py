"""`fmnist serve`: a web server that says what pictures show."""

from __future__ import annotations

import importlib.util
import socket
import tempfile
from pathlib import Path
from typing import Any

from fmnist_keras3 import runtime
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import UserError, exit_code

PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
PACKAGES |= {"multipart": "python-multipart"}


def serve(target: str, host: str, port: str, invert: str, scale: str) -> int:
    """Answer requests until SIGINT or SIGTERM, by which it ends with 130 or 143.

    The arguments are as for `Predictor`. Raises UserError where packages are missing, and for an
    address that cannot be had.
    """
    missing = [name for module, name in PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise UserError(
            f"serve needs {', '.join(missing)}. Type: pip install 'fmnist-keras3[serve]'"
        )
    with _bound(host, port) as bound:
        runtime.prepare()
        runtime.import_keras_alone()
        import uvicorn

        from fmnist_keras3.inference.predictor import Predictor
        from fmnist_keras3.inference.server import make_app

        console = screen.console(soft_wrap=True)
        predictor = Predictor(target, invert=invert, scale=float(scale))
        app = make_app(predictor, _page(target, float(scale), console))
        bound.listen(2048)  # before the address is said
        shown, number = bound.getsockname()[:2]
        address = f"http://{f'[{shown}]' if ':' in shown else shown}:{number}"
        console.print(f"{predictor.model.name} on {address}, documentation at {address}/docs")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        try:
            uvicorn.Server(config).run(sockets=[bound])
        except KeyboardInterrupt as error:  # uvicorn has answered what there was before
            return exit_code(getattr(error, "signal", "SIGINT"))
    return 0


def _bound(host: str, port: str) -> socket.socket:
    """Return a socket at an address; raises UserError where it cannot be had."""
    if not port.isdigit() or int(port) > 65535:
        raise UserError(f"--port is {port!r}; it must be a number up to 65535, 0 for a free one.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM
        )[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror or error}.") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise UserError(
            f"{host}:{port} cannot be listened on: {error.strerror}. Give another --port, or 0 for "
            "a free one."
        ) from error
    return made


def _page(target: str, scale: float, console: Any) -> str | None:
    """Return the page to play with; None where the model has none, which is said."""
    from fmnist_keras3.inference.export import Inexact, export

    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "page.html")
            export(target, path, "html", scale=scale)
            return path.read_text(encoding="utf-8")
    except (UserError, Inexact) as error:
        console.print(f"There is no page at /: {error}")
        return None
