"""The JSON of requests and answers as JSON Schema, for `/openapi.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resnext.serving.protocol_v2 import INPUT

Json = dict[str, Any]


def message_schemas(images: int, outputs: list[str]) -> Json:
    """The schema of each kind of message, by its name.

    Args:
        images: How many images a request may have.
        outputs: Names of the outputs in the Open Inference Protocol.
    """
    text, number, flag = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
    numbers = {"type": "array", "items": number}
    chance = {"type": "number", "minimum": 0, "maximum": 1}
    texts = {"type": "array", "items": text}
    identity = object_of({"name": text, "version": text})
    maybe = {"type": ["string", "null"]}
    failed = object_of({"error": ref("Problem")})
    answer = object_of(
        {
            "label": text,
            "probability": chance,
            "unsure": flag,
            "unknown": {"type": ["boolean", "null"]},
            "top": {"type": "array", "items": object_of({"label": text, "probability": chance})},
        },
        {
            "embedding": numbers,
            "neighbours": {
                "type": "array",
                "items": object_of({"label": maybe, "distance": number, "jpeg": text}),
            },
        },
    )
    shape = {"type": "array", "items": {"type": "integer", "minimum": 1}}
    parameters = {"type": "object"}
    binary = object_of({}, {"binary_data": flag})
    return {
        "Problem": object_of(
            {"type": text, "title": text, "status": {"type": "integer"}, "detail": text},
            {"error": text, "results": {"type": "array", "items": {"type": "object"}}},
        ),
        "Predictions": object_of(
            {
                "model": identity,
                "results": {"type": "array", "items": {"anyOf": [answer, failed]}},
            }
        ),
        "Embeddings": object_of(
            {
                "model": identity,
                "results": {
                    "type": "array",
                    "items": {"anyOf": [object_of({"embedding": numbers}), failed]},
                },
            }
        ),
        "Explanation": object_of(
            {
                "model": identity,
                "label": text,
                "against": maybe,
                "logit": number,
                "score": number,
                "bias": number,
                "size": shape,
                "crop": {**numbers, "minItems": 4, "maxItems": 4},
                "values": {"type": "array", "items": numbers},
                "completeness": {"type": ["number", "null"]},
            }
        ),
        "Model": object_of(
            {
                "name": text,
                "version": text,
                "labels": texts,
                "preprocessing": {"type": "object"},
                "threshold": {"type": ["number", "null"]},
                "unknown": flag,
                "neighbours": flag,
                "explain": flag,
                "engine": text,
                "batch": {"type": "integer"},
                "licence": text,
                "limits": {"type": "object"},
            }
        ),
        "InferRequest": object_of(
            {
                "inputs": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 1,
                    "items": {"oneOf": [_encoded(count) for count in range(1, images + 1)]},
                }
            },
            {
                "id": maybe,
                "parameters": object_of({}, {"binary_data_output": flag}),
                "outputs": {
                    "type": ["array", "null"],
                    "items": object_of({"name": {"enum": outputs}}, {"parameters": binary}),
                },
            },
        ),
        "InferResponse": object_of(
            {
                "model_name": text,
                "model_version": text,
                "outputs": {
                    "type": "array",
                    "items": object_of(
                        {
                            "name": text,
                            "datatype": text,
                            "shape": shape,
                        },
                        {"data": {"type": "array"}, "parameters": parameters},
                    ),
                },
            },
            {"id": text},
        ),
    }


def _encoded(count: int) -> Json:
    """The input of the Open Inference Protocol with so many encoded images."""
    return object_of(
        {
            "name": {"const": INPUT},
            "datatype": {"const": "BYTES"},
            "shape": {"const": [count]},
            "data": {
                "type": "array",
                "items": {"type": "string", "format": "byte", "contentEncoding": "base64"},
                "minItems": count,
                "maxItems": count,
            },
        }
    )


def ref(name: str) -> Json:
    """A reference to one of `message_schemas`."""
    return {"$ref": f"#/components/schemas/{name}"}


def object_of(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Json:
    """An object with fields that must be there, and others that may be, each with its schema."""
    properties = {**required, **(optional or {})}
    needed = {"required": [*required]} if required else {}
    return {"type": "object", "properties": properties, **needed}
