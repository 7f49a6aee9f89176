"""What an exported file says about itself: our own description, and the conventions of others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from resnext.card import Card
from resnext.config import ResNeXtConfig
from resnext.exporting.graph import FileInput

_DATA = ("data", "fingerprint", "seed", "val_fraction")


def own_metadata(
    config: ResNeXtConfig,
    card: Card,
    inputs: FileInput,
    outputs: Sequence[str],
    sizes: str,
    precision: str,
    max_batch: int,
    proof: dict[str, Any],
) -> str:
    """Our description as JSON: what `resnext predict` needs to use the file.

    Args:
        config: The architecture.
        card: Labels, preprocessing, temperature and threshold. Of its provenance only what tells
            the images that the model was trained on.
        inputs: Kind of the input.
        outputs: Names of the outputs.
        sizes: "fixed", or "dynamic" if images of other sizes are accepted too.
        precision: How weights are stored: "fp32", "fp16" or "int8".
        max_batch: The largest batch; 0 if any number of images is accepted.
        proof: What the gate measured.
    """
    shown = card.to_dict()
    shown["provenance"] = {key: card.provenance[key] for key in _DATA if key in card.provenance}
    content = {
        "version": 1,
        "resnext": version("resnext"),
        "config": config.to_dict(),
        "card": shown,
        "input": inputs,
        "outputs": list(outputs),
        "sizes": sizes,
        "precision": precision,
        "max_batch": max_batch,
        "proof": proof,
    }
    return json.dumps(content, sort_keys=True, ensure_ascii=False)


def onnx_metadata(config: ResNeXtConfig, card: Card, inputs: FileInput) -> dict[str, str]:
    """Keys that Ultralytics' runtimes read, and ONNX's own for images of 8 bits."""
    preprocessing = card.preprocessing
    found = {
        "imgsz": repr([preprocessing.size, preprocessing.size]),
        "batch": "1",
        "stride": str(config.stride),
        "channels": str(config.in_channels),
        "license": card.licence,
    }
    if card.labels:
        found |= {"names": repr(dict(enumerate(card.labels))), "task": "classify"}
    if inputs != "images":
        formats = {"RGB": "Rgb8", "BGR": "Bgr8", "L": "Gray8"}
        found |= {
            "Image.BitmapPixelFormat": formats[preprocessing.colour],
            "Image.ColorSpaceGamma": "SRGB",
            "Image.NominalPixelRange": "NominalRange_0_255",
        }
    return found


def openvino_metadata(card: Card, inputs: FileInput) -> dict[str, str]:
    """The entries of `model_info` that OpenVINO's Model API reads.

    It separates labels by spaces, so spaces in a label become underscores.
    """
    preprocessing = card.preprocessing
    found: dict[str, str] = {}
    if card.labels:
        found = {
            "model_type": "Classification",
            "labels": " ".join("_".join(label.split()) or "_" for label in card.labels),
            "multilabel": "False",
            "output_raw_scores": "True",
        }
    if card.threshold is not None:
        found["confidence_threshold"] = f"{card.threshold:g}"
    if inputs == "images":
        found |= {
            "mean_values": " ".join(f"{255 * x:g}" for x in preprocessing.mean),
            "scale_values": " ".join(f"{255 * x:g}" for x in preprocessing.std),
        }
    return found
