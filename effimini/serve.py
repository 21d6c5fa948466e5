"""The service: `effimini predict` over HTTP.

Input: a saved or an exported model, and requests. Output: scores as JSON, and a page for one item. Guarantees: rows are
checked and scored by the functions of `predict`; the event loop neither decodes nor computes; bodies, items and
connections are limited before work is put into them; every error is JSON with one sentence; SIGTERM and SIGINT end the
service after the requests that it has.
"""

import asyncio
import contextlib
import functools
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import python_multipart  # noqa: F401 -- starlette reads forms with it, and would miss it only then
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from effimini import __version__, precheck, serve_request
from effimini.batcher import Batcher, Full
from effimini.input_csv import INPUT_COLUMNS
from effimini.predict import Item, Scorer, intervals_of, item_of, load, stars_of
from effimini.serve_request import Asked
from prep.core.errors import UserError, first_sentence
from prep.core.templates import DEMO_NOTICE, read_script, render

log = logging.getLogger(__name__)

BODIES = 4  # largest bodies that are held in memory at once
READ_SECONDS = 30.0  # for a body
SHUTDOWN_SECONDS = 60  # for the requests that are there when the service is told to end
COVERAGE = 0.9  # of the page's interval
ROUTES = "there is nothing here; POST to /predict, or GET /health or /"
_T = TypeVar("_T")


class Limits(NamedTuple):
    """What the service accepts."""

    items: int = 256  # of a request
    body: int = 32 << 20  # bytes of a request
    queue: int = 1024  # items that wait, of all requests
    wait: float = 0.005  # seconds that an item waits for others to fill its batch


