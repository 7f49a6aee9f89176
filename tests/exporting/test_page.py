"""`export --to page`: the network's answers in a browser, without a network.

The tests with a browser need the commands `chromium`, `node` and `npm`, which pip cannot install.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_network
from inference_cases import CONFIG
from PIL import Image

import resnext
import resnext.exporting
from resnext import Card, Preprocessing, ResNeXt
from resnext.data.decoding import FILTERS, convert, pixels, resize_and_crop
from resnext.data.transforms import prepare
from resnext.errors import InputError, ResNeXtError
from resnext.exporting import page as page_module
from resnext.exporting.export import export

CHROMIUM, NODE = shutil.which("chromium"), shutil.which("node")
WORKER = Path(resnext.exporting.__path__[0]) / "page_worker.js"
SIZES = ((200, 400), (290, 370), (380, 340), (470, 310), (560, 280), (40, 30))
LABELS = ("a cat", "Löwe, der", "</script><b>&amp;", "d")

needs_node = pytest.mark.skipif(NODE is None, reason="needs Node.js")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or NODE is None or shutil.which("npm") is None,
    reason="needs Chromium, Node.js and npm",
)


def wave(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with soft and hard edges and noise."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    rng = np.random.default_rng(seed)
    shades = [128 + 90 * np.sin(x / (3 + c) + y / (11 - c) + seed) for c in range(3)]
    values = np.stack(shades, 2) + 25 * rng.standard_normal((height, width, 3))
    values[height // 3 : height // 2, width // 4 : width // 2] = (255, 0, 20 * seed)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@needs_node
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("colour", ["RGB", "BGR", "L"])
def test_pixels_equal_those_of_pillow(interpolation: Any, colour: Any, tmp_path: Path) -> None:
    """Bit for bit, for smaller, larger, long and unchanged pictures; a canvas's are not.

    Pillow 13 resizes the columns of some tall pictures first, which rounds differently.
    """
    channels = 1 if colour == "L" else 3
    for width, height, size, resize in (
        (301, 200, 32, 36),
        (57, 1100, 33, 40),
        (20, 31, 32, 47),
        (36, 36, 31, 36),
        (90, 61, 48, 33),
        (90, 61, 48, 32),
    ):
        rule = Preprocessing(
            size=size,
            resize=resize,
            interpolation=interpolation,
            colour=colour,
            mean=(0.5,) * channels,
            std=(0.5,) * channels,
        )
        image = wave(width, height)
        (tmp_path / "pixels.bin").write_bytes(image.convert("RGBA").tobytes())
        program = (
            f"const fs = require('fs');"
            f"const {{ prepared }} = new Function('self', fs.readFileSync(process.argv[1], 'utf8')"
            f"  + '\\nreturn {{ prepared }};')({{}});"
            f"const data = fs.readFileSync(process.argv[2]);"
            f"const picture = {{ width: {width}, height: {height}, data }};"
            f"process.stdout.write(prepared(picture, {json.dumps(rule.to_dict())}).pixels);"
        )
        command = ["node", "-e", program, str(WORKER), str(tmp_path / "pixels.bin")]
        found = np.frombuffer(
            subprocess.run(command, capture_output=True, check=True).stdout, np.uint8
        )
        image = convert(image, colour)
        wide, high = wanted_size(image, resize)
        image = image.resize((wide, height), FILTERS[interpolation])  # rows first, as before 13.0
        image = image.resize((wide, high), FILTERS[interpolation])
        wanted = pixels(resize_and_crop(image, rule), rule)
        same = np.array_equal(found.reshape(wanted.shape), wanted)
        assert same, (width, height, size, resize)


def wanted_size(image: Image.Image, resize: int) -> tuple[int, int]:
    """Width and height with the shorter side at `resize`."""
    width, height = image.size
    long = int(resize * max(width, height) / min(width, height))
    return (resize, long) if width <= height else (long, resize)


def test_what_is_refused(network: ResNeXt, tmp_path: Path, monkeypatch: Any) -> None:
    """One line that says what to do, and no file."""
    path = tmp_path / "net.html"
    with pytest.raises(
        ResNeXtError, match=r"input of --to page must be one of pixels, not 'images'"
    ):
        export(network, path, to="page", input="images")
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RESNEXT_OFFLINE", "1")
    page_module.runtime.cache_clear()
    with pytest.raises(InputError, match=r"downloads are off.*npm pack onnxruntime-web@.* into"):
        page_module.runtime()
    archive = tmp_path / "cache" / "npm" / "onnxruntime-web-1.30.0.tgz"
    archive.write_bytes(b"another")
    with pytest.raises(InputError, match="is not the published onnxruntime-web"):
        page_module.runtime()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"Node\.js, which is not installed"):
        export(network, path)
    assert not path.exists()


def test_data_in_a_page_cannot_end_a_script() -> None:
    """Neither `</script` nor `<!--`, whatever the weights are."""
    for seed in range(20):
        assert "<" not in page_module.packed(np.random.default_rng(seed).bytes(999 + seed))


@pytest.fixture(scope="module")
def network() -> ResNeXt:
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


@pytest.fixture(scope="module")
def page_file(network: ResNeXt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of it."""
    return export(network, tmp_path_factory.mktemp("page") / "net.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium with a camera that shows a test picture."""
    from playwright import sync_api as playwright

    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream"]
    arguments.append("--use-fake-ui-for-media-stream")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


def opened(browser: Any, file: Path, **options: Any) -> Any:
    """The page, ready; what it requests and complains about is kept."""
    page = browser.new_context(**options).new_page()
    page.errors, page.requests = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(file.as_uri())
    until(page, "document.getElementById('status').textContent === 'Ready'")
    return page


def until(page: Any, condition: str) -> None:
    """Wait for a condition; Playwright's own way needs `eval`, which the page forbids."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{condition} did not come true; {page.inner_text('#status')}")


def give(page: Any, *paths: Path) -> None:
    """Choose files, and wait for the answer to all of them."""
    page.set_input_files("#files", [str(path) for path in paths])
    until(page, f"pictures.length >= {len(paths)}")
    until(page, "queue.then(() => true)")


def saved(folder: Path, suffix: str = ".jpg") -> list[Path]:
    """Files of several sizes."""
    paths = [folder / f"{i}{suffix}" for i in range(len(SIZES))]
    for i, path in enumerate(paths):
        wave(*SIZES[i], i).save(path, quality=92)
    return paths


@pytest.mark.slow
@needs_browser
def test_the_browser_answers_as_the_network_does(
    browser: Any, page_file: Path, network: ResNeXt, tmp_path: Path
) -> None:
    """From JPEG file to logit, and nothing is requested but the page itself."""
    paths = saved(tmp_path)
    turned = Image.Exif()
    turned[0x0112] = 6
    wave(300, 200, 9).save(tmp_path / "turned.jpg", exif=turned, quality=95)
    paths.append(tmp_path / "turned.jpg")
    page = opened(browser, page_file)
    give(page, *paths)
    found = page.evaluate("pictures.map((x) => [...x.answer.probabilities])")
    names = page.eval_on_selector_all("#strip span", "spans => spans.map((x) => x.textContent)")
    wanted = list(resnext.predict(network, paths, top=4))
    assert {x.sure for x in wanted} == {True, False}
    for row, prediction, name in zip(found, wanted, names, strict=True):
        by_label = dict(zip(prediction.labels, prediction.probabilities, strict=True))
        assert row == pytest.approx([by_label[label] for label in LABELS], abs=0.02)
        assert name == (prediction.label if prediction.sure else "Not sure")
    page.wait_for_timeout(200)
    others = [url for url in page.requests if not url.startswith(("blob:", "data:"))]
    assert others == [page_file.as_uri()]
    assert page.errors == []


@pytest.mark.slow
@needs_browser
def test_logits_equal_those_of_onnx_runtime(
    browser: Any, page_file: Path, network: ResNeXt, tmp_path: Path
) -> None:
    """The same graph, from the same pixels; and the maps add up to them."""
    paths = saved(tmp_path, ".png")
    page = opened(browser, page_file)
    give(page, *paths)
    found = np.array(page.evaluate("pictures.map((x) => [...x.answer.logits])"))
    maps = np.array(page.evaluate("pictures.map((x) => [...x.answer.maps])"))
    graph = export(network, tmp_path / "net.onnx", input="pixels", precision="fp16")
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    rule = network.card.preprocessing if network.card else Preprocessing()
    x = np.stack([pixels(resize_and_crop(Image.open(png), rule), rule) for png in paths])
    wanted = np.asarray(session.run(["logits"], {"pixels": x})[0])
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    bias = network.fc.bias.detach().numpy()
    assert (
        np.abs(maps.reshape(*found.shape, -1).mean(2) + bias - found).max()
        < 1e-4 * np.abs(wanted).max()
    )


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_everybody_can_use_it(
    browser: Any, page_file: Path, tmp_path: Path, scheme: str, width: int
) -> None:
    """axe-core finds nothing before, with and after an answer, and nothing is too wide."""
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    options: dict[str, Any] = {"viewport": {"width": width, "height": 800}, "bypass_csp": True}
    page = opened(browser, page_file, color_scheme=scheme, **options)

    def check(state: str) -> None:
        assert axe.run(page).response["violations"] == [], state
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state

    check("empty")
    give(page, *saved(tmp_path))
    check("answers")
    for i in range(len(SIZES)):
        page.click(f"#strip li:nth-child({i + 1}) button")
        page.click("#bars li:nth-child(2) button")
        page.wait_for_selector("#legend:not([hidden])")
        check("map")
    page.click("summary")
    check("about")


@pytest.mark.slow
@needs_browser
def test_drop_paste_camera_and_no_picture(browser: Any, page_file: Path, tmp_path: Path) -> None:
    """Every way in gives an answer; what is no picture gives a line."""
    page = opened(browser, page_file, permissions=["camera"])
    content = io.BytesIO()
    wave(120, 90).save(content, "PNG")
    give_event = """([kind, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, { type: "image/png" }));
      const event = kind === "drop" ? new DragEvent(kind, { dataTransfer: data, bubbles: true })
        : new ClipboardEvent(kind, { clipboardData: data, bubbles: true });
      document.dispatchEvent(event);
    }"""
    for count, kind in enumerate(("drop", "paste"), 1):
        page.evaluate(give_event, [kind, list(content.getvalue())])
        name = "document.getElementById('name').textContent"
        until(page, f"pictures.length === {count} && {name} === '{kind}.png'")
    page.click("#camera")
    until(page, "document.getElementById('name').textContent === 'Camera'")
    page.click("#camera")
    until(page, "pictures.length === 3")
    page.wait_for_selector("#view:not([hidden])")
    assert page.inner_text("#camera") == "Camera"
    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("#files", str(tmp_path / "text.png"))
    page.wait_for_selector("#status.bad")
    assert "text.png is not a picture that this browser can read" in page.inner_text("#status")
    assert page.errors == []


@pytest.mark.slow
@needs_browser
def test_a_page_is_small_and_the_same_each_time(
    network: ResNeXt, page_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """At most 10 MB with a small network; beyond the bound it is refused."""
    assert page_file.stat().st_size < 10e6
    again = export(network, tmp_path / "other.html")
    assert again.read_bytes() == page_file.read_bytes()
    monkeypatch.setattr(page_module, "MOST_BYTES", 4_000_000)
    with pytest.raises(InputError, match="The page would have 5 MB; at most 4 MB"):
        export(network, tmp_path / "large.html")
    assert not (tmp_path / "large.html").exists()
