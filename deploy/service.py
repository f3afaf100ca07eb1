"""A classifier of pictures as an HTTP service, with a page to try it."""

from __future__ import annotations

import asyncio
import functools
import io
import re
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image, UnidentifiedImageError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dassl.utils.tools import image_decoders
from support.hints import nearest

from .batching import Batcher, Overloaded

PAGE = Path(__file__).with_name("page.html")
#: bytes of a request beside its pictures
OVERHEAD = 64 * 1024
#: longest side of a picture, in lengths of its shortest
MAX_RATIO = 100
#: options of a request for labels, in its address, and what they may be
OPTIONS = {"top_k": "a whole number, 1 or more", "attention": "true or false"}
#: the header ``Host``: an address of IPv6 in brackets or a name, and perhaps a port
HOST = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::\d*)?")
#: kinds of files that are decoded, those of cameras and the web
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")


@dataclass
class Model:
    """What a service serves.

    Args:
        labels: the ``C`` classes.
        read: makes a picture ``(3, height, width)`` of an opened image; raises ``ValueError`` for
            one that cannot be used.
        probabilities: ``(B, C)`` of pictures ``(B, 3, height, width)``.
        info: what ``/info`` tells.
        attention: maps a picture to the attention of the class token over the patches, a grid of
            rows and columns with sum 1 at most; None where there is no such thing.
    """

    labels: list[str]
    read: Callable[[Image.Image], np.ndarray]
    probabilities: Callable[[np.ndarray], np.ndarray]
    info: dict[str, Any]
    attention: Callable[[np.ndarray], list[list[float]]] | None = None


@dataclass
class Limits:
    """What a request may ask for.

    Args:
        picture_bytes: size of a file.
        pictures: files in a request.
        pixels: of a picture, once decoded.
        max_batch, max_wait, max_waiting: see ``Batcher``.
    """

    picture_bytes: int = 10_000_000
    pictures: int = 16
    pixels: int = 50_000_000
    max_batch: int = 16
    max_wait: float = 0.005
    max_waiting: int = 256


