"""The Open Inference Protocol: handwritten bodies, and the real client of Triton."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import struct
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_network
from inference_cases import CONFIG
from PIL import Image

import resnext
from resnext import Card, Preprocessing
from resnext.prediction.images import to_pixels

pytest.importorskip("starlette")
from resnext.serving.app import build_app
from resnext.serving.service import Service
from resnext.serving.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ("a cat", "Löwe", "c", "d")
HEADER = "inference-header-content-length"


def picture(seed: int) -> bytes:
    """An image file."""
    values = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).resize((90, 70)).save(file, "PNG")
    return file.getvalue()


PICTURES = [picture(i) for i in range(3)]


class Served:
    """A server without sockets."""

    def __init__(self, folder: Path, colour: Any = "RGB") -> None:
        card = Card(LABELS, Preprocessing(size=32, resize=36, colour=colour), temperature=1.4)
        self.network = tiny_network(replace(CONFIG, num_classes=4), card)
        self.file = folder / "pets.safetensors"
        resnext.save(self.network, self.file)
        self._loop = asyncio.new_event_loop()
        self.service = Service(self.file, Settings())
        self._loop.run_until_complete(asyncio.to_thread(self.service.load, self._loop))
        self._app = build_app(self.service, self.service.settings)

    def close(self) -> None:
        """End the threads."""
        self.service.close()
        self._loop.close()

    def call(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        named = {"host": "localhost", "content-length": str(len(body)), **headers}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in named.items()],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("localhost", 80),
        }
        sent: list[Any] = []
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            if (message := next(messages, None)) is None:
                await asyncio.sleep(3600)  # the client waits for the answer
            return message

        async def send(message: Any) -> None:
            sent.append(message)

        self._loop.run_until_complete(self._app(scope, receive, send))
        found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
        return sent[0]["status"], found, b"".join(one.get("body", b"") for one in sent[1:])

    def infer(self, content: Any, tail: bytes = b"", **headers: str) -> tuple[int, Any, bytes]:
        """Status, JSON and binary data of an answer."""
        head = json.dumps(content).encode()
        if tail:
            headers[HEADER.replace("-", "_")] = str(len(head))
        path = "/v2/models/pets/infer"
        status, found, body = self.call("POST", path, head + tail, **headers)
        length = int(found.get(HEADER, len(body)))
        return status, json.loads(body[:length]), body[length:]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of a small network."""
    one = Served(tmp_path_factory.mktemp("served"))
    yield one
    one.close()


def in_json(files: list[bytes]) -> dict[str, Any]:
    """A request with encoded images in the JSON."""
    data = [base64.b64encode(file).decode() for file in files]
    return {"inputs": [tensor("BYTES", [len(files)], data)]}


