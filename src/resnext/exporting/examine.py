"""`doctor` for files that `export` wrote."""

from __future__ import annotations

from resnext.inference.exported import Exported
from resnext.weights.diagnosis import Diagnosis, nearest

_FORMATS = {".onnx": "ONNX", ".xml": "OpenVINO", ".pt2": "torch.export"}


def examine(exported: Exported) -> Diagnosis:
    """What a file holds, and what it was compared on when it was written."""
    path, proof = exported.path, exported.proof
    largest = max(proof["difference"].values())
    return Diagnosis(
        path,
        path.stat().st_size,
        format=f"{_FORMATS[path.suffix.lower()]}, written by resnext export",
        dialect=f"{exported.input} in; {exported.output}, embedding and map out",
        architecture=nearest(exported.config)[0],
        config=exported.config,
        classifier=True,
        card=exported.card,
        notes=(
            f"When it was written, it agreed with the network on {proof['images']} pictures in "
            f"batches of {proof['batches']}; outputs differed by at most {largest:g} of the "
            f"largest value.",
        ),
        advice=(f"resnext predict {path} photos/",),
    )
