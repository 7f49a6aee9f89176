"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An error as a client gets it.

    Args:
        status: The HTTP status.
        detail: What was wanted, what came, what to do.
        kind: A word that tells problems of the same status apart.
        headers: Headers of the response.
        more: Other members of the response.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        kind: str = "",
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.kind = status, detail, kind
        self.headers, self.more = dict(headers or {}), more

    def to_dict(self) -> dict[str, Any]:
        """The members of the response."""
        kind = f"urn:resnext:{self.kind}" if self.kind else "about:blank"
        title = HTTPStatus(self.status).phrase
        return {
            "type": kind,
            "title": title,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }

    def response(self) -> Response:
        """The response that tells it."""
        return JSONResponse(
            self.to_dict(), self.status, headers=self.headers, media_type=MEDIA_TYPE
        )


def damaged(detail: str) -> Problem:
    """The problem of an image that cannot be read."""
    return Problem(422, detail, "damaged-image")


def unavailable(detail: str, kind: str, seconds: int = 1) -> Problem:
    """The problem of a request that may succeed later.

    Args:
        detail: Why not now.
        kind: "loading", "draining", "deadline" or "engine".
        seconds: When to retry.
    """
    return Problem(503, detail, kind, {"Retry-After": str(seconds)})
