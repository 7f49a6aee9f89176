"""The clients of docs/export.md, as they stand there, where this library is not installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import made, tiny_network
from inference_cases import CONFIG
from page_cases import LABELS, SIZES, needs_node, wave
from PIL import Image
from sample_images import ORIENTATION

import resnext
from resnext import Card, Preprocessing, ResNeXt
from resnext.exporting.export import export

ROOT = Path(__file__).parents[2]
PACKAGES = ["numpy", "onnxruntime", "pillow"]
NODE_PACKAGES = ["jpeg-js@0.4.4", "onnxruntime-node@1.30.0"]
pytestmark = pytest.mark.slow


def block(language: str, mark: str) -> str:
    """The code of the page in a language that has a mark in it."""
    page = (ROOT / "docs" / "export.md").read_text()
    (found,) = (
        code for code in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if mark in code
    )
    return found


def exported(folder: Path, interpolation: Any) -> None:
    """The file that the clients read."""
    preprocessing = Preprocessing(size=64, resize=72, interpolation=interpolation)
    network = tiny_network(
        replace(CONFIG, num_classes=4), Card(LABELS, preprocessing, temperature=1.3)
    )
    export(network, folder / "pets.onnx", input="pixels", outputs="probabilities")
    resnext.save(network, folder / "pets.safetensors")


def compare(folder: Path, command: list[str | Path], tolerance: float, **options: Any) -> None:
    """Run a client on pictures of several sizes, and compare its answers with the network's."""
    for i, size in enumerate([*SIZES, (49, 73), (300, 201)]):
        wave(*size, i).save(folder / "new.jpg", quality=92, **options)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        label, _, probability = done.stdout.strip().rpartition(" ")
        (wanted,) = resnext.predict(folder / "pets.safetensors", folder / "new.jpg", plan=False)
        assert label == wanted.label
        assert float(probability) == pytest.approx(wanted.probabilities[0], abs=tolerance)


def test_python(tmp_path: Path) -> None:
    """It cut off a pixel of some sizes: 72 / 49 * 49 is less than 72."""

    def make(environment: Path) -> None:
        venv.create(environment, with_pip=True, symlinks=True)
        pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint"]
        subprocess.run([*pip, ROOT / "constraints.txt", *PACKAGES], check=True)

    python = made("export-client", PACKAGES, make) / "bin" / "python"
    code = block("python", "onnxruntime.InferenceSession")
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 12
    exported(tmp_path, "bicubic")
    (tmp_path / "client.py").write_text(code)
    for module in ("resnext", "torch"):
        tried = subprocess.run([python, "-I", "-c", f"import {module}"], capture_output=True)
        assert b"ModuleNotFoundError" in tried.stderr
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    for options in ({}, {"exif": turned}):
        compare(tmp_path, [python, "-I", "client.py"], 1e-5, **options)


@needs_node
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_node(tmp_path: Path) -> None:
    """Its JPEG decoder repeats the colours of subsampled pictures, where Pillow's blends them."""

    def make(packages: Path) -> None:
        install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        (packages / "package.json").write_text("{}")
        subprocess.run([*install, *NODE_PACKAGES], cwd=packages, check=True)

    packages = made("export-client-node", NODE_PACKAGES, make)
    exported(tmp_path, "bilinear")
    (tmp_path / "client.mjs").write_text(block("js", "onnxruntime-node"))
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")
    network = resnext.load(tmp_path / "pets.safetensors")
    assert isinstance(network, ResNeXt)
    assert network.card is not None
    (tmp_path / "pets.json").write_text(json.dumps(network.card.to_dict()))
    compare(tmp_path, ["node", "client.mjs"], 0.01, subsampling=0)
