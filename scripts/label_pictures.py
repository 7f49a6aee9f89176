"""Makes the pictures of docs/labels.md from real data; some minutes on one core.

Of 3,000 images of Fashion-MNIST, 5 % get a random other class. A small network is trained on them,
and the pages that show its doubts are photographed. Needs Chromium and `pip install playwright`.

    python scripts/label_pictures.py /usr/share/datasets/fashion-mnist
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

import resnext
from resnext.card import card_of
from resnext.data import open_splits
from resnext.inference import open_runner
from resnext.neighbours import open_index
from resnext.review.cases import (
    ask,
    find_cases,
    map_of,
    open_collection,
    similar_images,
    unlike_all,
)
from resnext.review.decisions import Entry, LabelList
from resnext.review.server import ReviewServer
from resnext.review.session import Session
from resnext.system.progress import SilentReporter

DOCS = (Path(__file__).parent.parent / "docs").absolute()
IMAGES, FLIPPED, EPOCHS = 3_000, 0.05, 12


def main() -> None:
    """Write the images, train, open the review, and photograph it."""
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        flipped = write_images(Path(sys.argv[1]))
        resnext.train("clothes", "resnext_nano_32px", out="clothes.safetensors", epochs=EPOCHS)
        server = open_review()
        doubts = [case for case in server.session.cases if case.kind == "doubt"]
        found = sum(Path(case.paths[0]).name in flipped for case in doubts)
        print(f"{len(doubts)} doubts, {found} of {len(flipped)} flipped labels among them")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            photograph(server.url)
        finally:
            server.shutdown()


def write_images(data: Path) -> set[str]:
    """Class folders, and the names of the images whose class is wrong."""
    train, rng, flipped = open_splits(data).train, np.random.default_rng(0), set()
    for i in rng.permutation(len(train))[:IMAGES].tolist():
        target = train.targets[i]
        if rng.random() < FLIPPED:
            target = (target + int(rng.integers(1, 10))) % 10
            flipped.add(f"{i:05}.png")
        folder = Path("clothes", train.labels[target].replace("/", " or "))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(train.images[i])).save(folder / f"{i:05}.png")
    return flipped


def open_review() -> ReviewServer:
    """The server of `resnext review clothes --model clothes.safetensors --map`."""
    runner = open_runner("clothes.safetensors")
    card = card_of(runner)
    collection = open_collection("clothes", card.labels)
    labels = LabelList(Path("labels.csv"), [Entry(p, c, s) for p, s, c in collection.classes()])
    answers = ask(runner, collection.paths, SilentReporter())
    now = {path: labels[path].label for path in collection.paths}
    index = open_index("clothes.safetensors", runner=runner)
    cases = find_cases(
        collection,
        answers,
        now,
        threshold=card.threshold,
        doubts=Path("clothes.run", "label_doubts.csv"),
        progress=SilentReporter(),
        unknown=unlike_all(collection, answers, index.unknown_score(card)),
    )
    points = map_of(collection, answers, labels)
    similar = similar_images(collection, answers, now, index)
    return ReviewServer(Session("clothes", cases, labels, card.labels, points, similar))


def photograph(url: str) -> None:
    """The review and the map, as 1,100 pixels show them."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for scheme in ("light", "dark"):
            page: Any = browser.new_page(
                viewport={"width": 1100, "height": 870}, color_scheme=scheme
            )
            page.goto(url)
            page.wait_for_selector(".frame img")
            page.wait_for_load_state("networkidle")
            shoot(page, f"labels-review-{scheme}.png")
        page.goto(f"{url}map")
        page.wait_for_selector("#map li")
        page.emulate_media(color_scheme="light")
        page.wait_for_timeout(500)
        shoot(page, "labels-map.png")
        browser.close()


def shoot(page: Any, name: str) -> None:
    """Write a picture."""
    page.screenshot(path=name)
    Image.open(name).convert("RGB").save(DOCS / name, optimize=True)
    print(name, (DOCS / name).stat().st_size)


if __name__ == "__main__":
    main()
