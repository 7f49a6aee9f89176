"""The report: a page that holds together by itself, and heat maps that point at the object."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_readable
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.recorded import fill
from PIL import Image
from torch import nn

from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig
from resnext.calibration import Bin
from resnext.data.dataset import ImageSet
from resnext.data.loader import eval_loader
from resnext.errors import CheckpointError
from resnext.evaluation.classification import collect_outputs, measure
from resnext.evaluation.label_doubts import Doubt
from resnext.evaluation.metrics import EvalOutputs, Evaluation, score
from resnext.inference import open_runner
from resnext.neighbours import build_index, open_index
from resnext.review.map import Points, map_fragment, thumbnail
from resnext.system.progress import SilentReporter
from resnext.training.report import image_map
from resnext.training.report.charts import Line, bars, curves, nice, reliability_diagram, whole
from resnext.training.report.examples import (
    ClassExamples,
    Mistake,
    Pictures,
    class_examples,
    confident_mistakes,
    doubtful_labels,
    grad_cam,
)
from resnext.training.report.html import Facts, duration, render, write_report
from resnext.training.run_state import TrainState

EVIL = "<script>alert('x')</script>"
LABELS = ("ant", EVIL, "قطة", "a & b", '" onload="x', "W" * 80, "Löwe", "h", "i", "j")
CPU = torch.device("cpu")
TINY = ResNeXtConfig(
    (1, 1), 2, 8, channels=(16, 32), num_stages=2, small_stem=True, num_classes=2, stem_channels=16
)
VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}
SECTIONS = ["progress", "confusion", "classes", "examples", "confidence", "mistakes", "doubts"]
SECTIONS += ["map-section", "data", "time", "again"]

pytestmark = pytest.mark.usefixtures("one_thread")


class Page(HTMLParser):
    """A page taken apart; it fails where a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it; an attribute must not come twice."""
        assert len({key for key, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """As SVG has them."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """It must be the innermost one."""
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        """Text, but not that of styles and scripts."""
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self) -> str:
        """All text that is shown."""
        return " ".join(" ".join(self.text).split())


def evaluation(k: int, count: int = 300, scale: float = 3.0, labels: Any = None) -> Evaluation:
    """Answers that are mostly right."""
    rng = np.random.default_rng(k)
    targets = rng.integers(0, k, count)
    logits = rng.normal(0, 1, (count, k))
    logits[np.arange(count), targets] += 2
    names = labels or tuple(f"class {i}" for i in range(k))
    images = ImageSet([np.zeros((1, 1), np.uint8)] * count, targets.tolist(), names, "val")
    z = torch.from_numpy(logits * scale).float()
    answers = EvalOutputs(z, torch.from_numpy(targets), torch.arange(count))
    return score(answers, images, keep_logits=True)


def facts(k: int = 10, epochs: int = 5, **changes: Any) -> Facts:
    """What a run might tell."""
    result = evaluation(k, labels=LABELS if k == 10 else None)
    history: list[dict[str, Any]] = [
        {
            "epoch": epoch,
            "loss": 2 / epoch,
            "val_accuracy": result.accuracy * epoch / epochs,
            "val_nll": 1.5 / epoch,
            "ema_accuracy": None if epoch == 1 else 0.5,
            "rate": 0.1 / epoch,
            "images_per_second": 100.0 + epoch,
        }
        for epoch in range(1, epochs + 1)
    ]
    picture = Image.fromarray(np.full((8, 8), 90, np.uint8))
    doubt = Mistake(picture, EVIL, "b", 0.97, None, EVIL)
    values: dict[str, Any] = {
        "title": f"resnext on {EVIL}",
        "data": EVIL,
        "command": f"resnext train 'a b' --out '{EVIL}'",
        "created": "today",
        "model": "resnext50_32x4d",
        "config": f"Config({EVIL})",
        "parameters": 25_028_904,
        "gmacs": 4.2,
        "recipe": {"epochs": epochs, "ema_decay": None, EVIL: EVIL},
        "hardware": {"processor": EVIL, "cores": 2},
        "versions": {"resnext": "0.1.0"},
        "seconds": {"total": 100.0, "training": 70.0, "waiting for data": 20.0},
        "history": history,
        "best_epoch": epochs or None,
        "evaluation": result,
        "temperature": 2.5,
        "threshold": 0.6,
        "findings": [f"{EVIL}.jpg: not a readable image"],
        "train_counts": list(range(1, k + 1)),
        "val_counts": result.confusion.sum(1).tolist(),
        "examples": [ClassExamples(EVIL, None, doubt, None), ClassExamples("b", *[doubt] * 3)],
        "doubts": [doubt],
        "doubt_count": 1234,
        "review": f"resnext review '{EVIL}'",
        "map": map_fragment(points()),
        "mistakes": [Mistake(picture, EVIL, "b", 0.97, picture.resize((99, 99)), EVIL)],
        "events": [f"Interrupted by {EVIL}"],
    }
    values |= changes
    if (logits := values["evaluation"].logits) is not None:
        scaled = torch.from_numpy(logits / values["temperature"])
        values["calibrated"] = scaled.softmax(1).amax(1).numpy()
    return Facts(**values)


def points() -> Points:
    """A map of two images."""
    two, tile = np.arange(2), thumbnail(Image.new("L", (8, 8)))
    places = np.array([[0.0, 1.0], [1.0, 0.0]])
    names, classes = (EVIL, "b.png"), (EVIL, "b")
    return Points(places, names, classes, two, two, two, ("train", "val"), two, [tile] * 2)


def numbers_are_numbers(page: str) -> None:
    """No drawing holds a coordinate that is none."""
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        attributes = re.findall(r'\s(?:x|y|x1|x2|y1|y2|cx|cy|r|width|height|points)="([^"]*)"', svg)
        assert attributes
        for value in attributes:
            assert all(math.isfinite(float(x)) for x in re.split(r"[ ,]", value)), value
        assert not re.search(r"\b(nan|inf|None)\b", svg)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_everybody_can_read_it(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    """Every shade of a confusion has text that can be read."""
    targets = np.arange(200) // 20
    wrong = np.arange(200) % 20 < 2 * targets + 2  # of class c, a part of (c + 1) / 10
    logits = torch.eye(10)[torch.from_numpy((targets + wrong) % 10)]
    images = ImageSet([np.zeros((1, 1), np.uint8)] * 200, targets.tolist(), LABELS, "val")
    outputs = EvalOutputs(logits, torch.from_numpy(targets), torch.arange(200))
    path = tmp_path / "report.html"
    write_report(facts(evaluation=score(outputs, images, keep_logits=True)), path)
    assert_readable(browser, path, scheme, width)


# -- the page ---------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 10, 41, 120])
@pytest.mark.parametrize("epochs", [0, 1, 90])
def test_pages_are_whole(k: int, epochs: int) -> None:
    """An unclosed tag swallows what follows; one class or epoch more must not break a page."""
    text = render(facts(k, epochs))
    page = Page(text)
    ids = [about["id"] for tag, about in page.tags if tag == "section"]
    assert ids == SECTIONS
    every = [about["id"] for _, about in page.tags if "id" in about]
    assert len({*every}) == len(every)
    links = [about["href"] for tag, about in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in SECTIONS]
    for _, about in page.tags:
        assert about.get("aria-labelledby", every[0]) in every
        assert "alt" in about or "src" not in about
    numbers_are_numbers(text)
    assert not re.search(r"\b(nan|None|Undefined)\b", page.words)
    rows = text.count('<th scope="row" title=')
    assert rows == (k if k <= 40 else 25)


@pytest.mark.parametrize("k", [10, 120])
def test_pages_need_nothing_else(k: int) -> None:
    """A report is mailed, archived, and opened without a network."""
    text = render(facts(k))
    page = Page(text)
    for tag, about in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for key in ("src", "href", "srcset", "poster", "action", "xlink:href"):
            value = about.get(key)
            assert value is None or value.startswith(("#", "data:image/"))
        assert not any(key.startswith("on") for key in about), about
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|import\(", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_text_of_others_is_text() -> None:
    """A folder may be called <script>: labels, files and findings come from strangers."""
    text = render(facts())
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 3  # the map, and what copies
    assert EVIL not in text
    assert page.words.count(EVIL) > 10
    assert all("onload" not in about for _, about in page.tags)
    code = page.words[
        page.words.index("The command, with its recipe, hardware and software versions.") :
    ]
    assert f"resnext train 'a b' --out '{EVIL}'" in code


def test_the_epoch_that_was_kept_is_named() -> None:
    """Of two epochs with equal accuracy, the later one was named although the first was kept."""
    equal = [{**row, "val_accuracy": 1.0} for row in facts().history]
    words = Page(render(facts(history=equal, best_epoch=3))).words
    assert "Best epoch 3 of 5" in words
    assert "marks epoch 3" in words


def test_the_numbers_are_there() -> None:
    """A headline of another epoch, or a part shown as per cent of a per cent."""
    told = facts()
    result = told.evaluation
    words = Page(render(told)).words.replace("\N{NO-BREAK SPACE}", " ")
    low, high = result.interval()
    assert f"{100 * result.accuracy:.1f} %" in words.replace(" %", " %")
    assert f"expect between {100 * low:.1f} % and {100 * high:.1f} %" in words
    assert "of 300 validation images" in words
    assert "Best epoch 5 of 5" in words
    assert "marks epoch 5" in words
    assert "Parameters 25.0 M" in words
    assert "Everything else 10 s 10.0 %" in words
    assert result.top5 is not None
    assert f"Top-5 accuracy {100 * result.top5:.1f} %" in words
    assert result.logits is not None
    scaled = torch.from_numpy(result.logits / 2.5).softmax(1).amax(1).numpy()
    sure = scaled >= 0.6
    part, right = 100 * sure.mean(), 100 * result.right[sure].mean()
    assert f"{part:.1f} % of all, of which {right:.1f} % are right" in words
    errors = re.findall(r"expected calibration error ([\d.]+) %", words)
    assert float(errors[0]) == pytest.approx(100 * result.ece, abs=0.006)
    assert errors[0] != errors[1]
    for right_class, predicted, times in result.confusions(3):
        assert f"{right_class} taken for {predicted} {times}" in words


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": None},
        {"threshold": 0.0},
        {"threshold": 1.0},
        {"temperature": 1.0},
        {"findings": (), "mistakes": (), "events": ()},
        {"train_counts": (), "val_counts": ()},
        {"seconds": {}},
        {"seconds": {"total": 0.0, "training": 0.0}},
        {"history": [{"epoch": 1, "loss": math.nan, "val_accuracy": None}]},
        {"history": [{"epoch": e, "loss": 0.0, "val_accuracy": 1.0} for e in (1, 2, 3)]},
        {"evaluation": evaluation(10, count=1)},
        {"evaluation": evaluation(10, scale=0)},
        {"evaluation": evaluation(10, scale=1e4)},
        {"evaluation": replace(evaluation(10), logits=None)},
        {"evaluation": replace(evaluation(10), skipped=(EVIL,) * 7)},
        {"evaluation": replace(evaluation(10), confidence=np.full(300, np.nan), logits=None)},
    ],
    ids=range(16),
)
def test_what_is_missing_is_left_out(changes: dict[str, Any]) -> None:
    """The report comes last: an error there would spoil hours of training."""
    text = render(facts(**changes))
    words = Page(text).words
    numbers_are_numbers(text)
    assert not re.search(r"\b(nan|None|inf)\b", words)


def test_writing(tmp_path: Path) -> None:
    """Atomic, in UTF-8, over an older one."""
    path = tmp_path / "report.html"
    path.write_text("older")
    write_report(facts(), path)
    assert path.read_text(encoding="utf-8") == render(facts())
    write_report(facts(data=os.fsdecode(b"caf\xe9")), path)  # a file's name need not be text
    assert r"caf\udce9" in path.read_text(encoding="utf-8")
    assert [*tmp_path.iterdir()] == [path]
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_report(facts(), tmp_path / "missing" / "report.html")


# -- charts -----------------------------------------------------------------------------------

finite = st.floats(-1e12, 1e12, allow_subnormal=False)


@settings(max_examples=200)
@given(st.lists(finite, min_size=1, max_size=6))
def test_axes_hold_their_values(values: list[float]) -> None:
    """Ticks are few, evenly spaced and around everything; one value alone has no range."""
    ticks = nice(values)
    slack = 1e-6 * max(ticks[-1] - ticks[0], abs(ticks[0]), 1e-12)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= min(values) + slack
    assert ticks[-1] >= max(values) - slack
    steps = np.diff(ticks)
    assert (steps > 0).all()
    assert steps == pytest.approx(steps[0], rel=1e-6)
    if min(values) >= 0:
        assert ticks[0] >= 0  # no axis of learning rates goes below nothing


@given(st.integers(1, 2000), st.integers(0, 2000))
def test_epochs_are_whole_and_few(first: int, more: int) -> None:
    """Half an epoch cannot be a label, and forty labels do not fit."""
    ticks = whole(first, first + more)
    assert 1 <= len(ticks) <= 8
    assert ticks[0] == first
    assert ticks == sorted({*ticks})
    assert ticks[-1] <= first + more


def test_gaps_stay_gaps() -> None:
    """A line drawn across an epoch that diverged shows what never was."""
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, 4.0), (5, 5.0), (6, math.inf), (7, 7.0)]
    svg = curves([Line("x", points)], str, mark=4)
    assert svg.count("<polyline") == 2
    assert svg.count('class="hit"') == 5
    assert svg.count('class="mark"') == 1
    numbers_are_numbers(svg)
    assert curves([Line("x", [(1, math.nan)])], str) == ""


def test_bars_are_as_high_as_their_numbers() -> None:
    """Accuracy upwards from the foot, the point above the mean confidence."""
    svg = reliability_diagram([Bin(math.nan, math.nan, 0), Bin(0.75, 0.5, 8)], EVIL)
    numbers_are_numbers(svg)
    assert EVIL not in svg
    (bar,) = re.findall(r'<rect class="bar"[^>]*>', svg)
    x, width, y, height = (float(x) for x in re.findall(r'"([\d.]+)"', bar)[:4])
    assert (x, width) == (44 + 130 + 1, 130 - 2)
    assert (y, height) == (10 + 130, 130)
    assert 'cx="239"' in svg  # 44 + 260 × 0.75
    heights = re.findall(r'height="([\d.]+)"/>', bars([1, 4, 2], "x"))
    assert [float(h) for h in heights] == [90, 45, 22.5]
    assert bars([0, 0], "x") == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (9.96, "10 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (3599, "60 min"),
        (7200, "2 h 00 min"),
        (86400 * 5, "120 h 00 min"),
        (math.nan, "–"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    """Nobody says 7200 seconds."""
    assert duration(seconds) == said


# -- where a network looks --------------------------------------------------------------------


def scene(rng: np.random.Generator, place: tuple[int, int] | None) -> np.ndarray:
    """Noise of 32×32 pixels, maybe with a striped square of 10×10 in it."""
    pixels = rng.integers(60, 150, (32, 32, 3), dtype=np.uint8)
    if place:
        top, left = place
        pixels[top : top + 10, left : left + 10] = 30
        pixels[top : top + 10 : 2, left : left + 10] = 240
    return pixels


@pytest.fixture(scope="module")
def finder() -> tuple[ResNeXt, Preprocessing]:
    """A network that has learnt to tell whether there is a square."""
    rng = np.random.default_rng(0)
    how = Preprocessing(32, 32, mean=(0.4,) * 3, std=(0.2,) * 3)
    torch.manual_seed(0)
    network = ResNeXt(TINY)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(40):
        places = [None if i % 2 else tuple(rng.integers(0, 23, 2).tolist()) for i in range(16)]
        pixels = np.stack([scene(rng, place) for place in places])
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.4) / 0.2
        loss = nn.functional.cross_entropy(
            network(x), torch.tensor([int(place is not None) for place in places])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    network.card = Card(("nothing", "square"), how)
    return network, how


def test_heat_is_where_the_object_is(finder: tuple[ResNeXt, Preprocessing]) -> None:
    """A map that is mirrored, turned or of another class looks just as good."""
    network, how = finder
    rng = np.random.default_rng(1)
    corners = [(1, 1), (1, 21), (21, 1), (21, 21), (3, 12), (12, 20), (20, 10)]
    pictures = [scene(rng, corner) for corner in corners]
    # every answer is counted as a mistake, because the classes are exchanged
    images = ImageSet(pictures, [0] * len(pictures), ("nothing", "square"), "squares")
    with torch.no_grad():
        network.eval()
        answers = collect_outputs(network, eval_loader(images, how, batch_size=3, workers=0), CPU)
    result = score(answers, images)
    assert result.predicted.tolist() == [1] * len(corners)
    network.train()
    found = confident_mistakes(Pictures(network, {"val": images}, how), result, count=5)
    assert network.training
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert len(found) == 5
    order = np.argsort(-result.confidence, kind="stable")
    assert [mistake.confidence for mistake in found] == result.confidence[order][:5].tolist()
    for mistake, i in zip(found, order.tolist(), strict=False):
        assert (mistake.truth, mistake.predicted) == ("nothing", "square")
        assert mistake.title == images.title(i)
        assert np.array_equal(np.asarray(mistake.image), pictures[i])
        assert mistake.heat is not None
        top, left = (7 * x for x in corners[i])  # overlays are 224 pixels wide
        heat = np.asarray(mistake.heat).astype(int)
        coloured = (heat.max(2) - heat.min(2)).astype(float)
        inside = np.zeros(coloured.shape, bool)
        inside[max(top - 14, 0) : top + 84, max(left - 14, 0) : left + 84] = True
        assert coloured[inside].mean() > 4 * coloured[~inside].mean()


VARIANTS: list[dict[str, Any]] = [
    {},
    {"in_channels": 1},
    {"attention": "se"},
    {"attention": "eca"},
    {"stem_type": "deep", "small_stem": False, "stem_channels": None},
    {"anti_alias": "blur"},
    {"dropout": 0.5, "drop_path_rate": 0.2},
    {"norm": "group", "norm_groups": 2},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_heat_is_grad_cam(changes: dict[str, Any]) -> None:
    """Our shortcut through the classifier's weights against gradients, for every head we have."""
    network = ResNeXt(TINY.replace(num_classes=5, **changes))
    fill(network)
    network.eval()
    x = torch.randn(network.config.in_channels, 24, 24, generator=torch.Generator().manual_seed(0))
    kept: list[torch.Tensor] = []
    hook = network.get_submodule("layer2").register_forward_hook(
        lambda _module, _inputs, out: kept.append(out)  # pyright: ignore[reportArgumentType]
    )
    logits = network(x[None])[0]
    hook.remove()
    for label in (0, 3):
        (gradient,) = torch.autograd.grad(logits[label], kept[0], retain_graph=True)
        weights = gradient.mean((2, 3), keepdim=True)
        wanted = (weights * kept[0]).sum(1)[0].relu().detach()
        got = grad_cam(network, x, label)
        if wanted.max() == 0:
            assert not got.any()
        else:
            assert got == pytest.approx((wanted / wanted.max()).numpy(), abs=1e-4)
    half = grad_cam(network.bfloat16(), x, 3)
    assert half.shape == got.shape
    assert np.isfinite(half).all()


