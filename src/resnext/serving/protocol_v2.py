"""The Open Inference Protocol v2 (/v2/…), as KServe and Triton speak it.

One input, "images": encoded image files (BYTES), pixels (UINT8) or values from 0 to 1 (FP32).
Tensors are JSON, or bytes behind the JSON, whose length Inference-Header-Content-Length then tells.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from resnext.checks import brief
from resnext.inference.runner import embedding_width, probabilities
from resnext.serving.bodies import check_encoding, check_length, read_body
from resnext.serving.model import Answer, Model
from resnext.serving.problems import Problem
from resnext.serving.routes import answered, route

if TYPE_CHECKING:
    from resnext.serving.service import Service

HEADER = "inference-header-content-length"
INPUT = "images"


class Output(NamedTuple):
    """An output of the model."""

    datatype: str
    width: Callable[[Model], tuple[int, ...]]
    """Its shape without the number of images."""
    values: Callable[[Model, Sequence[Answer]], Any]


OUTPUTS: dict[str, Output] = {
    "label": Output("BYTES", lambda m: (), lambda m, a: [one.top[0][0] for one in a]),
    "probability": Output("FP32", lambda m: (), lambda m, a: _probabilities(m, a).max(1)),
    "unsure": Output("BOOL", lambda m: (), lambda m, a: [one.unsure for one in a]),
    "unknown": Output("BOOL", lambda m: (), lambda m, a: [bool(one.unknown) for one in a]),
    "probabilities": Output("FP32", lambda m: (len(m.labels),), lambda m, a: _probabilities(m, a)),
    "logits": Output("FP32", lambda m: (len(m.labels),), lambda m, a: _stack(a, "logits")),
    "embedding": Output(
        "FP32",
        lambda m: (embedding_width(m.runner),),
        lambda m, a: _stack(a, "embedding"),
    ),
}
"""All outputs by name, in the order of the answer."""


def routes(service: Service) -> Sequence[BaseRoute]:
    """All routes of the protocol."""
    model = "/v2/models/{name}"
    handlers: list[tuple[str, str, Callable[[Service, Request], Any]]] = [
        ("/v2", "GET", _server),
        ("/v2/health/live", "GET", _live),
        ("/v2/health/ready", "GET", _ready),
    ]
    for path in (model, f"{model}/versions/{{version}}"):
        handlers += [
            (path, "GET", _metadata),
            (f"{path}/ready", "GET", _model_ready),
            (f"{path}/infer", "POST", _infer),
        ]
    return [route(service, *one) for one in handlers]


async def _server(service: Service, request: Request) -> Response:
    return JSONResponse(
        {
            "name": "resnext",
            "version": metadata.version("resnext"),
            "extensions": ["binary_tensor_data"],
        }
    )


async def _live(service: Service, request: Request) -> Response:
    return JSONResponse({"live": True})


async def _ready(service: Service, request: Request) -> Response:
    service.refuse_unless_ready()
    return JSONResponse({"ready": True})


async def _model_ready(service: Service, request: Request) -> Response:
    service.refuse_unless_ready()
    return JSONResponse({"name": _named(service, request).name, "ready": True})


async def _metadata(service: Service, request: Request) -> Response:
    model = _named(service, request)
    outputs = [
        {"name": name, "datatype": one.datatype, "shape": [-1, *one.width(model)]}
        for name, one in offered(model).items()
    ]
    rule = model.card.preprocessing
    channels = model.runner.config.in_channels
    parameters = {
        "UINT8": f"[n, {rule.size}, {rule.size}, {channels}]",
        "FP32": f"[n, {channels}, {rule.size}, {rule.size}]",
    }
    values = {
        "name": model.name,
        "versions": [model.version],
        "platform": "resnext",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1], "parameters": parameters}],
        "outputs": outputs,
    }
    return JSONResponse(values)


async def _infer(service: Service, request: Request) -> Response:
    try:
        return await _inferred(service, request)
    except Problem as problem:
        problem.more.setdefault("error", problem.detail)  # the protocol's own name for it
        raise


async def _inferred(service: Service, request: Request) -> Response:
    service.refuse_unless_ready()
    _named(service, request)
    check_encoding(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/octet-stream", ""):
        wanted = "application/json or application/octet-stream"
        raise Problem(415, f"The body must be {wanted}, not {brief(kind)}.", "media-type")
    with service.admission.enter(check_length(request, service.settings)) as ticket:
        body = await read_body(request, ticket, service.settings)
        content, tail = _split(request, body)
        images = _images(content, tail, service.model, service.settings.per_request)
        wanted = _wanted(content, service.model)
        identifier = content.get("id")
        if identifier is not None and not _is_text(identifier):
            raise _wrong(f"id must be text, not {brief(identifier)}")
        ticket.add(images=len(images) - 1)
        model, answers = await answered(service, request, images, 1)
    good = [one for one in answers if isinstance(one, Answer)]
    for i, one in enumerate(answers):
        if isinstance(one, Problem):  # outputs have a row for each image
            detail = one.detail if len(answers) == 1 else f"Image {i}: {one.detail}"
            raise Problem(one.status, detail, one.kind, one.headers)
    values: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if identifier is not None:
        values["id"] = identifier
    return _response(values, model, good, wanted)


# -- requests -----------------------------------------------------------------------------------


def _named(service: Service, request: Request) -> Model:
    """The model of a path.

    Raises:
        Problem: 404; there is no such model or version. 503; it is not loaded.
    """
    model, path = service.model, request.path_params
    if path["name"] != model.name:
        raise Problem(
            404, f"There is no model {brief(path['name'])}, only {model.name}.", "no-model"
        )
    if path.get("version", model.version) != model.version:
        raise Problem(
            404,
            f"There is no version {brief(path['version'])} of {model.name}, only {model.version}.",
            "no-model",
        )
    return model


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be sent back; JSON may contain halves of characters."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


def _wrong(detail: str) -> Problem:
    return Problem(400, f"{detail}.", "protocol")


def _split(request: Request, body: bytes) -> tuple[dict[str, Any], memoryview]:
    """The JSON of a body, and the binary tensors behind it."""
    text = request.headers.get(HEADER)
    length = len(body)
    if text is not None:
        known = text.isascii() and text.isdecimal() and len(text) < 10
        if not known or int(text) > len(body):
            raise _wrong(f"{HEADER} must be from 0 to the body's {len(body)}, not {brief(text)}")
        length = int(text)
    try:
        content = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise _wrong("The body does not begin with JSON in UTF-8") from error
    if not isinstance(content, dict):
        raise _wrong("The JSON must be an object")
    return content, memoryview(body)[length:]


def _images(
    content: dict[str, Any], tail: memoryview, model: Model, most: int
) -> list[bytes | np.ndarray]:
    """The images of a request."""
    inputs = content.get("inputs")
    if not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)):
        raise _wrong(f"inputs must be a list with one input, {INPUT}")
    tensor: dict[str, Any] = inputs[0]
    if tensor.get("name") != INPUT:
        raise _wrong(f"The input must be called {INPUT}, not {brief(tensor.get('name'))}")
    shape = tensor.get("shape")
    if not (isinstance(shape, list) and all(type(n) is int and 0 < n < 2**31 for n in shape)):
        raise _wrong(f"shape must be a list of sizes, not {brief(shape)}")
    datatype = tensor.get("datatype")
    rule, channels = model.card.preprocessing, model.runner.config.in_channels
    shapes = {
        "BYTES": [],
        "UINT8": [rule.size, rule.size, channels],
        "FP32": [channels, rule.size, rule.size],
    }
    if not isinstance(datatype, str) or datatype not in shapes:
        raise _wrong(f"datatype must be {', '.join(shapes)}, not {brief(datatype)}")
    if shape[1:] != shapes[datatype] or not shape:
        sizes = ", ".join(("n", *map(str, shapes[datatype])))
        raise _wrong(f"The shape for {datatype} must be [{sizes}], not {brief(shape)}")
    if shape[0] > most:
        raise Problem(422, f"A request may have {most} images, not {shape[0]}.", "too-many-images")
    raw = _raw(tensor, tail)
    if datatype == "BYTES":
        files = _files(tensor.get("data")) if raw is None else _elements(raw)
        if len(files) != shape[0]:
            raise _wrong(f"{INPUT} has {len(files)} elements; its shape says {shape[0]}")
        return files
    return _pixels(tensor, raw, shape, rule.colour == "BGR")


def _raw(tensor: dict[str, Any], tail: memoryview) -> memoryview | None:
    """The binary data of the input; None if it is in the JSON."""
    parameters = tensor.get("parameters", {})
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        if "data" not in tensor:
            raise _wrong(f"{INPUT} needs data, or binary_data_size among its parameters")
        if len(tail):
            raise _wrong(f"{len(tail)} bytes behind the JSON belong to no input")
        return None
    if type(size) is not int or size != len(tail):
        raise _wrong(
            f"binary_data_size must be the number of bytes behind the JSON, {len(tail)}, not "
            f"{brief(size)}. {HEADER} says where the JSON ends"
        )
    if "data" in tensor:
        raise _wrong("An input has data or binary_data_size, not both")
    return tail


def _files(data: Any) -> list[bytes | np.ndarray]:
    """Encoded images in JSON."""
    if not (isinstance(data, list) and all(isinstance(text, str) for text in data)):
        raise _wrong("data of BYTES must be a list of texts in base64")
    try:
        return [base64.b64decode(text, validate=True) for text in data]
    except ValueError as error:
        raise _wrong("data of BYTES must be base64; or send it as binary data") from error


def _elements(raw: memoryview) -> list[bytes | np.ndarray]:
    """Encoded images behind the JSON, each after its length in four bytes."""
    files: list[bytes | np.ndarray] = []
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise _wrong("The binary data ends within the length of an element")
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + size > len(raw):
            raise _wrong("The binary data ends within an element")
        files.append(bytes(raw[at : at + size]))
        at += size
    return files


def _pixels(
    tensor: dict[str, Any], raw: memoryview | None, shape: list[int], swapped: bool
) -> list[bytes | np.ndarray]:
    """Images that have the model's size: RGB or grey, 0 to 255, or 0 to 1 with channels first."""
    is_float = tensor["datatype"] == "FP32"
    count = int(np.prod(shape))
    if raw is not None:
        kind = np.dtype("<f4" if is_float else np.uint8)
        if len(raw) != count * kind.itemsize:
            raise _wrong(f"The shape needs {count * kind.itemsize} bytes, not {len(raw)}")
        x = np.frombuffer(raw, kind)
    else:
        try:
            x = np.array(tensor["data"]).reshape(-1)
        except ValueError as error:
            raise _wrong("data must be nested evenly, or flat") from error
        if x.dtype.kind not in "iuf":
            raise _wrong("data must hold numbers")
        if len(x) != count:
            raise _wrong(f"The shape needs {count} numbers, not {len(x)}")
    top = 1 if is_float else 255
    if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= top):
        raise _wrong(f"Values of {tensor['datatype']} must be from 0 to {top}")
    x = x.reshape(shape)
    x = (x * 255).round().transpose(0, 2, 3, 1) if is_float else x
    x = x[..., ::-1] if swapped else x
    return list(np.ascontiguousarray(x, np.uint8))


