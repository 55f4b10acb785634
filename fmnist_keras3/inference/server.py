"""A web server around a `Predictor`: FastAPI and uvicorn, with pictures classified in batches."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import io
import json
import queue
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as Count
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.inference import pictures
from fmnist_keras3.inference.predictor import BATCH, Prediction, Predictor, Unreadable

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

GATHERING = 0.002  # seconds for which a batch waits for more pictures
NO_PAGE = "<!doctype html><title>fmnist serve</title><p>{reason}<p><a href='/docs'>/docs</a>"
# Of the documentation at /docs: FastAPI knows the body of a function that reads it itself by this.
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "description": "files as base64, or pixels as [H, W] or [H, W, 1|3|4]",
                            "items": {},
                        }
                    },
                }
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@dataclass(frozen=True)
class Limits:
    """What a request may cost: ``bytes`` of its body, ``images`` in it, ``seconds`` it takes.

    ``waiting`` images of all requests may wait for the model; more are sent away with 503.
    """

    bytes: int = 20_000_000
    images: int = 256
    seconds: float = 30.0
    waiting: int = 2048


def make_app(
    predictor: Predictor, page: str | None = None, limits: Limits | None = None
) -> FastAPI:
    """Return the application: /predict, /health, /metrics, /docs, and ``page`` (HTML) at /.

    /predict takes JSON ``{"images": [...]}`` (files as base64, or pixels), a multipart form of
    files, or one file as the body, and answers ``{"predictions": [...]}`` in their order, each as
    `Prediction.to_dict`, or ``{"file", "error"}`` for a picture that cannot be read. The status is
    422 where none can, 400 for a body that is none of these, 413 above the `Limits`, 408 where it
    takes too long, 503 where too many wait.
    """
    limits = limits or Limits()
    registry = CollectorRegistry()
    requests = Count("fmnist_requests", "Requests to /predict", ["status"], registry=registry)
    seconds = Histogram("fmnist_request_seconds", "Time of /predict", registry=registry)
    seen = Count("fmnist_images", "Images classified", registry=registry)
    sizes = Histogram(
        "fmnist_batch_images", "Images a batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
    )
    batches = Batches(predictor, limits.waiting, sizes.observe)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        batches.close()

    about = f"What pictures show, by {predictor.model.name}."
    app = FastAPI(title="fmnist", description=about, lifespan=lifespan)
    app.add_middleware(Limited, limits=limits)
    app.state.batches = batches

    @app.post("/predict", openapi_extra=BODY)
    async def predict(request: Request) -> JSONResponse:
        started = time.perf_counter()
        try:
            found = await _predicted(request, batches, limits)
            good = sum("error" not in one for one in found)
            answer = JSONResponse({"predictions": found}, 200 if good else 422)
            seen.inc(good)
        except HTTPException as error:
            answer = JSONResponse({"error": error.detail}, error.status_code)
        requests.labels(str(answer.status_code)).inc()
        seconds.observe(time.perf_counter() - started)
        return answer

    @app.get("/health")
    def health() -> dict[str, Any]:
        alive = batches.alive
        return {
            "status": "ok" if alive else "failed",
            "model": predictor.model.name,
            "classes": list(predictor.class_names),
            "waiting": batches.waiting,
        }

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    def home() -> HTMLResponse:
        return HTMLResponse(page or NO_PAGE.format(reason="This model has no page to play with."))

    return app


async def _predicted(request: Request, batches: Batches, limits: Limits) -> list[dict[str, Any]]:
    """Return what is answered of each picture; raises HTTPException for a request as a whole."""
    contents = await _contents(request, limits)
    if not contents:
        raise HTTPException(400, 'There is no picture. Send files, or JSON {"images": [...]}.')
    if len(contents) > limits.images:
        raise HTTPException(413, f"{len(contents)} pictures; {limits.images} are allowed.")
    read = await run_in_threadpool(lambda: [_read(name, content) for name, content in contents])
    good = [one for one in read if not isinstance(one, Unreadable)]
    try:
        results = iter(await batches.classified([image for _, image in good]))
    except queue.Full:
        raise HTTPException(503, "Too many pictures wait. Try again.") from None
    except UserError as error:
        raise HTTPException(500, str(error)) from error
    answers = []
    for one in read:
        if not isinstance(one, Unreadable):
            found = next(results)
            if isinstance(found, Prediction):
                answers.append(dataclasses.replace(found, file=one[0]).to_dict())
                continue
            one = Unreadable(one[0], found.reason)
        answers.append({"file": one.file, "error": one.reason})
    return answers


async def _contents(request: Request, limits: Limits) -> list[tuple[str, Any]]:
    """Return name and content of each picture in a request: bytes, or nested lists of pixels."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        form = await request.form(max_files=limits.images, max_fields=16)
        files = [value for _, value in form.multi_items() if not isinstance(value, str)]
        return [(file.filename or "file", await file.read()) for file in files]
    body = await request.body()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [("body", body)] if body else []
    try:
        value = await run_in_threadpool(json.loads, body)
        images = value["images"]
    except (ValueError, RecursionError, KeyError, TypeError):
        images = None
    if not isinstance(images, list):
        raise HTTPException(
            400,
            'The body is neither JSON {"images": [...]}, nor multipart/form-data with files, nor '
            "a picture with a content type as image/png.",
        )
    return [(f"image {number}", content) for number, content in enumerate(images)]


