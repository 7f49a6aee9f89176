"""Pictures in a page: whatever the file, it shows the network the pixels that the library reads."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_images
from page_cases import needs_browser, opened, until, wave
from PIL import Image

from resnext import Preprocessing
from resnext.data.decoding import decode_image, resize_and_crop
from resnext.errors import DataError

pytestmark = [pytest.mark.slow, needs_browser]
READ = {"cmyk.jpg", ".webp", ".bmp", ".png", "16 bits", "1 bit", "RGBA", "LA"}
READ |= {"palette, one transparent", "palette, transparency in bytes"}


@pytest.fixture(scope="module")
def page(browser: Any, page_file: Path) -> Any:
    """One page for all pictures."""
    return opened(browser, page_file)


def read(page: Any, content: bytes) -> np.ndarray:
    """The pixels of a file in the page, without alpha."""
    width, height, values = page.evaluate(
        """async (text) => {
          const source = new Blob([Uint8Array.from(atob(text), (x) => x.charCodeAt(0))]);
          const { width, height, data } = await pixelsOf(await decoded(source), source);
          const bytes = Array.from(data, (x) => String.fromCharCode(x)).join("");
          return [width, height, btoa(bytes)];
        }""",
        base64.b64encode(content).decode(),
    )
    pixels = np.frombuffer(base64.b64decode(values), np.uint8)
    return pixels.reshape(height, width, 4)[..., :3]


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def difference(page: Any, content: bytes) -> int:
    """The largest difference to the library's pixels, in levels."""
    wanted = np.asarray(decode_image(content, "it", "RGB"))
    found = read(page, content)
    assert found.shape == wanted.shape
    return int(np.abs(found.astype(int) - wanted).max())


