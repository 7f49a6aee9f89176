"""The index of a page: "none of these" and similar pictures, as the library finds them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_network
from inference_cases import CONFIG
from page_cases import (
    WORKER,
    check_usable,
    give,
    needs_browser,
    needs_node,
    opened,
    until,
)
from PIL import Image
from sklearn.datasets import load_sample_images

import resnext
from resnext import Card, Preprocessing, ResNeXt
from resnext.data.passed_over import PassedOver
from resnext.data.transforms import prepare
from resnext.errors import CheckpointError, InputError, MissingFileError, ResNeXtWarning
from resnext.exporting import page_index
from resnext.exporting.export import export
from resnext.exporting.page_index import index_of_page
from resnext.inference import open_runner
from resnext.neighbours import build_index, open_index, unknown
from resnext.neighbours.model_files import index_path, model_digest
from resnext.neighbours.photos import open_photos
from resnext.system.progress import reporter

CLASSES = ("flower", "temple")
pytestmark = pytest.mark.usefixtures("one_thread")


def crops(count: int, seed: int) -> list[tuple[str, Image.Image]]:
    """Parts of two photographs, of several sizes."""
    photos = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
    rng, found = np.random.default_rng(seed), []
    for i in range(count):
        label = CLASSES[i % 2]
        side = int(rng.integers(60, 200))
        top, left = (int(rng.integers(length - side)) for length in photos[label].shape[:2])
        found.append((label, Image.fromarray(photos[label][top : top + side, left : left + side])))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of two classes, with an index of 30 photographs next to it."""
    folder = tmp_path_factory.mktemp("model")
    card = Card(CLASSES, Preprocessing(size=32, resize=36), threshold=0.6)
    card = replace(card, unknown_threshold=0.5, unknown_weight=0.01)
    network = tiny_network(replace(CONFIG, num_classes=2), card)
    for label in CLASSES:
        (folder / "photos" / label).mkdir(parents=True)
    for i, (label, image) in enumerate(crops(30, 0)):
        image.save(folder / "photos" / label / f"{i}.png")
    with torch.no_grad():  # of unlike pictures the embeddings are unlike
        x = [prepare(image, card.preprocessing) for _, image in crops(12, 1)]
        network.fc.bias.sub_(network(torch.stack(x)).mean(0))
    path = folder / "photos.safetensors"
    resnext.save(network, path)
    build(path, folder / "photos")
    scores = [x.unknown_score or 0 for x in resnext.predict(path, [y for _, y in crops(12, 1)])]
    network.card = replace(card, unknown_threshold=float(np.median(scores)))
    resnext.save(network, path)
    return path


def build(model: Path, photos: Path) -> Path:
    """Write the index of a model file."""
    runner, out = open_runner(model), index_path(model)
    assert runner.card is not None
    images, _ = open_photos(photos, runner.card, PassedOver())
    build_index(runner, images, out, model=model_digest(model), progress=reporter(False))
    return out


def content(model: Path, index: Any) -> tuple[bytes, str]:
    """What a page takes of an index, and the note about it."""
    network = resnext.load(model)
    assert isinstance(network, ResNeXt)
    assert network.card is not None
    return index_of_page(model, network, network.card, index)


