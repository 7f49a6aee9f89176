"""`doctor` for files that `export` wrote."""

from __future__ import annotations

from resnext.data.labels import shortened
from resnext.inference.exported import Exported
from resnext.inference.foreign import ForeignConfig
from resnext.weights.diagnosis import Diagnosis, nearest

_FORMATS = {".onnx": "ONNX", ".xml": "OpenVINO", ".pt2": "torch.export", ".pte": "ExecuTorch"}


def examine(exported: Exported) -> Diagnosis:
    """What a file holds, and what it was compared on when it was written."""
    path, proof = exported.path, exported.proof
    kind, advice = _FORMATS[path.suffix.lower()], (f"resnext predict {path} photos/",)
    config = exported.config
    if isinstance(config, ForeignConfig):
        card = exported.card
        assert card is not None  # without labels no such file opens
        return Diagnosis(
            path,
            path.stat().st_size,
            format=f"{kind}, not written by resnext export",
            dialect=f"{exported.input} in",
            classifier=True,
            card=card,
            notes=(f"Classes: {shortened(card.labels)}.", *exported.notes),
            advice=advice,
        )
    largest = max(proof["difference"].values())
    other, accuracy = "the network", ()
    if exported.precision == "int8":
        own, usual = proof["accuracy"]["int8"], proof["accuracy"]["network"]
        other = "the 8 bits of its plan"
        accuracy = (f"Accuracy on the images of that plan: {own:.2%}, the network {usual:.2%}.",)
    classifier = any(name in exported.outputs for name in ("logits", "probabilities"))
    return Diagnosis(
        path,
        path.stat().st_size,
        format=f"{kind}, written by resnext export",
        dialect=f"{exported.input} in; {', '.join(exported.outputs)} out",
        architecture=nearest(config)[0],
        config=config,
        classifier=classifier,
        card=exported.card,
        notes=(
            f"When it was written, it agreed with {other} on {proof['images']} pictures in "
            f"batches of {', '.join(map(str, proof['batches']))}; outputs differed by at most "
            f"{largest:g} of the largest value.",
            *accuracy,
        ),
        advice=advice if classifier else (),
    )
