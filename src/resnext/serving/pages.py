"""The pages of a server: `/`, `/docs` and `/openapi.json`."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from resnext.serving.docs import docs_page
from resnext.serving.openapi import Json, document
from resnext.serving.routes import counted
from resnext.serving.settings import Settings

if TYPE_CHECKING:
    from resnext.serving.model import Model


def content_policy(page: str) -> str:
    """The Content-Security-Policy of a page: its own styles and scripts, and requests to us."""
    allowed = {"style": "'none'", "script": "'none'"}
    for kind in allowed:
        parts = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()) for part in parts]
        if digests:
            allowed[kind] = " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
    return (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; "
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
    page = files("resnext.serving").joinpath("page.html").read_text(encoding="utf-8")

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
