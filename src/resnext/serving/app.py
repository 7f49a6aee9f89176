"""The application: the routes of all modules, and the middleware around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from resnext.serving import protocol_v2, routes
from resnext.serving.guard import Guard
from resnext.serving.pages import page_routes
from resnext.serving.problems import Problem
from resnext.serving.service import Service
from resnext.serving.settings import Settings


def build_app(service: Service, settings: Settings) -> Starlette:
    """An ASGI application that serves a model.

    Whoever runs it calls `service.load` in a thread; at the end of its lifespan, everything that
    was let in is computed.

    Args:
        service: The model and its threads.
        settings: Options and limits.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    middleware = [Middleware(Guard, service=service, settings=settings)]
    if settings.origins:  # outermost: these pages may also read what the guard refuses
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type"),
            max_age=600,
        )
        middleware.insert(0, cors)
    pages = page_routes(settings, lambda: service.model if service.state == "ready" else None)
    return Starlette(
        routes=[*routes.routes(service), *protocol_v2.routes(service), *pages],
        middleware=middleware,
        exception_handlers={HTTPException: _http_problem},
        lifespan=lifespan,
    )


def _http_problem(_: Request, error: Exception) -> Response:
    """What the router refuses: an unknown path (404), or a known one's wrong method (405)."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    detail = error.detail
    if error.status_code == 404:
        detail = "There is nothing at this address. /docs lists what there is."
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
        detail = f"This address takes {headers['Allow']}."
    return Problem(error.status_code, detail, headers=headers).response()