@pytest.mark.parametrize("colour", ["RGB", "BGR", "L"])
def test_the_picture_is_what_was_seen(colour: Any) -> None:
    """Blue skies in orange: channels exchanged on the way back."""
    channels = 1 if colour == "L" else 3
    how = Preprocessing(16, 16, mean=(0.3,) * channels, std=(0.25,) * channels, colour=colour)
    network = ResNeXt(TINY.replace(in_channels=channels))
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    images = ImageSet([pixels] * 2, [0, 1], ("a", "b"), "x")
    answers = EvalOutputs(torch.tensor([[0.0, 1], [1.0, 0]]), torch.tensor([0, 1]), torch.arange(2))
    first, second = confident_mistakes(
        Pictures(network, {"val": images}, how), score(answers, images)
    )
    wanted = Image.fromarray(pixels[:, 4:20]).convert("L" if colour == "L" else "RGB")
    assert np.array_equal(np.asarray(first.image), np.asarray(wanted))
    assert (first.predicted, second.predicted) == ("b", "a")
    page = Page(render(facts(mistakes=[first], examples=(), doubts=())))
    sources = [about["src"] or "" for tag, about in page.tags if tag == "img"]
    shown = Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2])))
    assert np.array_equal(np.asarray(shown), np.asarray(wanted))  # small ones are not compressed


