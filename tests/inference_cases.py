"""A small network, its images, and a clock: what the tests of `optimize` share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from PIL import Image

import resnext
from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig
from resnext.inference.engines.base import EngineConfig, InputKind
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.optimized import Optimized
from resnext.inference.plan import Measurement, Plan
from resnext.inference.runner import Outputs, Session
from resnext.training import Recipe

SIZE, BATCH = 12, 4
CONFIG = ResNeXtConfig(
    (1,), 4, 16, num_classes=4, num_stages=1, channels=(16,), stem_channels=8, small_stem=True
)
CARD = Card(
    ("ant", "bee", "cat", "dog"),
    Preprocessing(SIZE, 14, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
)
INSTALLED = ("torch", "openvino", "onnxruntime")


def images(count: int, channels: int = 3, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    """Normalized images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator)


def pictures(folder: Path, count: int) -> Path:
    """Class folders with this many pictures of each of the usual classes."""
    rng = np.random.default_rng(0)
    for label in CARD.labels:
        (folder / label).mkdir(parents=True)
        for i in range(count):
            values = rng.integers(0, 256, (17, 20, 3), dtype=np.uint8)
            Image.fromarray(values).save(folder / label / f"{i}.png")
    return folder


def trained_digits(folder: Path) -> Path:
    """A network trained for a few epochs."""
    config = CONFIG.replace(layers=(1, 1), num_stages=2, channels=(8, 16), stem_channels=16)
    recipe = Recipe(
        epochs=3, batch_size=24, learning_rate=0.1, min_area=0.9, flip=False, label_smoothing=0.0
    )
    out = folder / "digits.safetensors"
    resnext.train("digits", config, out=out, recipe=recipe, size=8, progress=False)
    return out


@torch.no_grad()
def agree(quick: Optimized, network: ResNeXt, x: torch.Tensor, by: float = 1e-5) -> None:
    """The network, in double precision, is the oracle."""
    twin = copy.deepcopy(network).double().eval()
    for got, wanted in (
        (quick(x), twin(x.double())),
        (quick.embed(x), twin.embed(x.double())),
    ):
        assert (got.shape, got.dtype, got.device) == (wanted.shape, torch.float32, x.device)
        assert not got.requires_grad
        if len(wanted):
            assert (got - wanted).abs().max() <= by * wanted.abs().max()


class Clock:
    """Says how long each form takes, so that the order of the table is the test's choice."""

    def __init__(self) -> None:
        self.forms: dict[int, EngineConfig] = {}
        self.kept: list[Session] = []  # the id of a deleted object is given to another
        self.seconds: Callable[[EngineConfig], float] = lambda form: 0.5

    def fastest(self, *engines: str) -> None:
        """These engines are the fastest, in this order; 8 bits before all."""

        def seconds(form: EngineConfig) -> float:
            rank = engines.index(form.engine) + 1 if form.engine in engines else 9
            return 0.01 * rank if form.precision == "int8" else 0.1 * rank + 0.001 * form.piece

        self.seconds = seconds

    def tag(self, session: Session, form: EngineConfig) -> None:
        """Remember the form of a session."""
        self.forms[id(session)] = form
        self.kept.append(session)


def chosen(plan: Plan) -> Measurement:
    """The one row that was chosen."""
    (row,) = [row for row in plan.rows if row.verdict == "chosen"]
    assert row.form == plan.form
    return row


class Wrong:
    """A session whose answers are not the network's."""

    def __init__(self, session: Session, how: str) -> None:
        self.session, self.how = session, how

    def __call__(self, x: np.ndarray) -> Outputs:
        """Logits and embeddings, altered."""
        logits, embeddings = (values.copy() for values in self.session(x))
        if self.how == "a thousandth":
            logits += np.float32(1e-3 * abs(logits).max())
        elif self.how == "one image":
            logits[-1] *= np.float32(1.01)
        elif self.how == "not a number":
            logits[-1, 1] = np.nan
        elif self.how == "infinite":
            logits[0, 0] = np.inf
        elif self.how == "other images":
            logits = logits[::-1].copy()
        elif self.how == "other classes":
            logits = logits[:, ::-1].copy()
        elif self.how == "nothing":
            logits[:] = 0
        return logits, embeddings


def spoil(monkeypatch: pytest.MonkeyPatch, clock: Clock, how: str, *engines: str) -> None:
    """Let some engines answer wrongly, or fail."""
    session = EngineBuilder.session

    def spoilt(self: EngineBuilder, form: EngineConfig, kind: InputKind = "images") -> Any:
        if form.engine not in engines:
            return session(self, form, kind)
        if how == "it fails":
            raise RuntimeError("no kernel for this\nand a long trace")
        if how == "ONNX Runtime fails":
            raise Fail("[ONNXRuntimeError] : 1 : FAIL : no kernel for this")
        wrong = Wrong(session(self, form, kind), how)
        clock.tag(wrong, form)
        return wrong

    monkeypatch.setattr(EngineBuilder, "session", spoilt)
