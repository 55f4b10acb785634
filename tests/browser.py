"""A headless Chromium that tests talk to, by DevTools' messages through two pipes."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

AXE = os.environ.get("AXE")  # the path of axe.min.js, of the npm package axe-core
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
FLAGS += ("--no-first-run", "--disable-background-networking", "--disable-component-update")
FLAGS += ("--disable-dev-shm-usage", "--remote-debugging-pipe")


def program():
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """One tab, whose ``errors`` and ``requests`` are kept; a context that ends the process."""

    def __init__(self):
        self.errors, self.requests = [], []
        self._number, self._buffer = 0, b""
        self._folder = tempfile.TemporaryDirectory()
        theirs, self._to = os.pipe()
        self._from, other = os.pipe()
        command = [program(), *FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{other}', "bash", *command],
            pass_fds=(theirs, other),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs), os.close(other)
        self._session = None
        (page,) = (
            target["targetId"]
            for target in self("Target.getTargets")["targetInfos"]
            if target["type"] == "page"
        )
        attached = self("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session = None
        self("Browser.close")
        self._process.wait(30)
        os.close(self._to), os.close(self._from)
        self._folder.cleanup()

    def __call__(self, method, **params):
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        while b"\0" not in self._buffer:
            assert select.select([self._from], [], [], 60)[0], "Chromium does not answer"
            more = os.read(self._from, 1 << 20)
            assert more, "Chromium ended"
            self._buffer += more
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(params["exceptionDetails"])
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.errors.append(params["entry"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
        return message

    def run(self, script):
        """Return what an expression is, awaited, as JSON carries it."""
        answer = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition, seconds=60):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} does not come true"
            self.run("new Promise(done => setTimeout(done, 20))")

    def open(self, path, width=1200, height=900, dark=False, phone=False):
        """Open a file, at a width and in a colour scheme."""
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self.errors.clear(), self.requests.clear()
        self("Page.navigate", url=Path(path).resolve().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def mouse(self, kind, x, y):
        buttons = {"button": "left", "buttons": 1, "clickCount": 1}
        self("Input.dispatchMouseEvent", type=kind, x=x, y=y, **buttons)

    def key(self, key, code=None, modifiers=0):
        text = {"text": key} if len(key) == 1 and not modifiers else {}
        for kind in ("keyDown", "keyUp"):
            self(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=code or key,
                modifiers=modifiers,
                **(text if kind == "keyDown" else {}),
            )

    def choose(self, selector, *paths):
        """Choose files in an input."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def drop(self, path, x=300, y=300):
        """Drop a file on the page, as a file manager does."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screenshot(self, path, whole=True):
        shot = self("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