def test_no_list_of_doubts_has_a_reason() -> None:
    """Of a network that knows nothing, the page said that no label is in doubt."""
    nothing: dict[str, Any] = {"doubts": (), "doubt_count": 0, "examples": ()}
    assert "No label is in doubt." in render(facts(**nothing))
    why = {"training": "The network is clear about 9% of the labels."}
    page = render(facts(**nothing, undoubted=why))
    assert "No label is in doubt" not in page
    assert "no list of doubtful labels of training images. The network is clear about 9%" in page
    assert "1,234 labels may be wrong" in (page := render(facts(undoubted=why)))
    assert "no list of doubtful labels of training images." in page


def test_a_map_of_one_pixel_points_nowhere() -> None:
    """It would colour the whole picture and say nothing."""
    network = ResNeXt(TINY)
    how = Preprocessing(2, 2)
    images = ImageSet([np.zeros((2, 2, 3), np.uint8)] * 2, [0, 0], ("a", "b"), "x")
    answers = EvalOutputs(torch.tensor([[0.0, 1], [1.0, 0]]), torch.tensor([0, 0]), torch.arange(2))
    (found,) = confident_mistakes(Pictures(network, {"val": images}, how), score(answers, images))
    assert found.heat is None
    assert (
        len(
            [
                tag
                for tag, _ in Page(render(facts(mistakes=[found], examples=(), doubts=()))).tags
                if tag == "img"
            ]
        )
        == 1
    )


