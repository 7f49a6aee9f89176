"""What others do to ONNX files leaves ours as they are: the full check, and onnxslim."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import environment, tiny_network
from inference_cases import CONFIG

import resnext
from resnext import Card, Preprocessing
from resnext.exporting.export import export

PACKAGES = ["onnxslim==0.1.98", "colorama"]
OUTPUTS = ["logits", "probabilities", "embedding", "map"]


def answers(path: Path, x: np.ndarray) -> list[np.ndarray]:
    """All outputs of a file."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(OUTPUTS, {session.get_inputs()[0].name: x})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({}, [(1, 3, 32, 32), (3, 3, 32, 32)]),
        ({"precision": "fp16", "input": "pixels"}, [(2, 32, 32, 3)]),
        ({"input": "picture"}, [(1, 36, 50, 3), (2, 97, 41, 3)]),
        ({"sizes": "dynamic"}, [(1, 3, 32, 32), (2, 3, 41, 70)]),
    ],
    ids=["images", "fp16 pixels", "picture", "dynamic"],
)
def test_the_full_check_and_onnxslim(
    options: Any, shapes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """Shapes and types are right everywhere; a slimmer graph answers equally, and predicts."""
    card = Card(("a", "b", "c"), Preprocessing(size=32, resize=36), temperature=1.7)
    network = tiny_network(replace(CONFIG, num_classes=3), card)
    path = export(network, tmp_path / "net.onnx", outputs=OUTPUTS, **options)
    slimmer = tmp_path / "slim.onnx"
    command = environment("onnxslim", PACKAGES) / "onnxslim"
    subprocess.run([command, path, slimmer], check=True, capture_output=True)
    rng = np.random.default_rng(0)
    for file in (path, slimmer):
        onnx.checker.check_model(onnx.load(file), full_check=True)
    for shape in shapes:
        x: np.ndarray = rng.integers(0, 256, shape, np.uint8)
        if options.get("input", "images") == "images":
            x = rng.normal(size=shape).astype(np.float32)
        for mine, theirs in zip(answers(slimmer, x), answers(path, x), strict=True):
            assert np.abs(mine - theirs).max() <= 1e-5 * np.abs(theirs).max()
    photo = rng.integers(0, 256, (40, 50, 3), np.uint8)
    (mine,), (theirs,) = (resnext.predict(file, photo, top=3) for file in (slimmer, path))
    assert mine.labels == theirs.labels