def tensor(datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    """An input in the JSON."""
    return {"name": "images", "datatype": datatype, "shape": shape, "data": data}


def behind(datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    """A request whose images stand behind the JSON."""
    parameters = {"binary_data_size": size}
    one = {"name": "images", "datatype": datatype, "shape": shape, "parameters": parameters}
    return {"inputs": [one]}


def outputs(answer: Any) -> dict[str, Any]:
    """The data of each output that is in the JSON."""
    return {one["name"]: one["data"] for one in answer["outputs"]}


def test_what_the_server_says_about_itself(served: Served) -> None:
    """Clients ask this before they send anything."""
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/pets/ready"):
        assert served.call("GET", path)[0] == 200
    server = json.loads(served.call("GET", "/v2")[2])
    assert server["extensions"] == ["binary_tensor_data"]
    version = served.service.model.version
    for path in ("/v2/models/pets", f"/v2/models/pets/versions/{version}"):
        told = json.loads(served.call("GET", path)[2])
        assert (told["name"], told["versions"]) == ("pets", [version])
        assert told["inputs"][0]["datatype"] == "BYTES"
        shapes = {one["name"]: one["shape"] for one in told["outputs"]}
        assert shapes["probabilities"] == [-1, 4]
        assert shapes["label"] == [-1]
        assert "unknown" not in shapes  # there is no index
    for path in ("/v2/models/cats", "/v2/models/pets/versions/1", "/v2/models/cats/ready"):
        assert served.call("GET", path)[0] == 404


def test_answers_are_those_of_predict(served: Served) -> None:
    """As JSON and as bytes, from encoded images, pixels and floats; all outputs agree."""
    wanted = list(resnext.predict(served.network, PICTURES, top=4))
    status, answer, _ = served.infer({**in_json(PICTURES), "id": "7"})
    assert status == 200
    assert (answer["model_name"], answer["id"]) == ("pets", "7")
    found = outputs(answer)
    assert found["label"] == [one.label for one in wanted]
    assert found["probability"] == pytest.approx([x.probabilities[0] for x in wanted], abs=1e-5)
    assert found["unsure"] == [False] * 3
    probabilities = np.array(found["probabilities"]).reshape(3, 4)
    for row, one in zip(probabilities, wanted, strict=True):
        by_label = dict(zip(one.labels, one.probabilities, strict=True))
        assert row == pytest.approx([by_label[label] for label in LABELS], abs=1e-5)

    tail = b"".join(struct.pack("<I", len(x)) + x for x in PICTURES)
    names = ("logits", "label", "embedding")
    asked = behind("BYTES", [3], len(tail))
    asked["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in names]
    status, answer, raw = served.infer(asked, tail, content_type="application/octet-stream")
    assert status == 200
    sizes = [one["parameters"]["binary_data_size"] for one in answer["outputs"]]
    assert sum(sizes) == len(raw)
    logits = np.frombuffer(raw[: sizes[0]], "<f4")
    assert logits == pytest.approx(found["logits"], abs=1e-6)
    texts, at = [], sizes[0]
    for _ in range(3):
        (size,) = struct.unpack_from("<I", raw, at)
        texts.append(raw[at + 4 : at + 4 + size].decode())
        at += 4 + size
    assert texts == found["label"]
    assert np.frombuffer(raw[at:], "<f4") == pytest.approx(found["embedding"], abs=1e-6)


@pytest.mark.parametrize("colour", ["RGB", "BGR"])
def test_tensors_give_the_same_as_files(tmp_path: Path, colour: str) -> None:
    """Channels are red, green, blue whatever the network's order is."""
    served = Served(tmp_path, colour)
    card = served.network.card
    assert card is not None
    wanted = outputs(served.infer(in_json(PICTURES))[1])
    rule = replace(card.preprocessing, colour="RGB")
    x = np.stack([to_pixels("", Image.open(io.BytesIO(file)), rule) for file in PICTURES])
    floats = (x.transpose(0, 3, 1, 2) / 255).astype("<f4")
    for values, datatype in ((x, "UINT8"), (floats, "FP32")):
        raw = values.tobytes()
        shape = list(values.shape)
        requests: list[tuple[Any, bytes]] = [(behind(datatype, shape, len(raw)), raw)]
        for data in (values.tolist(), values.ravel().tolist()):
            requests.append(({"inputs": [tensor(datatype, shape, data)]}, b""))
        for request in requests:
            found = outputs(served.infer(*request)[1])
            for name, data in wanted.items():  # the last digits depend on how batches fill
                same = data if name == "label" else pytest.approx(data, abs=1e-5)
                assert found[name] == same
    served.close()


ONE = base64.b64encode(PICTURES[0]).decode()


@pytest.mark.parametrize(
    ("content", "tail", "status", "message"),
    [
        ([], b"", 400, "The JSON must be an object"),
        ({}, b"", 400, "inputs must be a list with one input, images"),
        ({"inputs": [1]}, b"", 400, "inputs must be a list with one input"),
        ({"inputs": [tensor("BYTES", [1], [ONE])] * 2}, b"", 400, "with one input"),
        ({"inputs": [{**tensor("BYTES", [1], [ONE]), "name": "x"}]}, b"", 400, "called images"),
        ({"inputs": [tensor("BYTES", [2], [ONE])]}, b"", 400, "has 1 elements; its shape says 2"),
        ({"inputs": [tensor("BYTES", [], [ONE])]}, b"", 400, r"shape for BYTES must be \[n\]"),
        ({"inputs": [tensor("BYTES", [0], [])]}, b"", 400, "shape must be a list of sizes"),
        ({"inputs": [tensor("BYTES", [True], [ONE])]}, b"", 400, "shape must be a list of sizes"),
        ({"inputs": [tensor("BYTES", [1], ["é"])]}, b"", 400, "must be base64"),
        ({"inputs": [tensor("BYTES", [1], [1])]}, b"", 400, "list of texts"),
        ({"inputs": [tensor("INT8", [1], [1])]}, b"", 400, "datatype must be BYTES, UINT8, FP32"),
        ({"inputs": [tensor("UINT8", [1, 8, 8, 3], [1])]}, b"", 400, r"must be \[n, 32, 32, 3\]"),
        ({"inputs": [tensor("UINT8", [1, 32, 32, 3], [1])]}, b"", 400, "3072 numbers, not 1"),
        ({"inputs": [tensor("UINT8", [1, 32, 32, 3], ["1"])]}, b"", 400, "must hold numbers"),
        ({"inputs": [tensor("UINT8", [1, 32, 32, 3], [[1], 2])]}, b"", 400, "nested evenly"),
        ({"inputs": [tensor("UINT8", [1, 32, 32, 3], [256] * 3072)]}, b"", 400, "from 0 to 255"),
        ({"inputs": [tensor("FP32", [1, 3, 32, 32], [float("nan")] * 3072)]}, b"", 400, "0 to 1"),
        ({"inputs": [tensor("BYTES", [17], [ONE] * 17)]}, b"", 422, "may have 16 images"),
        ({"inputs": [tensor("BYTES", [1], ["aaaa"])]}, b"", 422, "not a readable image"),
        ({**in_json(PICTURES[:1]), "id": 7}, b"", 400, "id must be text"),
        ({**in_json(PICTURES[:1]), "outputs": [{"name": "x"}]}, b"", 400, "outputs are label"),
        ({**in_json(PICTURES[:1]), "outputs": 1}, b"", 400, "outputs must be a list"),
        ({**in_json(PICTURES[:1]), "parameters": []}, b"", 400, "parameters must be an object"),
        (
            {**in_json(PICTURES[:1]), "parameters": {"binary_data_output": 1}},
            b"",
            400,
            "binary_data_output must be true or false",
        ),
        (in_json(PICTURES[:1]), b"x", 400, "1 bytes behind the JSON belong to no input"),
        (behind("BYTES", [1], 9), b"12345678", 400, "the number of bytes behind the JSON, 8"),
        (behind("BYTES", [1], 8), b"\xff\xff\xff\xff1234", 400, "ends within an element"),
        (behind("BYTES", [1], 3), b"123", 400, "ends within the length"),
        (behind("UINT8", [1, 32, 32, 3], 3), b"123", 400, "needs 3072 bytes, not 3"),
        ({"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1]}]}, b"", 400, "data"),
    ],
)
def test_what_is_refused(
    served: Served, content: Any, tail: bytes, status: int, message: str
) -> None:
    """One line that says what to do, where this protocol's clients look for it."""
    found, answer, _ = served.infer(content, tail)
    assert found == status
    assert answer["status"] == status
    assert re.search(message, answer["error"]), answer["error"]


def test_bodies_that_are_no_request(served: Served) -> None:
    """Damaged JSON, wrong lengths, other media types."""
    path = "/v2/models/pets/infer"
    body = json.dumps(in_json(PICTURES[:1])).encode()
    for text in ("-1", "1e3", str(len(body) + 1), "", "9" * 30):
        headers = {HEADER.replace("-", "_"): text}
        assert served.call("POST", path, body, **headers)[0] == 400
    for damaged in (b"", b"{", b"\xff", b"[" * 100_000):
        assert served.call("POST", path, damaged)[0] == 400
    assert served.call("POST", path, body, content_type="image/png")[0] == 415
    assert served.call("POST", path, body, content_encoding="gzip")[0] == 415
    assert served.call("POST", "/v2/models/cats/infer", body)[0] == 404
    assert served.call("GET", path)[0] == 405


CLIENT = """
import sys
import numpy as np
import tritonclient.http as triton

address, model, *files = sys.argv[1:]
client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
print(client.get_server_metadata()["name"])
metadata = client.get_model_metadata(model)
contents = np.array([open(file, "rb").read() for file in files], dtype=np.object_)
for binary in (True, False):
    images = triton.InferInput("images", [len(files)], "BYTES")
    images.set_data_from_numpy(contents, binary_data=True)
    names = [one["name"] for one in metadata["outputs"]]
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = client.infer(model, [images], outputs=wanted, request_id="7")
    labels = [x.decode() if isinstance(x, bytes) else x for x in answer.as_numpy("label")]
    assert answer.as_numpy("probabilities").shape == (len(files), 4)
    assert answer.as_numpy("unsure").dtype == np.bool_
    print(labels, [round(float(p), 4) for p in answer.as_numpy("probability")])
images = triton.InferInput("images", [1, 32, 32, 3], "UINT8")
images.set_data_from_numpy(np.zeros((1, 32, 32, 3), np.uint8), binary_data=False)
print(client.infer(model, [images]).as_numpy("logits").shape)
try:
    client.infer("cats", [images])
except triton.InferenceServerException as error:
    print(error.message())
"""


@pytest.mark.slow
def test_the_client_of_triton(tmp_path: Path, served: Served) -> None:
    """In an environment of its own, against the command."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "tritonclient[http]"]
    subprocess.run(install, check=True)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, content in zip(files, PICTURES, strict=True):
        file.write_bytes(content)
    command = [sys.executable, "-m", "resnext", "serve", served.file, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    assert server.stdout is not None
    address = server.stdout.readline().rsplit("http://", 1)[1].split()[0]
    try:
        client = [python, "-c", CLIENT, address, "pets", *files]
        done = subprocess.run(client, capture_output=True, text=True, check=False)
    finally:
        server.terminate()
        server.communicate()
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    wanted = list(resnext.predict(served.network, files))
    answer = f"{[x.label for x in wanted]} {[round(x.probabilities[0], 4) for x in wanted]}"
    assert lines == ["resnext", answer, answer, "(1, 4)", lines[-1]]
    assert "There is no model 'cats', only pets" in lines[-1]
    assert server.returncode == 0