def test_examples_are_the_extremes_of_each_class() -> None:
    """The most confident right and wrong image, and the first doubt, the worst class first."""
    network = ResNeXt(TINY).eval()
    how = Preprocessing(16, 16, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = [np.full((16, 16, 3), 10 * i, np.uint8) for i in range(6)]
    images = ImageSet(pixels, [0, 0, 0, 1, 1, 1], ("a", "b"), "val")
    margin = [1.0, 3.0, 2.0, 4.0, -1.0, -2.0]  # for the label
    logits = torch.tensor([[m, 0] if i < 3 else [0, m] for i, m in enumerate(margin)])
    result = score(EvalOutputs(logits, torch.tensor(images.targets), torch.arange(6)), images)
    doubts = [Doubt("train", 2, "x", "a", "b", 0.9), Doubt("train", 1, "y", "a", "b", 0.8)]
    worst, best = class_examples(
        Pictures(network, {"val": images, "train": images}, how), result, doubts
    )
    assert (worst.label, best.label) == ("b", "a")
    assert worst.typical is not None
    assert worst.wrong is not None
    assert (worst.typical.title, worst.wrong.title, worst.doubtful) == ("val 3", "val 5", None)
    assert worst.wrong.predicted == "a"
    assert best.typical is not None
    assert best.doubtful is not None
    assert (best.typical.title, best.doubtful.title, best.wrong) == ("val 1", "x", None)
    assert best.doubtful.image.getpixel((0, 0)) == (20, 20, 20)


@pytest.mark.parametrize("indexed", [True, False])
def test_similar_training_images_are_beside_mistakes_and_doubts(
    tmp_path: Path, indexed: bool
) -> None:
    """Of both classes, nearest first, never the image itself; nothing without an index."""
    network = ResNeXt(TINY).eval()
    how = Preprocessing(16, 16, mean=(0, 0, 0), std=(1, 1, 1))
    network.card = Card(("a", "b"), how)
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 255, (16, 16, 3)).astype(np.uint8) for _ in range(12)]
    train = ImageSet(pixels[:10], [0, 1] * 5, ("a", "b"), "train")
    val = ImageSet(pixels[10:], [0, 0], ("a", "b"), "val")
    runner, index = open_runner(network, device="cpu"), None
    if indexed:
        out = tmp_path / "m.index"
        build_index(runner, train, out, model="", progress=SilentReporter())
        index = open_index(runner, out)
    pictures = Pictures(network, {"train": train, "val": val}, how, index)
    logits = torch.tensor([[0.0, 3], [2, 0]])  # the first is wrong
    result = score(EvalOutputs(logits, torch.tensor([0, 0]), torch.arange(2)), val)
    doubt = Doubt("train", 4, "train 4", "a", "b", 0.9)
    (mistake,), (doubtful,) = (
        confident_mistakes(pictures, result),
        doubtful_labels(pictures, [doubt]),
    )
    (examples,) = class_examples(pictures, result, [doubt])
    assert examples.typical is not None
    assert examples.typical.like == ()
    for shown, image in ((mistake, pixels[10]), (doubtful, pixels[4])):
        if index is None:
            assert shown.like == ()
            continue
        others = [x for x in index.search(image, 10) if x.name != shown.title]
        nearest = {label: [x for x in others if x.label == label][:3] for label in "ab"}
        assert [x.name for x in shown.like] == [x.name for x in (*nearest["b"], *nearest["a"])]
    page = Page(render(facts(mistakes=[mistake], examples=[examples], doubts=[doubtful])))
    sources = [about["src"] or "" for tag, about in page.tags if tag == "img"]
    assert len(sources) == (2 + 1 + (1 + 1 + 2)) + indexed * 6 * 4
    assert ("Like it in" in page.words) == indexed


