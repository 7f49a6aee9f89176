"""Networks, images, folders and commands that many tests need."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.originals import randomize
from PIL import Image

import resnext
from resnext import Card, ResNeXt, ResNeXtConfig
from resnext.cli.app import main


def tiny_network(
    config: ResNeXtConfig | None = None, card: Card | None = None, seed: int = 0
) -> ResNeXt:
    """A small network in evaluation mode whose weights and statistics are all random.

    So it answers differently to different images, unlike a network as it is initialized.
    """
    if config is None:
        labels = len(card.labels) if card and card.labels else 4
        config = ResNeXtConfig(
            (1, 1), 4, 16, num_stages=2, channels=(16, 32), num_classes=labels, small_stem=True
        )
    torch.manual_seed(seed)
    network = ResNeXt(config)
    randomize(network)
    network.card = card
    return network.eval()


def photo_folder(
    folder: Path, classes: Sequence[str] = ("cat", "dog"), count: int = 12, size: int = 24
) -> Path:
    """Class folders of small JPEGs, each class noise of a colour of its own."""
    rng = np.random.default_rng(0)
    for i, label in enumerate(classes):
        (folder / label).mkdir(parents=True)
        for j in range(count):
            values = rng.integers(0, 120, (size, size + 4, 3), dtype=np.uint8)
            values[..., i % 3] += 100
            Image.fromarray(values).save(folder / label / f"{j:03}.jpg")
    return folder


def assert_readable(browser: Any, page: Path, scheme: str, width: int) -> None:
    """axe-core finds nothing on a page in Chromium, and it is not wider than the window."""
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    size = {"width": width, "height": 800}
    opened = browser.new_context(viewport=size, color_scheme=scheme).new_page()
    opened.goto(page.as_uri())
    assert axe.run(opened).response["violations"] == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def agree(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to a part of the largest number, on shape too."""
    assert got.shape == wanted.shape
    if wanted.numel():
        difference = (got.double() - wanted.double()).abs().max()
        assert difference <= tolerance * wanted.double().abs().max()


def run_cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    monkeypatch.setattr(sys, "argv", ["resnext", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    out, err = capsys.readouterr()
    return code, out, err


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for another process or thread; the bound only ends a test that would hang."""
    for _ in range(30_000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("waited for five minutes")


def made(name: str, packages: Sequence[str], make: Callable[[Path], None]) -> Path:
    """A folder beside the environment of the tests, made once and kept."""
    folder = Path(sys.prefix) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        note, wanted = folder / "made", "\n".join(packages)
        if not note.is_file() or note.read_text() != wanted:
            make(folder)
            note.write_text(wanted)
    return folder


def environment(name: str, packages: Sequence[str]) -> Path:
    """The commands of an environment with the packages of the tests and some more.

    Args:
        name: Its name.
        packages: What `pip` installs, without dependencies.
    """

    def install(folder: Path) -> None:
        venv.create(folder / "venv", with_pip=True, clear=True)
        command = [folder / "venv/bin/python", "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*command, *packages], check=True)
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        source = Path(resnext.__file__).parents[1]
        paths = [source, *(path for path in sys.path if Path(path).is_dir())]
        (site / "tests.pth").write_text("\n".join(map(str, paths)))

    return made(name, packages, install) / "venv/bin"
