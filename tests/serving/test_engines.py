"""Real models: their answers are those of `predict` and `explain`, and torch is not loaded."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_network
from PIL import Image
from serving_cases import WAIT

import resnext

LABELS = ("cat", "dog", "eel")
PROGRAM = """
import sys
from resnext.serving.run import serve
serve(sys.argv[1], port=0)
print("torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A small classifier."""
    preprocessing = resnext.Preprocessing(size=32, resize=36)
    network = tiny_network(card=resnext.Card(LABELS, preprocessing, threshold=0.5))
    path = tmp_path_factory.mktemp("model") / "pets.safetensors"
    resnext.save(network, path)
    return path


def photos(count: int) -> list[bytes]:
    """Photos of different sizes."""
    rng, found = np.random.default_rng(0), []
    for i in range(count):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 255, (40 + i % 7, 50 + i % 5, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        found.append(buffer.getvalue())
    return found


@contextmanager
def serving(file: Path) -> Iterator[http.client.HTTPConnection]:
    """A connection to a server of a file, which must end well and without torch."""
    command = [sys.executable, "-c", PROGRAM, str(file)]
    env = {name: text for name, text in os.environ.items() if name != "RESNEXT_TOKEN"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=env, **pipes) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://127\.0\.0\.1:(\d+)$", process.stdout.readline())
            assert found
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=WAIT)
            yield connection
            connection.close()
            process.send_signal(signal.SIGTERM)
            lines = process.stdout.read().splitlines()
            assert (process.wait(WAIT), lines[-1]) == (0, "False"), lines
        finally:
            process.kill()


def post(connection: http.client.HTTPConnection, path: str, body: bytes, **headers: str) -> Any:
    """The JSON of a good answer."""
    connection.request("POST", path, body, headers)
    with connection.getresponse() as response:
        content = response.read()
        assert response.status == 200, content
        return json.loads(content) if response.headers["content-type"] != "image/png" else content


@pytest.mark.parametrize(
    "kind",
    [
        "onnxruntime",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("openvino", ".onnx", ".xml")),
    ],
)
def test_torch_is_not_loaded(file: Path, tmp_path: Path, kind: str) -> None:
    """It takes seconds and hundreds of megabytes, for nothing."""
    pytest.importorskip("openvino" if kind in ("openvino", ".xml") else "onnxruntime")
    if kind.startswith("."):
        target = tmp_path / f"pets{kind}"
        resnext.export(file, target)
    else:
        target = tmp_path / "pets.safetensors"
        target.write_bytes(file.read_bytes())
        quick = resnext.optimize(target, engine=kind, precision="fp32", batch=4)  # pyright: ignore
        quick.save_plan(target)
    images = photos(100)
    wanted = resnext.predict(target, images, top=3)
    with serving(target) as connection:
        for image, one in zip(images, wanted, strict=True):
            (got,) = post(connection, "/v1/predict", image)["results"]
            assert [row["label"] for row in got["top"]] == list(one.labels)
            shares = [row["probability"] for row in got["top"]]
            assert shares == pytest.approx(one.probabilities, abs=1e-4)
        if not kind.startswith("."):
            check_explanation(connection, target, images[0])


def check_explanation(connection: http.client.HTTPConnection, file: Path, image: bytes) -> None:
    """The numbers of `explain`, and a picture."""
    whole = Image.open(io.BytesIO(image))
    why = resnext.explain(file, whole, label="dog", against="cat")
    got = post(connection, "/v1/explain?class=dog&against=cat", image)
    assert (got["label"], got["against"]) == ("dog", "cat")
    assert np.array(got["values"]) == pytest.approx(why.map, rel=1e-3, abs=1e-5)
    assert got["size"] == list(why.map.shape)
    assert got["crop"] == pytest.approx(why.crop)
    assert sum(map(sum, got["values"])) + got["bias"] == pytest.approx(got["score"], abs=1e-3)
    png = post(connection, "/v1/explain?class=1", image, Accept="image/png")
    assert max(Image.open(io.BytesIO(png)).size) == 512
