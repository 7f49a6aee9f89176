"""The pages of a server: `/`, `/docs` and `/openapi.json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from resnext.pages.template import digests, read_template
from resnext.serving.docs import docs_page
from resnext.serving.openapi import document
from resnext.serving.routes import counted
from resnext.serving.schemas import Json
from resnext.serving.settings import Settings

if TYPE_CHECKING:
    from resnext.serving.model import Model


def content_policy(page: str) -> str:
    """The Content-Security-Policy of a page: its own styles and scripts, and requests to us."""
    style, script = (digests(page, tag) or "'none'" for tag in ("style", "script"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; "
        f"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'"
    )


def page_routes(
    settings: Settings | None = None, model: Callable[[], Model | None] = lambda: None
) -> list[Route]:
    """The routes of all pages. They need no token, so with one they do not name the classes.

    Args:
        settings: Options and limits.
        model: The current model; None while it is loaded.
    """
    settings = settings or Settings()
    page = read_template("resnext.serving", "page.html")

    def described() -> Json:
        return document(settings, None if settings.token is not None else model())

    async def index(request: Request) -> Response:
        return _html(page)

    async def docs(request: Request) -> Response:
        return _html(docs_page(described(), str(request.base_url).rstrip("/")))

    async def openapi(request: Request) -> Response:
        return JSONResponse(described())

    routes = {"/": index, "/docs": docs, "/openapi.json": openapi}
    return [Route(path, counted(path, answer)) for path, answer in routes.items()]


def _html(page: str) -> Response:
    headers = {"Content-Security-Policy": content_policy(page), "Cache-Control": "no-cache"}
    return Response(page, headers=headers, media_type="text/html")