def _read(name: str, content: Any) -> Unreadable | tuple[str, Any]:
    """Return a picture by its name, or why it cannot be read."""
    name = pictures.shown(name)[:200]
    try:
        if isinstance(content, str):
            content = base64.b64decode(content.partition("base64,")[2] or content, validate=True)
        if isinstance(content, bytes):
            if not content:
                raise UserError("the file is empty.")
            return name, pictures.decoded(io.BytesIO(content))
        if not isinstance(content, list):
            raise UserError("it is neither base64 nor an array of pixels.")
        return name, pictures.as_image(np.array(content))
    except binascii.Error:
        return Unreadable(name, "it is no base64.")
    except UserError as error:
        return Unreadable(name, str(error))
    except (ValueError, OverflowError):  # rows of different lengths, or huge numbers
        return Unreadable(name, "it is no array [H, W] or [H, W, 1|3|4] of pixels.")


class Batches:
    """Classifies the pictures of all requests in batches, in a thread of its own.

    A batch is what waits, up to `BATCH` pictures; while one is computed the next gathers.
    ``waiting`` may be in the queue; ``observe`` is told the size of each batch.
    """

    def __init__(self, predictor: Predictor, most: int, observe: Any) -> None:
        self._predictor, self._observe, self._most = predictor, observe, most
        self._queue: queue.Queue[tuple[Any, Any, Any] | None] = queue.Queue()
        for count in (1, 2):  # both programs are compiled before the first request
            list(predictor.stream([np.zeros((28, 28), np.uint8)] * count))
        self._thread = threading.Thread(target=self._work, name="fmnist-batches", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after what waits."""
        self._queue.put(None)
        self._thread.join()

    @property
    def waiting(self) -> int:
        """How many pictures wait."""
        return self._queue.qsize()

    @property
    def alive(self) -> bool:
        """Whether pictures are classified."""
        return self._thread.is_alive()

    async def classified(self, images: list[Any]) -> list[Prediction | Unreadable]:
        """Return what images of Pillow show; raises queue.Full where too many wait."""
        if images and self.waiting + len(images) > self._most:
            raise queue.Full
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in images]
        for image, answer in zip(images, answers, strict=True):
            self._queue.put((image, answer, loop))
        return list(await asyncio.gather(*answers))

    def _work(self) -> None:
        closed = False
        while not closed:
            taken, ends = [self._queue.get()], time.monotonic() + GATHERING
            while taken[-1] is not None and len(taken) < BATCH:
                try:
                    taken.append(self._queue.get(timeout=max(0.0, ends - time.monotonic())))
                except queue.Empty:
                    break
            closed = taken[-1] is None
            # Who has gone, by a time-out or a closed connection, waits no more.
            batch = [one for one in taken if one is not None and not one[1].cancelled()]
            if not batch:
                continue
            self._observe(len(batch))
            try:
                results: list[Any] = list(self._predictor.stream([image for image, _, _ in batch]))
            except Exception as error:  # the server goes on; the request is told
                results = [error] * len(batch)
            for (_, answer, loop), result in zip(batch, results, strict=True):
                loop.call_soon_threadsafe(_settle, answer, result)


def _settle(answer: asyncio.Future, result: Any) -> None:
    if answer.done():
        return
    if isinstance(result, Exception):
        known = isinstance(result, UserError)
        answer.set_exception(result if known else UserError(f"The model failed: {result}"))
    else:
        answer.set_result(result)


class _TooLarge(Exception):
    pass


class Limited:
    """Middleware that ends requests which are too large or take too long, whoever reads them."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, most = False, self._limits.bytes
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        said = dict(scope["headers"]).get(b"content-length", b"0")
        error = None
        if said.isdigit() and int(said) > most:
            error = (413, f"The body is larger than {most:,} bytes.")
        else:
            try:
                async with asyncio.timeout(self._limits.seconds):
                    await self._app(scope, counted, watched)
            except _TooLarge:
                error = (413, f"The body is larger than {most:,} bytes.")
            except TimeoutError:
                error = (408, f"It took longer than {self._limits.seconds:g} seconds.")
        if error is not None and not begun:
            answer = JSONResponse({"error": error[1]}, error[0], {"connection": "close"})
            await answer(scope, receive, send)
