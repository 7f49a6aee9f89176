"""/, /docs and /openapi.json: complete, correct, and without anything from elsewhere."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import tiny_network

from resnext import Card, Preprocessing

pytest.importorskip("starlette")
from starlette.routing import Route

from resnext.serving.app import build_app
from resnext.serving.docs import docs_page
from resnext.serving.openapi import document
from resnext.serving.pages import content_policy, page_routes
from resnext.serving.service import Service
from resnext.serving.settings import Settings

LABELS = ("zebra", "<mule>")


class Stable:
    """What the document tells of a model."""

    name, version, labels, unknown = "stable", "abc", LABELS, None


MODEL: Any = Stable()


def references(value: Any) -> Iterator[str]:
    """All references in a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def test_every_route_is_described() -> None:
    """And nothing else is. What is not described is not found by anybody."""
    settings = Settings()
    network = tiny_network(card=Card(LABELS, Preprocessing(size=32, resize=32)))
    app = build_app(Service(network, settings), settings)
    paths = document(settings)["paths"]
    routes = [route for route in app.routes if isinstance(route, Route)]
    found = {(route.path, m.lower()) for route in routes for m in (route.methods or ())}
    pages = {"/", "/docs", "/openapi.json"}
    wanted = {
        (path, method) for path, of in paths.items() for method in of if method != "parameters"
    }
    assert {one for one in found if one[0] not in pages and one[1] != "head"} == wanted
    assert pages <= {path for path, _ in found}


def test_the_document_holds_together() -> None:
    """References resolve, names of operations are unique, path parameters are declared."""
    described = document(Settings(), MODEL)
    assert json.loads(json.dumps(described)) == described
    for reference in references(described):
        value = described
        for part in reference.removeprefix("#/").split("/"):
            value = value[part]
    names: list[str] = []
    for path, methods in described["paths"].items():
        declared = {one["name"] for one in methods.get("parameters", ())}
        assert declared == {*re.findall(r"\{(\w+)\}", path)}
        for method, one in methods.items():
            if method != "parameters":
                names.append(one["operationId"])
                assert one["summary"]
                assert "200" in one["responses"]
    assert len(names) == len({*names})


def test_the_classes_are_described_unless_there_is_a_token() -> None:
    """The document needs no token, so it must not tell what the token protects."""
    described = document(Settings(), MODEL)
    parameters = described["paths"]["/v1/explain"]["post"]["parameters"]
    assert parameters[0]["schema"]["anyOf"][0]["enum"] == [*LABELS]
    top = described["paths"]["/v1/predict"]["post"]["parameters"][0]
    assert top["schema"] == {"type": "integer", "minimum": 1, "maximum": 2}
    assert "security" not in described

    for token, secret in ((None, False), ("a secret", True)):
        routes = {x.path: x for x in page_routes(Settings(token=token), lambda: MODEL)}
        bodies = [answer(routes[path]) for path in ("/openapi.json", "/docs", "/")]
        assert ('"zebra"' not in bodies[0]) is secret
        assert ("stable" not in bodies[0]) is secret


def answer(route: Route) -> str:
    """The body of a page."""
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": route.path,
        "headers": [(b"host", b"localhost:8000")],
        "query_string": b"",
        "scheme": "http",
        "server": ("localhost", 8000),
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def answer() -> None:
        await route.app(scope, receive, send)

    asyncio.run(answer())
    return b"".join(one.get("body", b"") for one in sent).decode()


def test_the_page_for_people_has_everything() -> None:
    """Every path, parameter and status; nothing that a class's name could break."""
    described = document(Settings(), MODEL)
    page = docs_page(described, "http://localhost:8000")
    for path, methods in described["paths"].items():
        for method in methods:
            if method != "parameters":
                assert f"<code>{method.upper()} {path}</code>" in page
    assert "{{" not in page
    assert "curl --data-binary @photo.jpg http://localhost:8000/v1/embed" in page
    assert "<script" not in page
    assert content_policy(page).startswith("default-src 'none'; style-src 'sha256-")
    assert "script-src 'none'" in content_policy(page)
    assert re.findall(r"(?:src|href)=\"(?!openapi\.json|\./|data:)", page) == []