def offered(model: Model) -> dict[str, Output]:
    """The outputs that a model has."""
    names = (name for name in OUTPUTS if name != "unknown" or model.unknown is not None)
    return {name: OUTPUTS[name] for name in names}


def _wanted(content: dict[str, Any], model: Model) -> dict[str, bool]:
    """The outputs of the answer, and whether each is binary."""
    parameters = content.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _wrong("parameters must be an object")
    usual = _flag(parameters, "binary_data_output", False)
    known = offered(model)
    outputs = content.get("outputs")
    if outputs is None:
        return dict.fromkeys(known, usual)
    if not (isinstance(outputs, list) and all(isinstance(one, dict) for one in outputs)):
        raise _wrong("outputs must be a list of objects with a name")
    found: dict[str, bool] = {}
    for one in outputs:
        name, own = one.get("name"), one.get("parameters", {})
        if not isinstance(name, str) or name not in known:
            raise _wrong(f"The outputs are {', '.join(known)}, not {brief(name)}")
        if not isinstance(own, dict):
            raise _wrong("parameters must be an object")
        found[name] = _flag(own, "binary_data", usual)
    return found or dict.fromkeys(known, usual)


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise _wrong(f"{name} must be true or false, not {brief(value)}")
    return value


# -- answers ------------------------------------------------------------------------------------


