"""Networks in all forms that can be explained, and data whose reason is known."""

from __future__ import annotations

import copy

import numpy as np
import torch
from oracles.originals import sklearn
from torch import nn

from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig
from resnext.card import card_of
from resnext.config import ResNeXtConfig as Config
from resnext.grouped_conv import grouped_convolutions, merge_groups
from resnext.inference.engines.base import EngineConfig
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.engines.torch import TorchRunner, classifier_of
from resnext.inference.fold import fold
from resnext.inference.runner import Classifier, MapOutputs, MapSession, Outputs

FORMS = ("plain", "folded", "merged", "channels last", "onnxruntime", "openvino")


class SessionRunner:
    """A session of an engine as a runner."""

    batch = 4

    def __init__(self, network: ResNeXt, session: MapSession) -> None:
        self.card: Card = card_of(network)
        self.config: Config = network.config
        self.classifier: Classifier = classifier_of(network)
        self.session = session

    def pixels(self, x: np.ndarray) -> Outputs:
        """Logits and embeddings."""
        logits, maps = self.session(x)
        return logits, maps.mean((2, 3))

    def maps(self, x: np.ndarray) -> MapOutputs:
        """Logits and feature maps."""
        return self.session(x)


def in_form(network: ResNeXt, form: str) -> TorchRunner | SessionRunner:
    """The network as a runner, in one of `FORMS`."""
    network = copy.deepcopy(network)
    card = card_of(network)
    size = card.preprocessing.size
    if form in ("onnxruntime", "openvino"):
        builder = EngineBuilder(network, size, torch.device("cpu"), card.preprocessing)
        return SessionRunner(network, builder.map_session(EngineConfig(form), "pixels"))
    if form == "folded":
        network = fold(network)
    if form == "channels last":
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if form == "merged":
        found = grouped_convolutions(network, (1, network.config.in_channels, size, size))
        merge_groups(network, {name: 2 for name, conv, _ in found if conv.groups % 2 == 0})
    return TorchRunner(network)


def cornered_digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits of 32×32 pixels whose class is the colour of a corner, nothing else.

    Returns:
        Pixels `(n, 32, 32, 3)`, and 0 for a red corner of 8×8 pixels, 1 for a green and
        2 for a blue one, 3 for none: each colour has to be seen.
    """
    rng = np.random.default_rng(seed)
    digits = sklearn.datasets.load_digits().images
    chosen = digits[rng.integers(len(digits), size=count)]
    grey = (chosen * 15).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    x = grey[..., None].repeat(3, 3)
    classes = rng.integers(4, size=count)
    x[:, :8, :8] = 0
    x[np.arange(count), :8, :8] = np.eye(4, 3, dtype=np.uint8)[classes][:, None, None] * 220
    return x, classes


def trained_on_corners() -> ResNeXt:
    """A small network that tells the corners apart."""
    torch.manual_seed(0)
    config = ResNeXtConfig(
        (1, 1),
        4,
        8,
        num_stages=2,
        channels=(16, 32),
        num_classes=4,
        small_stem=True,
        stem_channels=16,
    )
    network = ResNeXt(config)
    network.card = Card(
        ("red", "green", "blue", "none"), Preprocessing(32, 32, mean=(0.5,) * 3, std=(0.5,) * 3)
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, weight_decay=5e-3)
    x, classes = cornered_digits(32 * 120, 0)
    images = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1
    for some, targets in zip(images.split(32), torch.from_numpy(classes).split(32), strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(some), targets).backward()
        optimizer.step()
    return network.eval()