def test_the_map_is_made_where_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run must not take twice as long, and a run with a budget must end in time."""
    images = ImageSet([np.zeros((8, 8), np.uint8)] * 500, [0, 1] * 250, ("a", "b"), "val")
    parts = {"train": images, "val": images}
    monkeypatch.setattr(image_map, "installed", lambda: True)

    def wanted(seconds: float, budget: float | None = None, **more: ImageSet) -> bool:
        parts_of = {"training": seconds - 10, "validating": 10.0}
        state = TrainState(seconds=parts_of, budget=budget, history=[{}, {}])
        return image_map.worthwhile({**parts, **more}, state)

    assert wanted(61)
    assert not wanted(59)
    assert not wanted(61, train=images.select([0] * 4600, "train"))
    assert wanted(100, budget=131)
    assert not wanted(100, budget=129)
    state = TrainState(seconds={"training": 90.0, "validating": 10.0}, budget=131, history=[{}, {}])
    assert image_map.worthwhile(parts, state, indexing=0.5)
    assert not image_map.worthwhile(parts, state, indexing=2.0)  # both had been given all the time
    monkeypatch.setattr(image_map, "installed", lambda: False)
    assert not wanted(61)


def test_the_map_shows_every_image(tmp_path: Path) -> None:
    """In the order of the splits, with predictions of the model."""
    pytest.importorskip("sklearn")
    network = ResNeXt(TINY).eval()
    how = Preprocessing(16, 16, mean=(0, 0, 0), std=(1, 1, 1))
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 255, (16, 16, 3)).astype(np.uint8) for _ in range(12)]
    parts = {
        "train": ImageSet(pixels[:8], [0, 1] * 4, ("a", "b"), "train"),
        "val": ImageSet(pixels[8:], [1] * 4, ("a", "b"), "val"),
    }
    page = image_map.image_map(network, parts, how, 1.0)
    found = re.search(r'id="map-data">(.*?)</script>', page)
    assert found
    values = json.loads(found[1])
    assert values["label"] == [0, 1] * 4 + [1] * 4
    assert values["split"] == [0] * 8 + [1] * 4
    assert values["names"][-1] == "val 3"
    assert not values["files"]
    told = measure(
        network, eval_loader(parts["val"], how, batch_size=4, workers=0), parts["val"], CPU
    )
    assert values["predicted"][8:] == told.predicted.tolist()
