"""`export --to page`: the network's answers in a browser, without a network.

The tests with a browser need the commands `chromium`, `node` and `npm`, which pip cannot install.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_cases import (
    LABELS,
    SIZES,
    WORKER,
    check_usable,
    give,
    needs_browser,
    needs_node,
    opened,
    saved,
    until,
    wave,
)
from PIL import Image

import resnext
from resnext import Preprocessing, ResNeXt
from resnext.data.decoding import FILTERS, convert, pixels, resize_and_crop
from resnext.errors import InputError, ResNeXtError
from resnext.exporting import page as page_module
from resnext.exporting.export import export


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


def test_what_is_refused(page_network: ResNeXt, tmp_path: Path, monkeypatch: Any) -> None:
    """One line that says what to do, and no file."""
    path = tmp_path / "net.html"
    with pytest.raises(
        ResNeXtError, match=r"input of --to page must be one of pixels, not 'images'"
    ):
        export(page_network, path, to="page", input="images")
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
        export(page_network, path)
    assert not path.exists()


def test_data_in_a_page_cannot_end_a_script() -> None:
    """Neither `</script` nor `<!--`, whatever the weights are; and nothing is lost."""
    for seed in range(20):
        content = np.random.default_rng(seed).bytes(999 + seed)
        text = page_module.packed(content)
        assert "<" not in text
        assert gzip.decompress(base64.b85decode(text.replace(",", "<"))) == content


@pytest.mark.slow
@needs_browser
def test_the_browser_answers_as_the_network_does(
    browser: Any, page_file: Path, page_network: ResNeXt, tmp_path: Path
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
    wanted = list(resnext.predict(page_network, paths, top=4))
    assert {x.sure for x in wanted} == {True, False}
    for row, prediction, name in zip(found, wanted, names, strict=True):
        by_label = dict(zip(prediction.labels, prediction.probabilities, strict=True))
        assert row == pytest.approx([by_label[label] for label in LABELS], abs=0.02)
        assert name == (prediction.label if prediction.sure else "Not sure")
    page.wait_for_load_state("networkidle")
    others = [url for url in page.requests if not url.startswith(("blob:", "data:"))]
    assert others == [page_file.as_uri()]
    assert page.errors == []


@pytest.mark.slow
@needs_browser
def test_logits_equal_those_of_onnx_runtime(
    browser: Any, page_file: Path, page_network: ResNeXt, tmp_path: Path
) -> None:
    """The same graph, from the same pixels; and the maps add up to them."""
    paths = saved(tmp_path, ".png")
    page = opened(browser, page_file)
    give(page, *paths)
    found = np.array(page.evaluate("pictures.map((x) => [...x.answer.logits])"))
    maps = np.array(page.evaluate("pictures.map((x) => [...x.answer.maps])"))
    graph = export(page_network, tmp_path / "net.onnx", input="pixels", precision="fp16")
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    rule = page_network.card.preprocessing if page_network.card else Preprocessing()
    x = np.stack([pixels(resize_and_crop(Image.open(png), rule), rule) for png in paths])
    wanted = np.asarray(session.run(["logits"], {"pixels": x})[0])
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    bias = page_network.fc.bias.detach().numpy()
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
    """axe-core finds nothing in any state, and nothing is too wide."""
    options: dict[str, Any] = {"viewport": {"width": width, "height": 800}, "bypass_csp": True}
    page = opened(browser, page_file, color_scheme=scheme, **options)
    check_usable(page, "empty")
    (first, *others) = saved(tmp_path)
    give(page, first)
    check_usable(page, "one answer")
    give(page, *others)
    for i in range(len(SIZES)):
        page.click(f"#strip li:nth-child({i + 1}) button")
        page.click("#bars li:nth-child(2) button")
        page.wait_for_selector("#legend:not([hidden])")
        check_usable(page, f"{page.inner_text('#label')}, with map")
    page.click("summary")
    check_usable(page, "about")
    (tmp_path / "a.txt").write_text("hello")
    page.set_input_files("#files", str(tmp_path / "a.txt"))
    page.wait_for_selector("#status.bad")
    check_usable(page, "no picture")
    page.click("#camera")
    until(page, "document.getElementById('status').textContent.includes('give this page')")
    check_usable(page, "no camera")
    page = opened(browser, page_file, color_scheme=scheme, permissions=["camera"], **options)
    page.click("#camera")
    until(page, "document.getElementById('name').textContent === 'Camera'")
    check_usable(page, "camera")


@pytest.mark.slow
@needs_browser
def test_drop_paste_camera_and_no_picture(browser: Any, page_file: Path, tmp_path: Path) -> None:
    """Every way in gives an answer; what is not a picture gives a line."""
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
    text = """(kind) => {
      const data = new DataTransfer();
      data.setData("text/plain", "hello");
      document.dispatchEvent(kind === "drop" ? new DragEvent(kind, { dataTransfer: data })
        : new ClipboardEvent(kind, { clipboardData: data }));
    }"""
    for kind in ("drop", "paste"):
        page.evaluate(text, kind)
        wanted = "This contains no picture file. Use a JPEG, PNG or WebP file."
        assert page.inner_text("#status") == wanted
        page.evaluate("say('')")
    page.click("#camera")
    until(page, "document.getElementById('name').textContent === 'Camera'")
    page.click("#camera")
    until(page, "pictures.length === 3")
    page.wait_for_selector("#view:not([hidden])")
    assert page.inner_text("#camera") == "Camera"
    assert page.errors == []


@pytest.mark.slow
@needs_browser
def test_by_keyboard(browser: Any, page_file: Path, tmp_path: Path) -> None:
    """Tab reaches everything in order, Enter and Space use it, arrows go through the pictures."""
    page = opened(browser, page_file)
    give(page, *saved(tmp_path))
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached[:2] == ["choose", "camera"]
    assert reached[2:] == [*["BUTTON"] * 4, "why", *["BUTTON"] * 6, "SUMMARY"]
    name = "document.getElementById('name').textContent"
    for key, wanted in (("Right", "1.jpg"), ("Right", "2.jpg"), ("Left", "1.jpg")):
        page.keyboard.press(f"Arrow{key}")
        until(page, f"{name} === '{wanted}'")
    page.focus("#why")
    page.keyboard.press("Space")
    page.wait_for_selector("#legend:not([hidden])")
    page.focus("#bars li:nth-child(3) button")
    page.keyboard.press("Enter")
    label = page.inner_text("#bars li:nth-child(3) span")
    until(page, f"document.querySelector('#legend b').textContent === {json.dumps(label)}")
    assert page.get_attribute("#bars li:nth-child(3) button", "aria-pressed") == "true"
    assert page.evaluate("document.activeElement.textContent").startswith(label)


@pytest.mark.slow
@needs_browser
def test_a_page_is_small_and_the_same_each_time(
    page_network: ResNeXt, page_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """At most 10 MB with a small network; beyond the bound it is refused."""
    assert page_file.stat().st_size < 10e6
    again = export(page_network, tmp_path / "other.html")
    assert again.read_bytes() == page_file.read_bytes()
    monkeypatch.setattr(page_module, "MOST_BYTES", 4_000_000)
    with pytest.raises(InputError, match=r"have 5 MB; .* at most 4 MB well.*--out large-page"):
        export(page_network, tmp_path / "large.html")
    assert not (tmp_path / "large.html").exists()
