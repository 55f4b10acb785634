"""`fmnist serve`: the same answers as `Predictor`, batches, limits, and bodies that mean harm."""

import base64
import contextlib
import http.client
import io
import json
import os
import random
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fmnist_keras3 import Predictor, Trainer, build_model
from fmnist_keras3.cli import main
from fmnist_keras3.data import synthetic

pytest.importorskip("fastapi", reason="pip install '.[serve]'")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory, backend):
    source = synthetic.generate(0, train=300, test=100)
    model, folder = build_model("lenet"), tmp_path_factory.mktemp("served") / "run"
    Trainer(max_epochs=1, run_dir=folder, enable_progress_bar=False).fit(
        model, (source.train.x, source.train.y)
    )
    return folder


@pytest.fixture(scope="module")
def server(run):
    """The port of a server in a process of its own, which must live to the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fmnist_keras3", "serve", str(run), "--port", "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "documentation at" in line:
            break
    else:
        pytest.fail("".join(lines))
    drain = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
    drain.start()
    yield int(line.split("127.0.0.1:")[1].split(",")[0])
    assert process.poll() is None, "".join(lines)
    process.terminate()
    assert process.wait(20) == 143
    drain.join(5)
    process.stdout.close()
    assert "Traceback" not in "".join(lines)
    assert "fmnist:" not in "".join(lines)


@pytest.fixture(scope="module")
def pictures():
    return synthetic.generate(1, train=10, test=20).test.x


def png(picture):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture[..., 0]).save(file, "PNG")
    return file.getvalue()


def ask(port, body=b"", kind="application/json", method="POST", path="/predict", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"content-type": kind, **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def form(*files):
    parts = [
        f'--xyz\r\ncontent-disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + b"--xyz--\r\n", "multipart/form-data; boundary=xyz"


def predictions(answer):
    status, body = answer
    assert status == 200, body
    return json.loads(body)["predictions"]


def test_each_way_to_send_a_picture_gives_what_the_predictor_says(server, run, pictures):
    expected = [one.to_dict() for one in Predictor(run)(pictures[:3])]
    files = [png(picture) for picture in pictures[:3]]
    coded = [base64.b64encode(file).decode() for file in files]
    ways = [
        ask(server, json.dumps({"images": coded})),
        ask(server, json.dumps({"images": [f"data:image/png;base64,{c}" for c in coded]})),
        ask(server, json.dumps({"images": pictures[:3].tolist()})),
        ask(server, *form(*((f"{n}.png", file) for n, file in enumerate(files)))),
    ]
    for answer in ways:
        found = predictions(answer)
        assert len(found) == 3
        for one, theirs in zip(found, expected, strict=True):
            assert [t["class"] for t in one["top"]] == [t["class"] for t in theirs["top"]]
            assert one["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
    assert [one["file"] for one in predictions(ways[3])] == ["0.png", "1.png", "2.png"]
    (one,) = predictions(ask(server, files[0], "image/png"))
    assert one["class"] == expected[0]["class"]


def test_a_broken_picture_is_named_and_the_others_go_on(server, pictures):
    good = png(pictures[0])
    first, second = predictions(ask(server, *form(("a.png", good), ("b.png", good[:60]))))
    assert "class" in first
    assert second["file"] == "b.png"
    assert "damaged" in second["error"] or "no picture" in second["error"]
    status, body = ask(server, b"text", "image/png")
    assert status == 422
    assert "no picture" in json.loads(body)["predictions"][0]["error"]


def test_many_at_once_are_batched_and_get_their_own_answers(server, run, pictures):
    expected = [one.label for one in Predictor(run)(pictures)]
    files = [png(picture) for picture in pictures]
    with ThreadPoolExecutor(16) as pool:
        order = [n for _ in range(10) for n in range(len(files))]
        answers = pool.map(lambda n: predictions(ask(server, files[n], "image/png"))[0], order)
        assert [one["class"] for one in answers] == [expected[n] for n in order]
    said = ask(server, method="GET", path="/metrics")[1].decode()
    batches, images = (
        float(said.split(f"fmnist_batch_images_{name} ")[1].split("\n")[0])
        for name in ("count", "sum")
    )
    assert batches < images
    assert 'fmnist_requests_total{status="200"}' in said


def test_health_documentation_and_page(server):
    status, body = ask(server, method="GET", path="/health")
    assert (status, json.loads(body)["status"]) == (200, "ok")
    schema = json.loads(ask(server, method="GET", path="/openapi.json")[1])
    assert set(schema["paths"]["/predict"]["post"]["requestBody"]["content"]) == {
        "application/json",
        "multipart/form-data",
        "image/*",
    }
    assert b"<canvas" in ask(server, method="GET", path="/")[1]


def hostile():
    """Bodies that mean harm, each with its content type and the statuses that may answer it."""
    rng = random.Random(0)
    no = {400, 422}
    deep = b"[" * 100_000 + b"]" * 100_000
    yield from [
        (b"", "application/json", no),
        (b"{", "application/json", no),
        (b"\xff\xfe\x00", "application/json", no),
        (b"null", "application/json", no),
        (b"[]", "application/json", no),
        (b'{"images": null}', "application/json", no),
        (b'{"images": {}}', "application/json", no),
        (b'{"images": []}', "application/json", no),
        (b'{"images": [null, 1, "x", {}, [], [[]], [[[]]]]}', "application/json", no),
        (b'{"images": [[[1, 2], [3]]]}', "application/json", no),
        (b'{"images": [[["a", "b"]]]}', "application/json", no),
        (b'{"images": [[[1e999, NaN]]]}', "application/json", {200}),
        (b'{"images": [[[' + b"9" * 4000 + b"]]]}", "application/json", no),
        (b'{"images": ["' + b"A" * 1_000_000 + b'"]}', "application/json", no),
        (deep, "application/json", no),
        (b'{"images": [' + deep + b"]}", "application/json", no),
        (json.dumps({"images": ["AA=="] * 257}).encode(), "application/json", {413}),
        (b"x", "multipart/form-data", no),
        (b"x", "multipart/form-data; boundary=", no),
        (b"--xyz\r\n\r\n", "multipart/form-data; boundary=xyz", no),
        (form(("", b""))[0], "multipart/form-data; boundary=xyz", no),
        (form(("../../etc/passwd", b"root"))[0], "multipart/form-data; boundary=xyz", no),
        (form(("\x1b[31m\n", b"\x00" * 100))[0], "multipart/form-data; boundary=xyz", no),
        (form(*[("a", b"b")] * 300)[0], "multipart/form-data; boundary=xyz", no),
        (b"\x89PNG\r\n\x1a\n" + bytes(2000), "image/png", no),
        (b"GIF89a" + b"\xff" * 100, "image/gif", no),
        (b"%!PS-Adobe", "image/x-eps", no),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", no),
        (bomb(), "image/png", no),
        (b"a=b", "application/x-www-form-urlencoded", no),
    ]
    for _ in range(170):
        kind = rng.choice(["application/json", "multipart/form-data; boundary=xyz", "image/png"])
        start = rng.choice([b"", b'{"images": [', b"--xyz\r\n", b"\x89PNG\r\n\x1a\n"])
        yield start + rng.randbytes(rng.randrange(2000)), kind, no


def bomb():
    """A PNG of a few bytes that says it has 20,000 x 20,000 pixels."""
    import struct
    import zlib

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(20_000))
    ends = chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + ends


def test_two_hundred_hostile_bodies_get_an_answer_and_the_server_lives(server, pictures):
    count = 0
    for body, kind, allowed in hostile():
        status, answer = ask(server, body, kind)
        assert status in allowed, (status, kind, body[:80], answer[:200])
        json.loads(answer)
        count += 1
    assert count == 200
    assert len(predictions(ask(server, png(pictures[0]), "image/png"))) == 1


def test_a_body_above_the_limit_is_refused_before_it_is_read(server):
    with socket.create_connection(("127.0.0.1", server), timeout=30) as connection:
        head = "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
        connection.sendall(f"{head}content-length: 99000000\r\n\r\n".encode())
        assert b" 413 " in connection.recv(200)
    with socket.create_connection(("127.0.0.1", server), timeout=30) as connection:
        connection.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        piece = b"100000\r\n" + bytes(2**20) + b"\r\n"
        answer = b""
        with contextlib.suppress(ConnectionError):  # it may be cut off before the answer is read
            for _ in range(60):
                connection.sendall(piece)
            connection.sendall(b"0\r\n\r\n")
            answer = connection.recv(200)
        assert not answer or b" 413 " in answer


def test_who_takes_too_long_or_finds_a_full_queue_is_told(backend):
    import asyncio

    from fmnist_keras3.inference import server as module

    async def call(app, body, delay=0.0):
        sent = []

        async def receive():
            await asyncio.sleep(delay)
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
        scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http"}
        scope |= {"server": ("x", 1), "client": ("x", 1), "root_path": "", "raw_path": b"/predict"}
        scope["headers"] = [(b"content-type", b"application/json")]
        await app(scope, receive, send)
        return sent[0]["status"]

    predictor = Predictor(build_model("lenet"))
    body = json.dumps({"images": [[[1, 2], [3, 4]]]}).encode()
    app = module.make_app(predictor, limits=module.Limits(seconds=0.2))
    assert asyncio.run(call(app, body, delay=5)) == 408
    full = module.make_app(predictor, limits=module.Limits(waiting=0))
    assert asyncio.run(call(full, body)) == 503
    fine = module.make_app(predictor)
    assert asyncio.run(call(fine, body)) == 200
    for made in (app, full, fine):
        made.state.batches.close()
    assert not fine.state.batches.alive


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "does not exist"),
        (["nowhere", "--port", "x"], "--port is 'x'; it must be a number"),
        (["nowhere", "--port", "99999"], "must be a number up to 65535"),
        (["nowhere", "--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["nowhere", "--invert", "maybe"], "maybe"),
    ],
)
def test_what_cannot_be_served_is_said(words, message, capsys):
    assert main(["serve", "--port", "0", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["serve", "nowhere", "--port", port]) == 2
    assert f"127.0.0.1:{port} cannot be listened on" in capsys.readouterr().err