class KnownHosts:
    """Middleware that answers requests to some hosts only.

    Args:
        app: what answers them.
        hosts: values of the header ``Host``, without ports and brackets.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("host", "") if scope["type"] == "http" else None
        found = HOST.fullmatch(given or "")
        if given is None or (found and (found[1] or found[2]).lower() in self.hosts):
            await self.app(scope, receive, send)
            return
        error = f"wrong header Host {given!r}: this service answers as {', '.join(self.hosts)}"
        await JSONResponse({"error": error}, 400)(scope, receive, send)


class BadPicture(ValueError):
    """A picture that cannot be used; the text says why."""


def build_app(model: Model, limits: Limits, hosts: Sequence[str] | None = None) -> FastAPI:
    """Build the service.

    Args:
        model: what it serves.
        limits: what a request may ask for.
        hosts: values of the header ``Host`` that are answered, so that no page of another site
            reaches a service on this machine by a name of its own; None for any.
    """
    compute = ThreadPoolExecutor(1, thread_name_prefix="model")
    batcher = Batcher(
        model.probabilities, compute, limits.max_batch, limits.max_wait, limits.max_waiting
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()
        compute.shutdown()

    app = FastAPI(title="Labels of pictures", lifespan=lifespan, docs_url=None, redoc_url=None)
    if hosts is not None:
        app.add_middleware(KnownHosts, hosts=hosts)

    @app.exception_handler(HTTPException)
    async def explain(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def explain_options(_request: Request, error: RequestValidationError) -> JSONResponse:
        texts = [
            f"{entry['loc'][-1]} is {entry['input']!r:.80}: use {OPTIONS[entry['loc'][-1]]}"
            for entry in error.errors()
        ]
        return JSONResponse({"error": "; ".join(texts)}, 422)

    @app.exception_handler(Exception)
    async def apologise(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"error": "internal error; the service's log has it"}, 500)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        policy = "default-src 'none'; img-src blob: data:; connect-src 'self'"
        inline = "; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        headers = {"Content-Security-Policy": policy + inline + "; frame-ancestors 'none'"}
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=headers)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/info")
    async def info() -> dict[str, Any]:
        return {
            **model.info,
            "labels": model.labels,
            "attention": model.attention is not None,
            "limits": {
                "picture_bytes": limits.picture_bytes,
                "pictures": limits.pictures,
                "pixels": limits.pixels,
            },
        }

    @app.post("/predict")
    async def predict(request: Request, top_k: int = 5, attention: bool = False) -> JSONResponse:
        if unknown := [name for name in request.query_params if name not in OPTIONS]:
            known = f"there are {' and '.join(OPTIONS)}"
            meant = nearest(unknown[0], OPTIONS)
            raise HTTPException(422, f"no option {unknown[0]!r}: {known}{meant}")
        if top_k < 1:
            raise HTTPException(422, f"top_k is {top_k}: use {OPTIONS['top_k']}")
        if attention and model.attention is None:
            raise HTTPException(422, "this model has no attention map")
        entries: list[dict[str, Any]] = []
        pictures: list[np.ndarray] = []
        for name, content in await _files(request, limits):
            entries.append({"file": name})
            try:
                pictures.append(
                    await asyncio.to_thread(_decode, content, model.read, limits.pixels)
                )
            except BadPicture as error:
                entries[-1]["error"] = str(error)
        try:
            futures = batcher.submit(pictures)
        except Overloaded:
            again = {"Retry-After": "1"}
            raise HTTPException(503, "too many pictures wait: try again", again) from None
        good = [entry for entry in entries if "error" not in entry]
        rows = await asyncio.gather(*futures)
        for entry, picture, row in zip(good, pictures, rows, strict=True):
            entry["labels"] = [
                {"label": model.labels[index], "probability": float(row[index])}
                for index in np.argsort(-row, kind="stable")[:top_k]
            ]
            if attention and model.attention is not None:
                loop = asyncio.get_running_loop()
                entry["attention"] = await loop.run_in_executor(compute, model.attention, picture)
        return JSONResponse({"predictions": entries}, 200 if good else 422)

    return app


async def _files(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """Read the files of a request: names and contents.

    Raises:
        HTTPException: 413 for too many or too large ones, 422 where there is none.
    """
    how = "send pictures as files of multipart/form-data, e.g. curl -F file=@cat.jpg"
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(422, f"no form with files: {how}")
    too_many = HTTPException(413, f"too many files: at most {limits.pictures} in a request")
    try:
        async with _bounded(request, limits).form(max_files=limits.pictures) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            texts = [name for name, value in form.multi_items() if isinstance(value, str)]
            found = [(file.filename or "", await file.read()) for file in files]
    except HTTPException as error:
        if error.status_code != 400:
            raise
        # the parser's only limit that a form of pictures meets
        if "files" in error.detail:
            raise too_many from None
        raise HTTPException(422, f"the form cannot be read: {error.detail}") from None
    if texts:
        raise HTTPException(
            422,
            f"{texts[0]!r} in the form is no file: {how}. Options stand in the address, as in "
            "/predict?top_k=2",
        )
    if not found:
        raise HTTPException(422, f"no file in the form: {how}")
    for name, content in found:
        if len(content) > limits.picture_bytes:
            size = limits.picture_bytes / 1e6
            raise HTTPException(413, f"{name or 'a file'} is too large: at most {size:g} MB each")
    return found


def _bounded(request: Request, limits: Limits) -> Request:
    """Return the request with a body that ends in an error where it becomes too large.

    The rest is read all the same, within bounds: a client that is still sending would not read the
    answer.
    """
    most = limits.pictures * limits.picture_bytes + OVERHEAD
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received <= most:
            return message
        while message.get("more_body") and received < 4 * most:
            message = await request.receive()
            received += len(message.get("body", b""))
        raise HTTPException(413, f"the request is too large: at most {most / 1e6:.4g} MB in all")

    return Request(request.scope, receive)


def _decode(content: bytes, read: Callable[[Image.Image], np.ndarray], pixels: int) -> np.ndarray:
    """Make a picture of the content of a file.

    Raises:
        BadPicture: it is no picture, is damaged, or has too many pixels.
    """
    most = f"at most {pixels / 1e6:g} million"
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            width, height = image.size
            if width * height > pixels:
                raise BadPicture(f"{width} x {height} pixels are too many: {most}")
            # it would become as long as it is narrow when the short side is brought to size
            if max(width, height) > MAX_RATIO * min(width, height):
                raise BadPicture(f"{width} x {height} pixels: too narrow, at most 1:{MAX_RATIO}")
            return read(image)
    except BadPicture:
        raise
    except Image.DecompressionBombError:
        raise BadPicture(f"its pixels are too many: {most}") from None
    except UnidentifiedImageError:
        kinds = ", ".join(_formats())
        what = "an empty file" if not content else "no picture, damaged, or of another kind"
        raise BadPicture(f"{what}; read are {kinds}") from None
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        raise BadPicture(f"cannot be read: {error}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the kinds of pictures that Pillow decodes here."""
    image_decoders()
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)
