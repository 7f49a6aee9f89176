"""A page in headless Chromium: its size, seconds to the first answer, milliseconds an image.

    python benchmarks/page.py --model resnext_nano --size 160

The weights are random: other weights take as long. The photograph is one of scikit-learn's, 640
pixels wide. Needs Chromium, Node.js and npm. Run alone on the machine.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from sklearn.datasets import load_sample_images

import resnext
from resnext import Card, Preprocessing
from resnext.system.cpu import available_cores, cpu_name

EACH = """async (count) => {
  const { source } = pictures[0], times = [];
  for (let i = 0; i < count; i++) {
    const start = performance.now();
    await answered(await pixelsOf(await decoded(source), source));
    times.push(performance.now() - start);
  }
  return times;
}"""


def main() -> None:
    """Write pages of random weights, open them, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnext_nano")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=30)
    given = parser.parse_args()
    network = resnext.create(given.model, num_classes=given.classes)
    labels = tuple(f"class {i}" for i in range(given.classes))
    network.card = Card(labels, Preprocessing(size=given.size, resize=given.size * 9 // 8))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = resnext.export(network, Path(folder) / "page.html")
        photo = Path(folder) / "photo.jpg"
        Image.fromarray(load_sample_images().images[0]).save(photo, quality=92)
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        first, each = [], []
        for _ in range(given.rounds):
            page = browser.new_context().new_page()
            began = time.perf_counter()
            page.goto(path.as_uri())
            page.set_input_files("#files", str(photo))
            page.wait_for_selector("#label:not(:empty)")
            first.append(time.perf_counter() - began)
            each += page.evaluate(EACH, given.images)
            page.context.close()
        print(f"{cpu_name()}, {available_cores()} cores, Chromium {browser.version}, headless")
        print(f"{given.model}, {given.size} pixels: page of {path.stat().st_size / 1e6:.1f} MB")
        print(f"from opening to the first answer: {spread(first)} s")
        print(f"each image after that, from JPEG file to answer: {spread(each)} ms")
        browser.close()


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main()
