"""The page at `/`, in a real browser, against a server whose answers are set here.

The tests need the command `chromium`, which pip cannot install.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_network, wait_until
from inference_cases import CONFIG
from page_cases import until
from PIL import Image

import resnext
from resnext import Card, Preprocessing

pytest.importorskip("starlette")
uvicorn: Any = pytest.importorskip("uvicorn")
from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import JSONResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from resnext.pages.template import read_template  # noqa: E402
from resnext.serving.pages import content_policy, page_routes  # noqa: E402

CHROMIUM = shutil.which("chromium")
LABELS = ["a cat", "Löwe, der", "</script><b>&amp;", "d", "e", "a very long name of a class " * 3]
SIDES = {"sure": 300, "unsure": 310, "unknown": 320, "damaged": 330, "busy": 340, "large": 350}
"""What the server answers depends on the width of the picture."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


def picture(kind: str, height: int = 200) -> bytes:
    """A picture that gets the answer of this kind."""
    y, x = np.mgrid[:height, : SIDES[kind]]
    shades = [128 + 90 * np.sin(x / (13 + 9 * c) + y / (21 - 5 * c) + height) for c in range(3)]
    file = io.BytesIO()
    Image.fromarray(np.stack(shades, 2).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


class FakeServer:
    """Answers as `resnext serve` does, and counts what it is asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.tokens: list[str | None] = []
        self.token: str | None = None
        self.refusals = 0
        routes = [
            *page_routes(),
            Route("/v1/model", self.model),
            Route("/v1/predict", self.predict, methods=["POST"]),
            Route("/v1/explain", self.explain, methods=["POST"]),
        ]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options: dict[str, Any] = {"log_level": "error", "lifespan": "off"}
        config = uvicorn.Config(Starlette(routes=routes), port=port, **options)
        self._server: Any = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started)
        self.address = f"http://127.0.0.1:{port}/"

    def stop(self) -> None:
        """End, with all connections."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    def refused(self, request: Request) -> JSONResponse | None:
        """401 without the token."""
        given = request.headers.get("authorization")
        if self.token is None or given == f"Bearer {self.token}":
            return None
        return problem(401, "This server needs a token.")

    async def model(self, request: Request) -> JSONResponse:
        """What the page shows about the model."""
        if refusal := self.refused(request):
            return refusal
        more = {"threshold": 0.6, "engine": "fake", "neighbours": True, "explain": True}
        return JSONResponse({"name": "cats", "version": "abc", "labels": LABELS, **more})

    async def predict(self, request: Request) -> JSONResponse:
        """An answer by the width of the picture."""
        body = await request.body()
        if refusal := self.refused(request):
            return refusal
        try:
            width = Image.open(io.BytesIO(body)).width
        except OSError:
            return problem(422, "The body is not a readable image.")
        kind = next((kind for kind, side in SIDES.items() if side == width), "sure")
        self.calls.append(f"{kind} {request.headers['content-type']} {request.url.query}")
        if kind == "busy" and self.refusals < 2:
            self.refusals += 1
            return problem(429, "The server is full.", {"Retry-After": "1"})
        if kind == "large" and request.headers["content-type"] == "image/png":
            return problem(413, "The body is larger than 20 MB.")
        if kind == "damaged":
            error = {"type": "urn:resnext:damaged-image", "title": "…", "status": 422}
            results = [{"error": {**error, "detail": "The image is truncated."}}]
            return JSONResponse({"model": {}, "results": results}, 422)
        p = 0.52 if kind == "unsure" else 0.973
        top = [{"label": label, "probability": p / 3**i} for i, label in enumerate(LABELS[:5])]
        answer = {"label": LABELS[0], "probability": p, "unsure": kind == "unsure", "top": top}
        answer["unknown"] = kind == "unknown"
        if kind == "sure":
            jpeg = io.BytesIO()
            Image.open(io.BytesIO(body)).convert("RGB").resize((96, 64)).save(jpeg, "JPEG")
            one = {"distance": 0.1, "jpeg": base64.b64encode(jpeg.getvalue()).decode()}
            answer["neighbours"] = [{"label": label, **one} for label in (LABELS[0], LABELS[5])]
        return JSONResponse({"model": {"name": "cats", "version": "abc"}, "results": [answer]})

    async def explain(self, request: Request) -> JSONResponse:
        """A map with both signs."""
        if refusal := self.refused(request):
            return refusal
        self.calls.append(f"explain {request.url.query}")
        query = request.query_params
        rng = np.random.default_rng(len(request.url.query))
        values = rng.standard_normal((7, 7)).cumsum(0).tolist()
        more = {"logit": 3.2, "size": [7, 7], "crop": [0.1, 0, 0.9, 1.0], "completeness": 1e-7}
        more |= {"score": 3.2, "bias": 0.4}
        labels = {"label": query["class"], "against": query.get("against")}
        return JSONResponse({**labels, "values": values, **more})


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as the server writes it."""
    content = {"type": "about:blank", "title": "…", "status": status, "detail": detail}
    return JSONResponse(content, status, headers, media_type="application/problem+json")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server on a free port."""
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Headless Chromium with a camera that shows a test picture."""
    from playwright import sync_api as playwright

    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream"]
    arguments.append("--use-fake-ui-for-media-stream")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


def opened(chromium: Any, address: str, **options: Any) -> Any:
    """The page, ready; what it requests and complains about is kept."""
    page = chromium.new_context(**options).new_page()
    page.errors, page.requests = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    return page


def give(page: Any, *kinds: str, name: str = "{}.png") -> None:
    """Choose files, and wait until each has its answer."""
    page.set_input_files(
        "#files",
        [
            {"name": name.format(kind), "mimeType": "image/png", "buffer": picture(kind, 200 + i)}
            for i, kind in enumerate(kinds)
        ],
    )
    settled(page)


def settled(page: Any) -> None:
    """Wait until every picture has an answer or an error."""
    until(page, "pictures.length > 0 && pictures.every((x) => x.answer || x.error)")
    page.evaluate("queue")


def titles(page: Any) -> list[str]:
    """What stands below the pictures."""
    return page.eval_on_selector_all("#strip span", "spans => spans.map((x) => x.textContent)")


def test_every_answer_is_told(chromium: Any, server: FakeServer) -> None:
    """Sure, not sure, none of these, an error; nothing is requested from anywhere else."""
    page = opened(chromium, server.address)
    assert page.inner_text("h1") == "Which of 6 classes?"
    give(page, "sure", "unsure", "unknown", "damaged")
    assert titles(page) == ["a cat", "Not sure", "None of these", "No answer"]
    assert page.inner_text("#label") == "a cat"
    assert page.inner_text("#verdict") == "97 % sure"
    assert page.inner_text("#bars li:nth-child(2) span") == "Löwe, der"
    assert page.inner_text("#bars li:nth-child(3) span") == "</script><b>&amp;"
    assert page.locator("#neighbours li").count() == 2
    wanted = {
        2: ("Not sure", "Perhaps a cat, but 52 % is below this model's limit of 60 %."),
        3: ("None of these", "It is unlike all pictures that the model was trained on."),
    }
    for i, (label, verdict) in wanted.items():
        page.click(f"#strip li:nth-child({i}) button")
        assert page.inner_text("#label") == label
        assert page.inner_text("#verdict").startswith(verdict)
        assert page.locator("#near").is_hidden()
    page.click("#strip li:nth-child(4) button")
    assert page.inner_text("#status") == "The image is truncated."
    assert page.locator("#result").is_hidden()
    assert {call.split(" ")[-1] for call in server.calls} == {"top=5&neighbours=4"}
    others = [x for x in page.requests if not x.startswith((server.address, "data:", "blob:"))]
    assert others == []
    assert [x for x in page.errors if "422" not in x] == []


@pytest.mark.parametrize("width", [360, 1400])
def test_a_picture_is_shown_whole(chromium: Any, server: FakeServer, width: int) -> None:
    """Squares and portraits were cut at the bottom of a wide window."""
    page = opened(chromium, server.address, viewport={"width": width, "height": 900})
    page.set_input_files(
        "#files", {"name": "a.png", "mimeType": "image/png", "buffer": picture("sure", 900)}
    )
    settled(page)
    view, frame = (page.locator(name).bounding_box() for name in ("#view", "#frame"))
    assert 0 < view["height"] <= frame["height"]
    assert 0 < view["width"] <= frame["width"]


def test_why_and_why_not_another(chromium: Any, server: FakeServer) -> None:
    """The map of a class, of a class instead of another, its strength; each is asked for once."""
    page = opened(chromium, server.address)
    give(page, "sure")
    page.check("#why")
    until(page, "!document.getElementById('map').hidden")
    assert page.inner_text("#legend").startswith("for a cat: ")
    before = page.evaluate("document.getElementById('map').toDataURL()")
    page.select_option("#against", LABELS[5])
    until(page, "document.getElementById('legend').textContent.includes('instead of')")
    until(page, "!document.getElementById('map').hidden")
    assert page.evaluate("document.getElementById('map').toDataURL()") != before
    page.select_option("#against", "")
    until(page, "document.getElementById('legend').textContent.startsWith('for a cat: ')")
    page.click("#bars li:nth-child(2) button")
    until(page, "document.getElementById('legend').textContent.startsWith('for Löwe, der: ')")
    for strength in (0, 55):
        page.fill("#strength", str(strength))
        opacity = page.evaluate("getComputedStyle(document.getElementById('map')).opacity")
        assert float(opacity) == strength / 100
    explained = [call for call in server.calls if call.startswith("explain")]
    assert len(explained) == 3
    assert "against=" in explained[1]
    page.uncheck("#why")
    until(page, "document.getElementById('map').hidden")
    assert page.errors == []


def test_the_history_stays_in_the_browser(chromium: Any, server: FakeServer) -> None:
    """It is there after a reload without asking again, and gone after the button."""
    page = opened(chromium, server.address)
    give(page, "unsure", "sure")
    give(page, "unknown")
    assert titles(page) == ["None of these", "Not sure", "a cat"]
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert titles(page) == ["None of these", "Not sure", "a cat"]
    page.focus("#strip li:nth-child(2) button")
    page.keyboard.press("Delete")
    assert titles(page) == ["None of these", "a cat"]
    asked = len(server.calls)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert titles(page) == ["None of these", "a cat"]
    assert page.inner_text("#label") == "None of these"
    page.keyboard.press("ArrowRight")
    until(page, "document.getElementById('label').textContent === 'a cat'")
    page.check("#why")
    until(page, "!document.getElementById('map').hidden")
    assert len([x for x in server.calls if not x.startswith("explain")]) == asked
    with page.expect_download() as download:
        page.click("#save")
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert lines[1:] == [
        '"unknown.png","a cat","0.973","false","true",""',
        '"sure.png","a cat","0.973","false","false",""',
    ]
    page.click("#delete")
    assert page.locator("#past").is_hidden()
    assert page.locator("#result").is_hidden()
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.evaluate("pictures.length") == 0
    assert page.errors == []


def test_drop_paste_camera_and_no_picture(chromium: Any, server: FakeServer) -> None:
    """Every way in gives an answer; what is not a picture gives the server's line."""
    page = opened(chromium, server.address, permissions=["camera"])
    give_event = """([kind, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, { type: "image/png" }));
      const event = kind === "drop" ? new DragEvent(kind, { dataTransfer: data, bubbles: true })
        : new ClipboardEvent(kind, { clipboardData: data, bubbles: true });
      document.dispatchEvent(event);
    }"""
    for count, kind in enumerate(("drop", "paste"), 1):
        page.evaluate(give_event, [kind, list(picture("sure"))])
        until(page, f"pictures.length === {count} && pictures[0].name === '{kind}.png'")
        settled(page)
    page.click("#camera")
    until(page, "document.getElementById('video').videoWidth > 0")
    page.keyboard.press("Escape")
    assert page.inner_text("#camera") == "Camera"
    page.click("#camera")
    until(page, "document.getElementById('video').videoWidth > 0")
    page.click("#camera")
    until(page, "pictures.length === 3")
    settled(page)
    assert page.inner_text("#name").startswith("Camera, ")
    assert page.evaluate("stream") is None
    assert "image/jpeg" in server.calls[-1]
    no_picture = {"name": "text.png", "mimeType": "image/png", "buffer": b"no picture"}
    page.set_input_files("#files", [no_picture])
    settled(page)
    page.wait_for_selector("#status.bad")
    assert page.inner_text("#status") == "The body is not a readable image."


def test_a_busy_server_and_large_pictures(chromium: Any, server: FakeServer) -> None:
    """It waits as long as the server says, and converts what the server does not take."""
    page = opened(chromium, server.address)
    give(page, "busy")
    assert server.refusals == 2
    assert titles(page)[0] == "a cat"
    give(page, "large")
    assert titles(page)[0] == "a cat"
    assert [call.split(" ")[1] for call in server.calls[-2:]] == ["image/png", "image/jpeg"]


def test_a_server_with_a_token(chromium: Any, server: FakeServer) -> None:
    """The page asks for it, or takes it from its address and removes it from there."""
    server.token = "a secret"
    page = opened(chromium, server.address)
    assert page.inner_text("#status") == "This server needs a token."
    give(page, "sure")
    page.fill("#token", "wrong")
    page.press("#token", "Enter")
    page.wait_for_selector("#ask:not([hidden])")
    page.fill("#token", "a secret")
    page.press("#token", "Enter")
    page.wait_for_selector("#ask", state="hidden")
    until(page, "pictures.every((x) => x.answer)")
    assert page.inner_text("#label") == "a cat"
    other = opened(chromium, f"{server.address}#token=a%20secret")
    assert other.locator("#ask").is_hidden()
    assert other.url == server.address


def test_a_server_that_is_gone(chromium: Any, server: FakeServer) -> None:
    """One line, not silence."""
    page = opened(chromium, server.address)
    server.stop()
    give(page, "sure")
    page.wait_for_selector("#status.bad")
    assert "The server cannot be reached" in page.inner_text("#status")


def test_the_command_and_the_page(chromium: Any, tmp_path: Path) -> None:
    """What the page asks for and what the server answers are written apart and can drift."""
    card = Card(tuple(LABELS[:4]), Preprocessing(size=64, resize=72), temperature=1.3)
    network = tiny_network(replace(CONFIG, num_classes=4), card)
    resnext.save(network, tmp_path / "pets.safetensors")
    command = [sys.executable, "-m", "resnext", "serve", tmp_path / "pets.safetensors"]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = re.findall(r"http://\S+", process.stdout.readline())[0]
    try:
        page = opened(chromium, address + "/")
        give(page, "sure")
        (wanted,) = resnext.predict(network, picture("sure"), top=4)
        assert page.inner_text("#label") == wanted.label
        found = page.eval_on_selector_all("#bars span", "all => all.map((x) => x.textContent)")
        assert found == list(wanted.labels)
        page.check("#why")
        until(page, "!document.getElementById('map').hidden")
        assert "this is exactly the score" in page.inner_text("#legend")
        page.select_option("#against", wanted.labels[1])
        until(page, "document.getElementById('legend').textContent.includes('instead of')")
        assert page.errors == []
        response = page.goto(f"{address}/docs")
        assert response.status == 200
        assert page.errors == []
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_everybody_can_use_it(
    chromium: Any, server: FakeServer, scheme: str, width: int, tmp_path: Path
) -> None:
    """axe-core finds nothing in any state, and nothing is too wide."""
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    options: dict[str, Any] = {"viewport": {"width": width, "height": 900}, "bypass_csp": True}
    options |= {"color_scheme": scheme, "permissions": ["camera"], "reduced_motion": "reduce"}
    page = opened(chromium, server.address, **options)

    def check(state: str) -> None:
        page.screenshot(path=tmp_path / f"{state}-{scheme}-{width}.png", full_page=True)
        assert axe.run(page).response["violations"] == [], state
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state

    check("empty")
    give(page, "sure", "unsure", "unknown", "damaged", name="{}" + " with a long name" * 4 + ".png")
    for i, state in enumerate(("sure", "unsure", "unknown", "damaged"), 1):
        page.click(f"#strip li:nth-child({i}) button")
        check(state)
    page.click("#strip li:nth-child(1) button")
    page.check("#why")
    until(page, "!document.getElementById('map').hidden")
    check("map")
    page.select_option("#against", LABELS[5])
    until(page, "document.getElementById('legend').textContent.includes('instead of')")
    check("against")
    page.click("#camera")
    until(page, "document.getElementById('video').videoWidth > 0")
    check("camera")
    page.click("summary")
    check("about")
    server.token = "a secret"
    page.reload()
    page.wait_for_selector("#ask:not([hidden])")
    check("token")
    page.goto(f"{server.address}docs")
    page.click("article:first-of-type summary")
    check("docs")


def test_the_page_is_small_and_asks_nobody() -> None:
    """One file without other assets, whose policy names its own style and script by hash."""
    page = read_template("resnext.serving", "page.html")
    assert len(page.encode()) <= 60_000
    assert re.findall(r"https?://|@import|url\(", page) == []
    policy = content_policy(page)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
