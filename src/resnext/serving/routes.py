"""The routes of our own protocol (/v1), of probes and of metrics."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive

from resnext.checks import brief
from resnext.explanation.explanation import Explanation
from resnext.serving.bodies import check_length, read_images
from resnext.serving.model import Answer, Model
from resnext.serving.problems import Problem
from resnext.serving.service import Service

Endpoint = Callable[[Request], Awaitable[Response]]

JSON = "application/json"
WORK = {"/v1/predict", "/predict", "/v1/embed", "/v1/explain"}
"""Paths with work for the engine, which a full server refuses."""

_BYTES, _PNG = "application/octet-stream", "image/png"
_TOP = 5  # classes that are reported by default
_NEIGHBOURS = 24  # most of them
_SIDE = 512  # of an overlay, pixels


def routes(service: Service) -> Sequence[BaseRoute]:
    """All routes of this module."""
    handlers: Sequence[tuple[str, str, Callable[[Service, Request], Any]]] = (
        ("/v1/predict", "POST", predict),
        ("/predict", "POST", predict),
        ("/v1/embed", "POST", embed),
        ("/v1/explain", "POST", explain),
        ("/v1/model", "GET", describe),
        ("/healthz", "GET", healthy),
        ("/readyz", "GET", ready),
        ("/metrics", "GET", metrics),
    )
    return [route(service, *one) for one in handlers]


def route(
    service: Service, path: str, method: str, handler: Callable[[Service, Request], Any]
) -> Route:
    """A route whose handler gets the service.

    Args:
        service: The service.
        path: Its path.
        method: "GET" or "POST".
        handler: A coroutine function of the service and a request.
    """
    return Route(path, counted(path, partial(handler, service)), methods=[method])


def counted(path: str, answer: Endpoint) -> Endpoint:
    """The answer of a route, which metrics and the log then know by its path."""

    async def endpoint(request: Request) -> Response:
        request.scope["resnext.route"] = path
        return await answer(request)

    return endpoint


async def predict(service: Service, request: Request) -> Response:
    """The most likely classes of each image."""
    check_accept(request, JSON)
    service.refuse_unless_ready()
    classes = len(service.model.labels)
    top = number(request, "top", min(_TOP, classes), 1, classes)
    embedding = flag(request, "embedding")
    like = number(request, "neighbours", 0, 0, _NEIGHBOURS)
    settings = service.settings
    with service.admission.enter(check_length(request, settings)) as ticket:
        images = await read_images(request, ticket, settings)
        model, answers = await answered(service, request, images, top)
        check_some(answers)
        results: list[dict[str, Any]] = [
            one.to_dict(embedding=embedding)
            if isinstance(one, Answer)
            else {"error": one.to_dict()}
            for one in answers
        ]
        if like and model.index is not None:
            for one, answer in zip(results, answers, strict=True):
                if isinstance(answer, Answer):
                    one["neighbours"] = await service.aside(
                        lambda answer=answer: model.neighbours(answer, like)
                    )
    return JSONResponse({"model": identity(model), "results": results})


async def embed(service: Service, request: Request) -> Response:
    """The embedding of each image, as JSON or as the bytes of float32 values."""
    wanted = check_accept(request, JSON, _BYTES)
    service.refuse_unless_ready()
    settings = service.settings
    with service.admission.enter(check_length(request, settings)) as ticket:
        images = await read_images(request, ticket, settings)
        model, answers = await answered(service, request, images, 1)
    check_some(answers)
    if wanted == JSON:
        results = [
            {"embedding": one.embedding.tolist()}
            if isinstance(one, Answer)
            else {"error": one.to_dict()}
            for one in answers
        ]
        return JSONResponse({"model": identity(model), "results": results})
    bad = next((one for one in answers if isinstance(one, Problem)), None)
    if bad is not None:  # rows could not be told apart
        raise bad
    rows = np.stack([one.embedding for one in answers if isinstance(one, Answer)])
    headers = {
        "x-shape": ",".join(map(str, rows.shape)),
        "x-dtype": "float32",
        "x-model-version": model.version,
    }
    return Response(rows.astype("<f4").tobytes(), headers=headers, media_type=_BYTES)


async def explain(service: Service, request: Request) -> Response:
    """Which places of an image spoke for a class: numbers, or a picture."""
    wanted = check_accept(request, JSON, _PNG)
    service.refuse_unless_ready()
    settings = service.settings
    label, against = (request.query_params.get(name) for name in ("class", "against"))
    with service.admission.enter(check_length(request, settings)) as ticket:
        images = await read_images(request, ticket, settings)
        if len(images) != 1:
            raise Problem(422, "Only one image can be explained at a time.", "too-many-images")
        model = service.model
        explaining = asyncio.create_task(service.explain(images[0], label, against))
        async with cancelled_if_left(request, [explaining]):
            why = await explaining
        if wanted == _PNG:
            png = await service.aside(lambda: _png(why))
            return Response(png, headers={"x-model-version": model.version}, media_type=_PNG)
    values: dict[str, Any] = {
        "model": identity(model),
        "label": why.label,
        "against": why.against,
        "logit": why.logit,
        "score": why.score,
        "bias": why.bias,
        "size": list(why.map.shape),
        "crop": list(why.crop),
        "values": [[float(f"{value:.6g}") for value in row] for row in why.map.tolist()],
        "completeness": why.completeness_error,
    }
    return JSONResponse(values)


async def describe(service: Service, request: Request) -> Response:
    """Name, version, labels and limits of the model."""
    check_accept(request, JSON)
    settings = service.settings
    limits = {
        "bytes": settings.body,
        "pixels": settings.pixels,
        "images": settings.per_request,
        "top": len(service.model.labels),
        "seconds": settings.deadline,
    }
    return JSONResponse({**service.model.describe(), "limits": limits})


async def healthy(service: Service, request: Request) -> Response:
    """Whether the process lives."""
    return PlainTextResponse("ok\n")


async def ready(service: Service, request: Request) -> Response:
    """Whether requests are answered."""
    service.refuse_unless_ready()
    return PlainTextResponse("ready\n")


async def metrics(service: Service, request: Request) -> Response:
    """All numbers, for Prometheus."""
    text = service.metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


# -- shared with other protocols -------------------------------------------------------------------


async def answered(
    service: Service, request: Request, images: Sequence[bytes | np.ndarray], top: int
) -> tuple[Model, list[Answer | Problem]]:
    """What the model says about images, unless the client leaves meanwhile.

    Args:
        service: The service.
        request: The request, whose body was read.
        images: Contents of image files, or pixels that are ready.
        top: Number of classes to report.

    Raises:
        ClientDisconnect: The client left; the images are dropped.
    """
    submitted = service.submitted(images, top)
    async with submitted as (model, futures), cancelled_if_left(request, futures):
        return model, [await future for future in futures]


@asynccontextmanager
async def cancelled_if_left(
    request: Request, futures: Sequence[asyncio.Future[Any]]
) -> AsyncIterator[None]:
    """Cancel what is awaited in an `async with` block when the client leaves.

    Args:
        request: The request, whose body was read.
        futures: What is awaited.

    Raises:
        ClientDisconnect: The client left.
    """
    watcher = asyncio.create_task(_left(request.receive))
    watcher.add_done_callback(lambda _: [future.cancel() for future in futures])
    try:
        yield
    except asyncio.CancelledError:
        if watcher.done():
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()


def check_some(answers: Sequence[Answer | Problem]) -> None:
    """Require one good answer.

    Raises:
        Problem: None is: of a single image its own problem, of several the worst with all of them.
    """
    problems = [one for one in answers if isinstance(one, Problem)]
    if len(problems) < len(answers):
        return
    first = max(problems, key=lambda one: one.status)  # 503 says to retry
    if len(problems) == 1:
        raise first
    more = {"results": [{"error": one.to_dict()} for one in problems]}
    raise Problem(first.status, first.detail, first.kind, first.headers, **more)


def identity(model: Model) -> dict[str, str]:
    """Name and version of a model, which are in every answer."""
    return {"name": model.name, "version": model.version}


def check_accept(request: Request, *offers: str) -> str:
    """The media type of the response: the first that the client takes, best first.

    Args:
        request: The request.
        offers: What there is.

    Raises:
        Problem: 406; it takes none of them.
    """
    header = ",".join(request.headers.getlist("accept")) or "*/*"
    best, chosen = 0.0, None
    for offer in offers:
        quality = _quality(header, offer)
        if quality > best:
            best, chosen = quality, offer
    if chosen is None:
        raise Problem(406, f"There is {' or '.join(offers)}, but not what Accept wants.", "accept")
    return chosen


def number(request: Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number of the query.

    Raises:
        Problem: 422; it is not such a number.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and low <= int(text) <= high):
        raise Problem(422, f"{name} must be from {low} to {high}, not {brief(text)}.", "parameter")
    return int(text)


def flag(request: Request, name: str) -> bool:
    """A yes or no of the query.

    Raises:
        Problem: 422; it is neither.
    """
    text = request.query_params.get(name, "false").lower()
    if text not in ("true", "false", "1", "0"):
        raise Problem(422, f"{name} must be true or false, not {brief(text)}.", "parameter")
    return text in ("true", "1")


def _quality(header: str, offer: str) -> float:
    """How much a header Accept likes a media type; the most specific range decides."""
    kind = offer.partition("/")[0]
    found = (-1, 0.0)
    for part in header.split(","):
        name, *parameters = (text.strip().lower() for text in part.split(";"))
        rank = {"*/*": 0, f"{kind}/*": 1, offer: 2}.get(name, -1)
        if rank > found[0]:
            found = rank, _weight(parameters)
    return found[1]


def _weight(parameters: Sequence[str]) -> float:
    text = next((one[2:] for one in parameters if one.startswith("q=")), "1")
    try:
        return float(text)
    except ValueError:
        return 1.0


async def _left(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _png(why: Explanation) -> bytes:
    buffer = io.BytesIO()
    why.overlay(_SIDE).save(buffer, "PNG")
    return buffer.getvalue()