@pytest.mark.parametrize("kind", sorted(READ))
def test_every_kind_of_pixels(page: Any, kind: str) -> None:
    """A canvas forgets the colours under transparent pixels, which the network sees."""
    image, ending, _ = sample_images.KINDS[kind]
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 100}}.get(ending, {})
    content = stored(image, Image.registered_extensions()[ending], **options)
    assert difference(page, content) <= (2 if ending == ".jpg" else 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_pixels(page: Any, kind: str) -> None:
    """Of every transparency."""
    pixels = np.asarray(wave(64, 48).convert("RGBA")).copy()
    pixels[..., 3] = np.arange(64) * 4
    options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert difference(page, stored(Image.fromarray(pixels), kind, **options)) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(page: Any, orientation: int) -> None:
    """Each orientation of EXIF."""
    exif = Image.Exif()
    exif[sample_images.ORIENTATION] = orientation
    for kind in ("JPEG", "PNG"):  # Chromium does not turn WebP
        assert difference(page, stored(wave(40, 24), kind, exif=exif, quality=95)) <= 2, kind


def test_photographs(page: Any) -> None:
    """JPEG of every subsampling, progressive, grey, with a colour profile; the first of frames."""
    from PIL import ImageCms
    from sklearn.datasets import load_sample_images

    photo = Image.fromarray(load_sample_images().images[0][:300, :400])
    for subsampling in range(3):
        for quality in (30, 92):
            content = stored(photo, "JPEG", quality=quality, subsampling=subsampling)
            assert difference(page, content) <= 2, (subsampling, quality)
    assert difference(page, stored(photo, "JPEG", progressive=True)) <= 2
    assert difference(page, stored(photo.convert("L"), "JPEG")) <= 1
    assert difference(page, stored(photo.convert("CMYK"), "JPEG", quality=95)) <= 3
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert difference(page, stored(photo, "PNG", icc_profile=profile)) == 0
    grey = np.asarray(photo.convert("L")).astype(np.uint16) * 257 - 100
    assert difference(page, stored(Image.fromarray(grey), "PNG")) <= 1
    frames = [wave(50, 40, i).quantize() for i in range(3)]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    assert difference(page, stored(frames[0], "GIF", **options)) == 0
    assert difference(page, stored(frames[0].convert("RGB"), "PNG", **options)) == 0


def test_large_and_long(page: Any) -> None:
    """Larger than a browser's canvas may be, which would silently be black."""
    for width, height in ((70_000, 3), (2, 40_000), (5000, 4100)):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = np.arange(width) % 251
        pixels[..., 1] = (np.arange(height) % 241)[:, None]
        content = stored(Image.fromarray(pixels), "PNG", compress_level=1)
        encoded = base64.b64encode(content).decode()
        sums = page.evaluate(
            """async (text) => {
              const source = new Blob([Uint8Array.from(atob(text), (x) => x.charCodeAt(0))]);
              const { data } = await pixelsOf(await decoded(source), source);
              let red = 0, green = 0;
              for (let i = 0; i < data.length; i += 4) { red += data[i]; green += data[i + 1]; }
              return [red, green];
            }""",
            encoded,
        )
        assert sums == pixels[..., :2].sum((0, 1), dtype=np.int64).tolist()


def test_a_hundred_megapixels(page: Any, tmp_path: Path) -> None:
    """An answer; only beyond the library's own bound a refusal."""
    count = page.evaluate("pictures.length")
    Image.new("L", (10_000, 10_000), 90).save(tmp_path / "large.jpg", quality=30)
    page.set_input_files("#files", str(tmp_path / "large.jpg"))
    until(page, f"pictures.length === {count + 1} || document.querySelector('#status.bad')")
    assert page.inner_text("#status") == ""
    assert page.evaluate("document.getElementById('name').textContent") == "large.jpg"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "a.pdf",
            b"%PDF-1.7\n%\xe2\xe3",
            "a.pdf is a PDF document. Use a JPEG, PNG or WebP file.",
        ),
        ("a.svg", b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "an HEIC photo, which this browser"),
        ("a.jxl", b"\xff\x0a\0\0", "a JPEG XL picture, which this browser"),
        ("a.tif", sample_images.encoded(".tif"), "a TIFF picture, which this browser"),
        ("a.mp4", b"\0\0\0\x18ftypisom\0\0\0\0", "is a video"),
        ("a.jpg", sample_images.encoded(".jpg")[:300], "is damaged"),
        ("a.png", sample_images.encoded(".png")[:300], "is damaged"),
        ("a.txt", b"hello", "is not a picture"),
        ("empty.jpg", b"", "is empty"),
        ("long.png", stored(Image.new("L", (1, 60_000)), "PNG"), "1 × 60000 pixels, which is too"),
        ("bomb.png", sample_images.png_that_claims(20_000, 20_000), "bomb.png"),
    ],
    ids=lambda x: x if isinstance(x, str) and len(x) < 10 else "",
)
def test_what_is_no_picture(
    page: Any, tmp_path: Path, name: str, content: bytes, line: str
) -> None:
    """One line that says what came and what to do, where the library refuses too."""
    if name != "a.tif":
        with pytest.raises(DataError):
            resize_and_crop(decode_image(content, name, "RGB"), Preprocessing(size=64, resize=72))
    (tmp_path / name).write_bytes(content)
    before = page.evaluate("pictures.length")
    page.set_input_files("#files", str(tmp_path / name))
    until(page, "queue.then(() => true)")
    said = page.inner_text("#status")
    assert line in said
    assert said.count(". ") == 1
    assert page.evaluate("pictures.length") == before


def test_some_of_several(page: Any, tmp_path: Path) -> None:
    """The others are answered, and the first that is not is named with the count."""
    names = ["a.txt", "b.png", "c.txt"]
    for name in names:
        if name.endswith("png"):
            wave(50, 40).save(tmp_path / name)
        else:
            (tmp_path / name).write_text("hello")
    before = page.evaluate("pictures.length")
    page.set_input_files("#files", [str(tmp_path / name) for name in names])
    until(page, "queue.then(() => true)")
    assert page.evaluate("pictures.length") == before + 1
    wanted = "a.txt is not a picture. Use a JPEG, PNG or WebP file. 2 of 3 files have no answer."
    assert page.inner_text("#status") == wanted
