"""The description of all routes for people: `/docs`, made of the one for machines."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape

from resnext.pages.template import fill, read_template
from resnext.serving.schemas import Json

_CURL = {
    "predict": "curl --data-binary @photo.jpg 'ADDRESS/v1/predict?top=3'\n"
    "curl -F images=@1.jpg -F images=@2.jpg ADDRESS/v1/predict",
    "embed": "curl --data-binary @photo.jpg ADDRESS/v1/embed\n"
    "curl --data-binary @photo.jpg -H 'Accept: application/octet-stream' \\\n"
    "     ADDRESS/v1/embed -o embedding.f32",
    "explain": "curl --data-binary @photo.jpg -H 'Accept: image/png' \\\n"
    "     ADDRESS/v1/explain -o why.png",
    "model": "curl ADDRESS/v1/model",
    "v2_model_infer": 'echo \'{"inputs": [{"name": "images", "datatype": "BYTES", '
    '"shape": [1],\n  "data": ["\'$(base64 -w 0 photo.jpg)\'"]}]}\' |\n'
    "  curl ADDRESS/v2/models/NAME/infer -H 'Content-Type: application/json' -d @-",
}


def docs_page(described: Json, address: str) -> str:
    """The document as a page.

    Args:
        described: What `document` returns.
        address: Address of the server in examples.
    """
    sections = "\n".join(
        f"<h2>{escape(tag['name'])}</h2>\n<p>{escape(tag['description'])}</p>\n"
        + "\n".join(
            _article(described, path, method, one, address)
            for path, methods in described["paths"].items()
            for method, one in methods.items()
            if method != "parameters" and tag["name"] in one["tags"]
        )
        for tag in described["tags"]
    )
    values = {"version": escape(described["info"]["version"]), "sections": sections}
    return fill(read_template("resnext.serving", "docs.html"), values)


def _article(described: Json, path: str, method: str, one: Json, address: str) -> str:
    """A route."""
    title = f"<code>{method.upper()} {escape(path)}</code><span>{escape(one['summary'])}</span>"
    parts = [f"<h3>{title}</h3>"]
    if "description" in one:
        parts.append(f"<p>{_marked(one['description'])}</p>")
    if curl := _CURL.get(one["operationId"]):
        parts.append(f'<pre tabindex="0">{escape(curl.replace("ADDRESS", address))}</pre>')
    given = [*described["paths"][path].get("parameters", ()), *one.get("parameters", ())]
    if given:
        rows = [(x["name"], f"{x['description']} {_bounds(x['schema'])}") for x in given]
        parts.append(f"<h4>Parameters</h4>{_list(rows)}")
    if body := one.get("requestBody"):
        kinds = ", ".join(f"<code>{escape(kind)}</code>" for kind in body["content"])
        parts.append(f"<h4>Body</h4><p>{kinds}. {_marked(body.get('description', ''))}</p>")
    rows = []
    for code, response in one["responses"].items():
        if "$ref" in response:
            response = described["components"]["responses"][code]
        example = response["content"].get("application/json", {}).get("example")
        if example is not None:
            text = escape(json.dumps(example, indent=2))
            parts.append(f'<h4>Answer</h4><pre tabindex="0">{text}</pre>')
        rows.append((code, f"{response['description']} ({', '.join(response['content'])})"))
    parts.append(f"<details><summary>Answers</summary>{_list(rows)}</details>")
    return f"<article>{''.join(parts)}</article>"


def _bounds(schema: Json) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None:
        return ""
    return f"From {low} to {high}." if high else f"At least {low}."


def _list(rows: Sequence[tuple[str, str]]) -> str:
    lines = (f"<dt>{escape(name)}</dt><dd>{_marked(text)}</dd>" for name, text in rows)
    return f"<dl>{''.join(lines)}</dl>"


def _marked(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
