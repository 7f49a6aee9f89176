"""A page that is a folder: any static server, and offline after the first visit."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from page_cases import give, needs_browser, opened, saved, started, until

import resnext
from resnext import ResNeXt
from resnext.errors import CheckpointError, InputError
from resnext.exporting import page as page_module
from resnext.exporting.export import export

pytestmark = [pytest.mark.slow, needs_browser]


class Quiet(SimpleHTTPRequestHandler):
    """Python's static server, without its log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def root(page_network: ResNeXt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a server, with the page in a folder of it."""
    root = tmp_path_factory.mktemp("root")
    assert export(page_network, root / "pets", to="page") == root / "pets"
    return root


@pytest.fixture
def server(root: Path) -> Iterator[ThreadingHTTPServer]:
    """A plain static server."""
    handler = functools.partial(Quiet, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_offline_after_the_first_visit(
    browser: Any, server: ThreadingHTTPServer, page_network: ResNeXt, tmp_path: Path
) -> None:
    """The server is gone, and the page answers; nothing but its own files was ever asked for."""
    address = f"http://127.0.0.1:{server.server_port}/pets/"
    page = opened(browser, address)
    assert page.errors == []
    server.shutdown()
    server.server_close()
    for again in (address, f"{address}index.html"):
        page.goto(again)
        until(page, "document.getElementById('status').textContent === 'Ready'")
    paths = saved(tmp_path)
    give(page, *paths)
    found = page.evaluate("pictures.map((x) => [...x.answer.probabilities])")
    for row, wanted in zip(found, resnext.predict(page_network, paths, top=4), strict=True):
        assert sorted(row) == pytest.approx(sorted(wanted.probabilities), abs=0.02)
    own = [url for url in page.requests if url.startswith(address)]
    assert {url.removeprefix(address) for url in own} <= {"", "index.html", *page_module.FILES}
    others = [url for url in page.requests if not url.startswith((address, "blob:", "data:"))]
    assert (others, page.errors) == ([], [])


def test_a_new_version_replaces_the_old_one(
    browser: Any, server: ThreadingHTTPServer, root: Path, page_network: ResNeXt
) -> None:
    """Files of two versions are never mixed: the new one is used when the old one is closed."""
    address = f"http://127.0.0.1:{server.server_port}/pets/"
    page = opened(browser, address)
    before = page.evaluate("caches.keys()")
    page_network.card, card = None, page_network.card
    try:
        page_network.card = card and type(card).from_dict({**card.to_dict(), "licence": "MIT"})
        export(page_network, root / "pets", to="page", overwrite=True)
    finally:
        page_network.card = card
    page.goto(address)
    until(page, "document.getElementById('status').textContent === 'Ready'")
    assert "not stated" in page.text_content("footer")
    until(page, "caches.keys().then((names) => names.length === 2)")
    until(page, "navigator.serviceWorker.getRegistration().then((x) => Boolean(x.waiting))")
    context = page.context
    page.close()
    page = context.new_page()
    page.goto(address)
    until(page, "caches.keys().then((names) => names.length === 1)")
    page.goto(address)
    until(page, "document.getElementById('status').textContent === 'Ready'")
    assert "Licence of the network: MIT" in page.text_content("footer")
    assert page.evaluate("caches.keys()") != before


def test_from_a_file_it_says_what_to_do(browser: Any, root: Path) -> None:
    """A browser reads no other file there."""
    page = started(browser, root / "pets" / "index.html")
    page.wait_for_selector("#status.bad")
    wanted = "it is a folder for a web server. In it, run python -m http.server"
    assert wanted in page.inner_text("#status")


def test_a_missing_file_is_named(browser: Any, server: ThreadingHTTPServer, root: Path) -> None:
    """It was not uploaded, for example."""
    (root / "other").mkdir()
    (root / "other" / "index.html").write_bytes((root / "pets" / "index.html").read_bytes())
    page = started(browser, f"http://127.0.0.1:{server.server_port}/other/")
    page.wait_for_selector("#status.bad")
    assert "is missing on the server" in page.inner_text("#status")


def test_only_large_pages_are_folders(
    page_network: ResNeXt, root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """If no name is given; and the same model gives the same bytes."""
    with pytest.raises(CheckpointError, match=r"index\.html exists.*--overwrite"):
        export(page_network, root / "pets", to="page")
    with pytest.raises(InputError, match=r"the suffix must be one of .* may also be a folder"):
        export(page_network, tmp_path / "pets.page", to="page")
    with pytest.raises(InputError, match="A network in memory has no name"):
        export(page_network, to="page")
    monkeypatch.chdir(tmp_path)
    resnext.save(page_network, "pets.safetensors")
    assert resnext.export("pets.safetensors", to="page") == Path("pets.html")
    monkeypatch.setattr("resnext.exporting.targets.MOST_BYTES", 4_000_000)
    assert resnext.export("pets.safetensors", to="page") == Path("pets-page")
    names = {"index.html", "sw.js", *page_module.FILES}
    assert {path.name for path in Path("pets-page").iterdir()} == names
    (tmp_path / "again").mkdir()
    export("pets.safetensors", "again", to="page")
    for name in names:
        assert Path("again", name).read_bytes() == Path("pets-page", name).read_bytes()
