"""A page, its network and a browser, for all tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_network
from inference_cases import CONFIG
from page_cases import CHROMIUM, LABELS, SIZES, wave

from resnext import Card, Preprocessing, ResNeXt
from resnext.data.transforms import prepare
from resnext.exporting.export import export


@pytest.fixture(scope="session")
def page_network() -> ResNeXt:
    """A network that sees differences between pictures, and is sure of half of them."""
    card = Card(LABELS, Preprocessing(size=64, resize=72), temperature=1.3)
    network = tiny_network(replace(CONFIG, num_classes=4), card).eval()
    images = [prepare(wave(*size, i), card.preprocessing) for i, size in enumerate(SIZES)]
    with torch.no_grad():
        logits = network(torch.stack(images))
        scale = 2 / logits.std(0)
        network.fc.weight.mul_(scale[:, None])
        network.fc.bias.sub_(logits.mean(0)).mul_(scale)
        sure = ((logits - logits.mean(0)) * scale / card.temperature).softmax(1).amax(1)
    network.card = replace(card, threshold=float(sure.median()) + 0.01)
    return network


@pytest.fixture(scope="session")
def page_file(page_network: ResNeXt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of it."""
    return export(page_network, tmp_path_factory.mktemp("page") / "net.html")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium with a camera that shows a test picture to pages that may use it."""
    from playwright import sync_api as playwright

    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream"]
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()