def _response(
    values: dict[str, Any], model: Model, answers: Sequence[Answer], wanted: dict[str, bool]
) -> Response:
    """The outputs as JSON, those that shall be binary behind it."""
    outputs, tail = list[dict[str, Any]](), list[bytes]()
    for name, binary in wanted.items():
        output = OUTPUTS[name]
        data = output.values(model, answers)
        one: dict[str, Any] = {"name": name, "datatype": output.datatype}
        one["shape"] = [len(answers), *output.width(model)]
        if binary:
            tail.append(_encoded(output.datatype, data))
            one["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            one["data"] = data.ravel().tolist() if isinstance(data, np.ndarray) else list(data)
        outputs.append(one)
    values["outputs"] = outputs
    if not tail:
        return JSONResponse(values)
    head = json.dumps(values).encode()
    return Response(
        b"".join((head, *tail)),
        headers={HEADER: str(len(head))},
        media_type="application/octet-stream",
    )


def _encoded(datatype: str, data: Any) -> bytes:
    """A tensor as bytes."""
    if datatype == "BYTES":
        texts = [text.encode() for text in data]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.asarray(data, "<f4" if datatype == "FP32" else np.bool_).tobytes()


def _stack(answers: Sequence[Answer], name: str) -> Float32[np.ndarray, "n _"]:
    return np.stack([getattr(one, name) for one in answers])


def _probabilities(model: Model, answers: Sequence[Answer]) -> Float64[np.ndarray, "n k"]:
    return probabilities(_stack(answers, "logits"), model.card.temperature)