class Service:
    """The endpoints, and what they share."""

    def __init__(self, model: Path, scorer: Scorer, limits: Limits) -> None:
        self.model, self.scorer, self.limits = model, scorer, limits
        self.batcher = Batcher(functools.partial(stars_of, scorer), limits.queue, limits.wait)
        self.decoders = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode")
        self.held = 0  # bytes of bodies

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Score batches while the service runs."""
        scoring = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            scoring.cancel()
            await asyncio.wait([scoring])
            self.decoders.shutdown()

    async def in_thread(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call a function in one of the threads that decode."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, function, *args)

    async def page(self, _: Request) -> Response:
        """Return the page for one item."""
        return HTMLResponse(_page(self.scorer.config.source, self.scorer.config.interval is not None))

    async def health(self, _: Request) -> Response:
        """Return what is served, and how much of it."""
        scorer, batcher = self.scorer, self.batcher
        return JSONResponse(
            {
                "status": "ok",
                "version": __version__,
                "model": str(self.model),
                "source": scorer.config.source,
                "params": scorer.parameters,
                "flops": scorer.flops,
                "waiting": batcher.taken,
                "items": batcher.items,
                "batches": batcher.batches,
            }
        )

    async def predict(self, request: Request) -> Response:
        """Return the score of an item, or of each item of a list."""
        asked = await self._read(request)
        if not 1 <= len(asked.rows) <= self.limits.items:
            raise HTTPException(
                413 if asked.rows else 422,
                f"the request has {len(asked.rows)} items; send 1 to {self.limits.items} at once",
            )
        precheck.interval_options(asked.interval, asked.ratings, "")
        config = self.scorer.config
        intervals = intervals_of(config, self.model, asked.interval, asked.ratings, "")
        with self.batcher.reserve(len(asked.rows)):
            items = await self.in_thread(serve_request.read_items, asked, config)
            stars = await self.batcher.score(items)
        ends = await self.in_thread(intervals, items, stars)
        rows = [_answer(*row) for row in zip(items, stars.tolist(), ends, strict=True)]
        return JSONResponse({"scores": rows} if asked.many else rows[0])

    async def _read(self, request: Request) -> Asked:
        """Read and parse a request.

        Raises:
            HTTPException: the body is too large, does not arrive, or is not of a form that is read.
            UserError: its content is not as documented.
        """
        taken = 0

        async def receive() -> Message:
            nonlocal taken
            message = await request.receive()
            size = len(message.get("body", b""))
            if taken + size > self.limits.body:
                raise self._too_large()
            if self.held + size > BODIES * self.limits.body:
                raise Full
            taken, self.held = taken + size, self.held + size
            return message

        if int(request.headers.get("content-length", "0")) > self.limits.body:
            raise self._too_large()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        limited = Request(request.scope, receive)
        try:
            if kind == "application/json":
                body = await _in_time(limited.body())
                return await self.in_thread(serve_request.of_json, body)
            if kind == "multipart/form-data":
                return serve_request.of_form(*await _in_time(_form(limited, self.limits.body)))
        except ClientDisconnect:
            raise HTTPException(400, "the body was cut off") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HTTPException(400, f"the body is not JSON ({first_sentence(error)}); correct it") from None
        finally:
            self.held -= taken
        raise HTTPException(415, f"the body is of type {kind or 'none'}; send application/json or multipart/form-data")

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self.limits.body} bytes; send fewer or smaller items")


async def _in_time(read: Awaitable[_T]) -> _T:
    """Return what is read from the body of a request.

    Raises:
        HTTPException: it does not arrive in time.
    """
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await read
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {READ_SECONDS:g} seconds; send it again") from None


async def _form(request: Request, most: int) -> tuple[list[tuple[str, str]], bytes | None]:
    """Return the fields of a form, each of at most `most` bytes, and its image."""
    async with request.form(max_files=1, max_fields=32, max_part_size=most) as form:
        fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        uploads = {name: value for name, value in form.multi_items() if isinstance(value, UploadFile)}
        image = await uploads.pop("image").read() if "image" in uploads else None
        if uploads:
            raise UserError(f"the form has a file in the field {next(iter(uploads))}; upload it as image")
    return fields, image


def _answer(item: Item, stars: float, ends: tuple[float, ...]) -> dict[str, Any]:
    """Return the answer for an item, with the decimals of `predict`."""
    row: dict[str, Any] = {"item_id": item.id, "score": round(stars, 2)}
    if ends:
        row |= {"low": round(ends[0], 2), "high": round(ends[1], 2)}
    return row | ({"image_fault": item.fault} if item.fault else {})


@functools.cache
def _page(source: str, interval: bool) -> str:
    values = {"coverage": COVERAGE if interval else None, "demo": DEMO_NOTICE if source == "demo" else ""}
    return render("effimini", "serve.html.jinja", values | read_script("effimini", "serve.js"))


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        sentence = ROUTES if error.status_code in {404, 405} else error.detail
        return JSONResponse({"error": sentence}, error.status_code, error.headers)
    if isinstance(error, Full):
        sentence = "the service is busy; send the request again after the seconds of Retry-After"
        return JSONResponse({"error": sentence}, 503, {"Retry-After": "1"})
    if isinstance(error, UserError):
        return JSONResponse({"error": str(error)}, 422)
    return JSONResponse({"error": "the service failed; its log says how"}, 500)


def application(model: Path, scorer: Scorer, limits: Limits) -> Starlette:
    """Return the ASGI application of a loaded model."""
    service = Service(model, scorer, limits)
    return Starlette(
        routes=[
            Route("/", service.page),
            Route("/health", service.health),
            Route("/predict", service.predict, methods=["POST"]),
        ],
        exception_handlers=dict.fromkeys((HTTPException, Full, UserError, Exception), _refused),
        lifespan=service.lifespan,
    )


def serve(model: Path, host: str, port: int, limits: Limits) -> None:
    """Serve a model until SIGTERM or SIGINT.

    Args:
        model: as of `effimini.predict.predict`.
        host: the address to listen on.
        port: the port; 0 takes a free one, which is logged.
        limits: what is accepted.

    Raises:
        UserError: the model cannot be read, or the address cannot be listened on.
    """
    scorer = load(model)
    stars_of(scorer, [item_of(dict.fromkeys(INPUT_COLUMNS, ""), scorer.config, counts=False, image=None)])  # warm up
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{host} port {port} cannot be listened on ({error}); choose others with --host and --port"
        ) from None
    with listening:
        config = uvicorn.Config(
            application(model, scorer, limits),
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        shown = f"[{host}]" if ":" in host else host
        log.info("%s is served at http://%s:%d/; Ctrl-C ends it", model, shown, listening.getsockname()[1])
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again that ended it
            uvicorn.Server(config).run([listening])
    log.info("ended")
