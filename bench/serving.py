"""`python -m bench.serving RUN`: what `fmnist serve` stands, on loopback, with real test images.

10,000 requests of one PNG each by clients that keep their connections; latency, throughput, the
server's memory along the way, and whether each answer is that of `Predictor`.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench.cells import ROOT
from fmnist_keras3 import runtime
from fmnist_keras3.ground.files import write_json

IMAGES = 200  # different ones


def measure(run: str, requests: int, clients: int) -> dict[str, Any]:
    """Serve ``run`` in a process of its own and ask it ``requests`` times."""
    runtime.prepare()
    import psutil

    from fmnist_keras3 import Predictor
    from fmnist_keras3.data import sources

    pixels = sources.load("fashion_mnist").test.x[:IMAGES]
    files = [_png(image) for image in pixels]
    expected = [one.to_dict()["top"] for one in Predictor(run)(pixels)]
    command = [sys.executable, "-m", "fmnist_keras3", "serve", run, "--port", "0"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        line = next(line for line in server.stdout if "documentation at" in line)
        port = int(line.split("127.0.0.1:")[1].split(",")[0])
        process, memory = psutil.Process(server.pid), []
        local, seconds, wrong = threading.local(), [0.0] * requests, [0]

        def ask(number: int) -> None:
            if not hasattr(local, "connection"):
                local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            one = number % IMAGES
            started = time.perf_counter()
            local.connection.request("POST", "/predict", files[one], {"content-type": "image/png"})
            answer = local.connection.getresponse()
            content = json.loads(answer.read())
            seconds[number] = time.perf_counter() - started
            if answer.status != 200 or not _same(content["predictions"][0]["top"], expected[one]):
                wrong[0] += 1
            if number % (requests // 10) == 0:
                memory.append(round(process.memory_info().rss / 2**20))

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, range(clients)))  # connections are opened before the clock starts
            started = time.perf_counter()
            list(pool.map(ask, range(requests)))
            total = time.perf_counter() - started
    finally:
        server.terminate()
        server.wait(20)
        server.stdout.close()
    p50, p99 = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.99))
    return {
        "requests": requests,
        "clients": clients,
        "requests_per_second": round(requests / total, 1),
        "p50_ms": round(p50, 2),
        "p99_ms": round(p99, 2),
        "answers_that_differ": wrong[0],
        "server_memory_mb": memory,
        "exit_code": server.returncode,
    }


def _same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    return all(
        a["class"] == b["class"] and abs(a["probability"] - b["probability"]) < 1e-5
        for a, b in zip(found, expected, strict=True)
    )


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Measure with several numbers of clients, and write bench/results/serving.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    given = parser.parse_args()
    found = [measure(given.run, given.requests, clients) for clients in given.clients]
    for one in found:
        print(one)
    path = Path(__file__).parent / "results/serving.json"
    about = {
        "command": shlex.join(["python", "-m", "bench.serving", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "hardware": runtime.hardware(),
        "versions": runtime.versions(),
    }
    write_json(path, {**about, "measured": found})


if __name__ == "__main__":
    main()
