"""How many images an hour the review page lets one decide about: a scripted browser, one key each.

Photographs of 1600×1200 pixels in a list of 10,000 images, which is written after every key. Needs
Chromium and `pip install playwright`.

    python benchmarks/review.py
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from resnext.review.cases import Case
from resnext.review.decisions import Entry, LabelList
from resnext.review.server import ReviewServer
from resnext.review.session import Session
from resnext.system.cpu import cpu_name

SHOWN, LISTED = 100, 10_000
SHOWS_NEXT = (
    "before => document.getElementById('count').textContent !== before && "
    "[...document.querySelectorAll('.frame img')].every((x) => x.complete && x.naturalWidth)"
)


def main() -> None:
    """Write photographs, open the page, press a key for each, and print the speed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(SHOWN):
            values = np.random.default_rng(i).integers(0, 255, (60, 80, 3)).astype(np.uint8)
            Image.fromarray(values).resize((1600, 1200)).save(folder / f"{i}.jpg")
        entries = [Entry(str(folder / f"{i}.jpg"), "cat") for i in range(LISTED)]
        cases = [Case("doubt", (e.path,), "score 0.98", "dog") for e in entries[:SHOWN]]
        labels = LabelList(folder / "labels.csv", entries)
        server = ReviewServer(Session("photos", cases, labels, ("cat", "dog")))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seconds = drive(server.url)
        server.shutdown()
        assert sum(e.decision != "" for e in LabelList(labels.file, []).entries) == SHOWN
    each = statistics.fmean(seconds)
    print(
        f"{cpu_name()}: {3600 / each:,.0f} images an hour; from a key to the next image, "
        f"{1000 * each:.0f} ms on average, {1000 * max(seconds):.0f} ms at most"
    )


def drive(url: str) -> list[float]:
    """Seconds from each key until the next image is shown."""
    seconds: list[float] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page: Any = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(url)
        page.wait_for_selector(".frame img")
        for i in range(SHOWN):
            before, began = page.inner_text("#count"), time.perf_counter()
            page.keyboard.press("k" if i % 2 else "Enter")
            page.wait_for_function(SHOWS_NEXT, arg=before)
            seconds.append(time.perf_counter() - began)
        browser.close()
    return seconds


if __name__ == "__main__":
    main()
