"""What every test gets, and fixtures that several files share.

Fixtures import torch, this file does not: the process that starts the workers needs none.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

LONGEST = (
    "training/test_distributed.py",
    "training/test_interrupts.py",
    "cli/test_signals.py",
    "exporting/test_export.py",
    "test_docs.py",
    "test_package.py",
    "serving/test_life.py",
)
"""They begin first, so that no core waits for one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files by how long they take; the rest stays as it is."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for each test file, so that no test sees the user's or another file's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache") / "resnext"
        patch.setenv("RESNEXT_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without bf16, so that "auto" chooses the same on every machine."""
    import torch

    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


@pytest.fixture
def browser() -> Iterator[Any]:
    """Headless Chromium; the command `chromium` is the only part that pip cannot install."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs Chromium")
    from playwright import sync_api as playwright

    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RESNEXT_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread: tiny networks wait for a second one longer than they compute."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
