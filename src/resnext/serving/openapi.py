"""The description of all routes for machines: `/openapi.json`."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from resnext.serving.protocol_v2 import OUTPUTS, offered
from resnext.serving.schemas import Json, message_schemas, object_of, ref
from resnext.serving.settings import Settings

if TYPE_CHECKING:
    from resnext.serving.model import Model

_PROBLEMS = {
    400: "The body is not what its Content-Type says.",
    401: "The header `Authorization: Bearer TOKEN` is missing or wrong.",
    403: "The header Host does not name this server, or Origin is another page's.",
    404: "There is no such model, or it cannot be explained.",
    406: "The header Accept takes nothing that there is.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is neither an image nor multipart, or compressed.",
    422: "No image can be read, there are too many of them, or a parameter is out of range.",
    429: "The server is full; Retry-After says when to retry.",
    503: "The model is being loaded, the server ends, or the image was not computed in time.",
}
_PREDICTIONS: Json = {
    "model": {"name": "pets", "version": "9140339eae5d"},
    "results": [
        {
            "label": "cat",
            "probability": 0.973,
            "unsure": False,
            "unknown": False,
            "top": [{"label": "cat", "probability": 0.973}, {"label": "dog", "probability": 0.021}],
        }
    ],
}
_GUARDED = 401, 403, 503
_WITH_BODY = 400, 401, 403, 406, 408, 413, 415, 422, 429, 503


def document(settings: Settings, model: Model | None = None) -> Json:
    """The OpenAPI document.

    Args:
        settings: Limits of the server.
        model: The model; None to say nothing of it.
    """
    most = len(model.labels) if model else None
    top = _query("top", "How many classes to report.", _whole(1, most))
    neighbours = _query(
        "neighbours",
        "How many similar training images to report; the model needs an index.",
        _whole(0, 24),
    )
    embedding = _query(
        "embedding", "Whether to report the embedding.", {"type": "boolean", "default": False}
    )
    name = {"type": "string", **({"enum": [*model.labels]} if model else {})}
    label = {"anyOf": [name, _whole(0, most and most - 1)]}
    picture: Json = {"type": "string", "format": "binary"}
    body = {
        "required": True,
        "description": f"One image (JPEG, PNG, WebP and more), or 1 to {settings.per_request} as "
        f"multipart/form-data; {settings.body:,} bytes at most.",
        "content": {
            "image/*": {"schema": picture},
            "application/octet-stream": {"schema": picture},
            "multipart/form-data": {
                "schema": {
                    **object_of(
                        {
                            "images": {
                                "type": "array",
                                "items": picture,
                                "minItems": 1,
                                "maxItems": settings.per_request,
                            }
                        },
                    ),
                    "additionalProperties": False,
                },
                "encoding": {"images": {"contentType": "image/*"}},
            },
        },
    }
    single = {
        "required": True,
        "description": f"One image, {settings.body:,} bytes at most.",
        "content": {
            kind: body["content"][kind] for kind in ("image/*", "application/octet-stream")
        },
    }
    shape = {"x-shape": _header("Rows and columns."), "x-dtype": _header("float32.")}
    shape["x-model-version"] = _header("Version of the model.")
    predict = {
        "tags": ["Images"],
        "summary": "Classify images",
        "description": "A bad image among several carries its own error; with one good image the "
        "status is 200. Probabilities are calibrated. `unsure` says that the first class is below "
        "the model's threshold, `unknown` that the image is like none of the classes (null if the "
        "model has no index).",
        "parameters": [top, embedding, neighbours],
        "requestBody": body,
        "responses": {
            "200": _json(
                "The answers, in the order of the images.", ref("Predictions"), _PREDICTIONS
            ),
            **_problems(*_WITH_BODY),
        },
    }
    paths: Json = {
        "/v1/predict": {"post": {"operationId": "predict", **predict}},
        "/predict": {
            "post": {
                **predict,
                "operationId": "predict_alias",
                "summary": "Classify images",
                "description": "The same as `/v1/predict`.",
            }
        },
        "/v1/embed": {
            "post": {
                "operationId": "embed",
                "tags": ["Images"],
                "summary": "Embeddings of images",
                "description": "As JSON, or with `Accept: application/octet-stream` as float32 "
                "values (little-endian), one row an image.",
                "requestBody": body,
                "responses": {
                    "200": {
                        "description": "The embeddings, in the order of the images.",
                        "headers": shape,
                        "content": {
                            "application/json": {"schema": ref("Embeddings")},
                            "application/octet-stream": {"schema": picture},
                        },
                    },
                    **_problems(*_WITH_BODY),
                },
            }
        },
        "/v1/explain": {
            "post": {
                "operationId": "explain",
                "tags": ["Images"],
                "summary": "Which places of an image spoke for a class",
                "description": "The share of each place in the score of the class, or with "
                "`against` in what it has more than another class. With `Accept: image/png` the "
                "image with the map over it.",
                "parameters": [
                    _query("class", "The class or its number; by default the most likely.", label),
                    _query("against", "Another class to compare it with.", label),
                ],
                "requestBody": single,
                "responses": {
                    "200": {
                        "description": "The map.",
                        "content": {
                            "application/json": {"schema": ref("Explanation")},
                            "image/png": {"schema": picture},
                        },
                    },
                    **_problems(*_WITH_BODY, 404),
                },
            }
        },
        "/v1/model": {
            "get": {
                "operationId": "model",
                "tags": ["Server"],
                "summary": "Name, version, classes and limits of the model",
                "responses": {
                    "200": _json("The model.", ref("Model")),
                    **_problems(*_GUARDED, 406),
                },
            }
        },
        "/healthz": _probe("healthz", "Whether the process lives", 403),
        "/readyz": _probe("readyz", "Whether requests are answered", 403, 503),
        "/metrics": _probe("metrics", "All numbers, for Prometheus", 401, 403),
        **_v2(model),
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "resnext serve",
            "version": metadata.version("resnext"),
            "summary": "An image classifier over HTTP.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [
            {"name": "Images", "description": "What the model says about images."},
            {"name": "Server", "description": "The model and the state of the server."},
            {"name": "Open Inference Protocol", "description": "As KServe and Triton speak it."},
        ],
        "paths": paths,
        "components": {
            "schemas": message_schemas(
                settings.per_request, [*(offered(model) if model else OUTPUTS)]
            ),
            "responses": {str(code): _problem(code) for code in _PROBLEMS},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        **({"security": [{"token": []}]} if settings.token is not None else {}),
    }


def _v2(model: Model | None) -> Json:
    """The routes of the Open Inference Protocol."""
    tag = {"tags": ["Open Inference Protocol"]}
    known = {"enum": [model.name]} if model else {}
    parameters = [_path("name", "Name of the model.", known)]
    versions = [
        *parameters,
        _path("version", "Version of the model.", {"enum": [model.version]} if model else {}),
    ]
    infer = {
        "summary": "Classify images as tensors",
        "description": "One input, `images`: BYTES `[n]` with encoded images, in JSON as base64. "
        "Pixels of the model's size are taken too: UINT8 `[n, h, w, c]` from 0 to 255, or FP32 "
        "`[n, c, h, w]` from 0 to 1, red, green, blue. Tensors may stand as bytes behind the JSON, "
        "whose length `Inference-Header-Content-Length` then tells.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ref("InferRequest")}},
        },
        "responses": {
            "200": {
                "description": "The outputs.",
                "content": {
                    "application/json": {"schema": ref("InferResponse")},
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            **_problems(*(code for code in _WITH_BODY if code != 406), 404),
        },
    }
    paths: Json = {
        "/v2": {"get": _told("v2_server", "Name and version of the server", 401, 403)},
        "/v2/health/live": {"get": _told("v2_live", "Whether the process lives", 401, 403)},
        "/v2/health/ready": {"get": _told("v2_ready", "Whether requests are answered", *_GUARDED)},
    }
    for prefix, own, title in (
        ("/v2/models/{name}", parameters, "v2_model"),
        ("/v2/models/{name}/versions/{version}", versions, "v2_version"),
    ):
        get = _told(title, "Inputs and outputs of the model", *_GUARDED, 404)
        ready = _told(f"{title}_ready", "Whether the model is ready", *_GUARDED, 404)
        paths[prefix] = {"parameters": own, "get": get}
        paths[f"{prefix}/ready"] = {"parameters": own, "get": ready}
        paths[f"{prefix}/infer"] = {
            "parameters": own,
            "post": {"operationId": f"{title}_infer", **infer},
        }
    return {
        path: {
            method: {**tag, **one} if isinstance(one, dict) else one for method, one in of.items()
        }
        for path, of in paths.items()
    }


def _whole(low: int, high: int | None) -> Json:
    return {"type": "integer", "minimum": low, **({"maximum": high} if high else {})}


def _query(name: str, text: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _path(name: str, text: str, known: Json) -> Json:
    schema = {"type": "string", **known}
    return {"name": name, "in": "path", "required": True, "description": text, "schema": schema}


def _header(text: str) -> Json:
    return {"description": text, "schema": {"type": "string"}}


def _json(text: str, schema: Json, example: Json | None = None) -> Json:
    content = {"schema": schema, **({"example": example} if example else {})}
    return {"description": text, "content": {"application/json": content}}


def _problem(code: int) -> Json:
    found = {
        "description": _PROBLEMS[code],
        "content": {"application/problem+json": {"schema": ref("Problem")}},
    }
    if code == 429:
        found["headers"] = {"Retry-After": _header("Seconds until it is worth trying again.")}
    return found


def _problems(*codes: int) -> Json:
    return {str(code): {"$ref": f"#/components/responses/{code}"} for code in sorted(codes)}


def _told(name: str, summary: str, *codes: int) -> Json:
    answer = _json("Yes, or what was asked for.", {"type": "object"})
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": answer, **_problems(*codes)},
    }


def _probe(name: str, summary: str, *codes: int) -> Json:
    text = {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    get = {"operationId": name, "tags": ["Server"], "summary": summary}
    return {"get": {**get, "responses": {"200": text, **_problems(*codes)}}}