@needs_node
@pytest.mark.parametrize("rank", [5, 7])
def test_scores_and_neighbours_equal_the_library(
    model: Path, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same logits and embeddings, to the last digits."""
    monkeypatch.setattr(unknown, "_NEAREST", (rank, 50))
    index = open_index(model)
    card = Card(CLASSES, unknown_threshold=0.1, unknown_weight=0.3)
    score = index.unknown_score(card)
    assert score is not None
    assert score.rank(2) == rank
    images = [image for _, image in crops(10, 3)]
    embeddings = np.stack([index.embed(image) for image in images])
    logits = np.random.default_rng(0).normal(0, 5, (10, 2)).astype(np.float32)
    network = resnext.load(model)
    assert isinstance(network, ResNeXt)
    held, _ = index_of_page(model, network, card, index_path(model))
    (tmp_path / "index").write_bytes(held)
    asked = {"embeddings": embeddings.tolist(), "logits": logits.tolist()}
    (tmp_path / "asked").write_text(json.dumps(asked))
    program = (
        "const fs = require('fs'), [, worker, index, asked] = process.argv;"
        "const { use, compared } = new Function('self', fs.readFileSync(worker, 'utf8') +"
        "  '\\nreturn { use: (bytes) => { index = indexFrom(bytes); }, compared };')({});"
        "use(new Uint8Array(fs.readFileSync(index)));"
        "const { embeddings, logits } = JSON.parse(fs.readFileSync(asked, 'utf8'));"
        "console.log(JSON.stringify(embeddings.map((x, i) =>"
        "  compared(Float32Array.from(x), Float32Array.from(logits[i])))));"
    )
    command = ["node", "-e", program, str(WORKER), str(tmp_path / "index"), str(tmp_path / "asked")]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    for found, embedding, row, wanted in zip(
        json.loads(done.stdout), embeddings, logits, score(logits, embeddings), strict=True
    ):
        assert found["unknown"] == pytest.approx(wanted, abs=1e-6)
        likely = [CLASSES[k] for k in np.argsort(-row)]
        near = index.of_classes(embedding, likely, 3)
        mine = [one for group in found["similar"] for one in group]
        assert [CLASSES[one["target"]] for one in mine] == [one.label for one in near]
        assert [x["distance"] for x in mine] == pytest.approx([x.distance for x in near], abs=1e-6)


def test_which_index_is_taken(model: Path, tmp_path: Path) -> None:
    """That next to the model, unless it is another model's; a given one must be the model's."""
    held, note = content(model, "auto")
    assert "small copies of the images" in note
    assert "--no-index" in note
    assert content(model, index_path(model)) == (held, "")
    assert held
    assert content(model, None) == (b"", "")
    other = tmp_path / "other.safetensors"
    network = resnext.load(model)
    assert isinstance(network, ResNeXt)
    resnext.save(network, other)
    assert content(other, "auto") == (b"", "")
    with torch.no_grad():
        network.fc.weight.add_(1)
    resnext.save(network, other)
    with pytest.raises(CheckpointError, match="was made with other weights than those of"):
        content(other, index_path(model))
    index_path(other).write_bytes(index_path(model).read_bytes())
    held, note = content(other, "auto")
    assert not held
    assert note.startswith("The index is not used. ")
    assert "other weights" in note
    with pytest.raises(MissingFileError, match=r"none\.index does not exist"):
        content(model, tmp_path / "none.index")
    wide = tiny_network(replace(CONFIG, channels=(32,), num_classes=2), Card(CLASSES))
    assert index_of_page(wide, wide, Card(CLASSES), "auto") == (b"", "")
    with pytest.raises(
        InputError, match=r"index of another model: it has .* length 64, not 2 and 128"
    ):
        index_of_page(wide, wide, Card(CLASSES), index_path(model))
    with pytest.raises(InputError, match="Only a page holds an index, not --to onnx"):
        export(model, tmp_path / "a.onnx", index=index_path(model))


def test_the_pictures_are_bounded(model: Path, monkeypatch: Any) -> None:
    """As many as fit, spread over the index; all embeddings stay, as the score needs them."""
    whole, _ = content(model, index_path(model))
    monkeypatch.setattr(page_index, "THUMBNAIL_BYTES", 20_000)
    part, _ = content(model, index_path(model))
    length = int.from_bytes(part[:4], "little")
    header = json.loads(part[4 : 4 + length])
    sizes = np.diff([0, *header["ends"]])
    assert 2 <= (sizes > 0).sum() < 20
    assert sizes.sum() < 30_000 < len(whole)
    assert {header["targets"][i] for i in np.flatnonzero(sizes)} == {0, 1}
    assert len(part) == 4 + length + 30 * 64 * 2 + sizes.sum()


@pytest.mark.slow
@needs_browser
def test_the_page_says_none_of_these(model: Path, browser: Any, tmp_path: Path) -> None:
    """For the pictures that `predict` marks, and shows what `predict` finds similar."""
    with pytest.warns(ResNeXtWarning, match="small copies"):
        file = export(model, tmp_path / "page.html", precision="fp32")
    paths = []
    for i, (_, image) in enumerate(crops(12, 1)):
        paths.append(tmp_path / f"{i:02}.png")
        image.save(paths[-1])
    wanted = resnext.predict(model, paths, top=2, like=3)
    assert {one.unknown for one in wanted} == {True, False}
    page = opened(browser, file)
    give(page, *paths)
    found = page.evaluate("pictures.map((x) => x.answer)")
    names = page.eval_on_selector_all("#strip span", "spans => spans.map((x) => x.textContent)")
    for one, answer, name in zip(wanted, found, names, strict=True):
        assert answer["unknown"] == pytest.approx(one.unknown_score, abs=1e-5)
        likely = one.label if one.sure else "Not sure"
        if abs((one.unknown_score or 0) - (one.unknown_threshold or 0)) > 1e-5:
            assert name == ("None of these" if one.unknown else likely)
        mine = [x["distance"] for group in answer["similar"] for x in group]
        assert mine == pytest.approx([x.distance for x in one.like], abs=1e-5)
    assert page.errors == []
    page.click("#strip li:nth-child(3) button")
    page.wait_for_selector("#similar canvas")
    shown = page.eval_on_selector_all("#similar bdi", "nodes => nodes.map((x) => x.textContent)")
    assert shown == [*dict.fromkeys(one.label for one in wanted[2].like)]
    assert page.eval_on_selector_all("#similar canvas", "all => all.length") == 6
    assert page.errors == []
    assert "30 of 30 training pictures" in page.text_content("#about")


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_everybody_can_use_it(
    model: Path, browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    """axe-core finds nothing in "none of these" and the similar pictures."""
    file = export(model, tmp_path / "page.html", index=index_path(model))
    options: dict[str, Any] = {"viewport": {"width": width, "height": 800}, "bypass_csp": True}
    page = opened(browser, file, color_scheme=scheme, **options)
    seen = set()
    for i, (_, image) in enumerate(crops(12, 1)):
        image.save(tmp_path / f"{i}.png")
        page.set_input_files("#files", str(tmp_path / f"{i}.png"))
        page.wait_for_selector("#similar canvas")
        until(page, "queue.then(() => true)")
        label = page.inner_text("#label")
        if label not in seen:
            check_usable(page, label)
        seen.add(label)
    assert "None of these" in seen
