"""What changed between two models, and when the second counts as worse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import photo_folder, run_cli, tiny_network
from PIL import Image

from resnext import Card, Preprocessing, ResNeXt, save
from resnext.calibration import mcnemar
from resnext.errors import InputError
from resnext.evaluation import compare
from resnext.evaluation.comparison import Comparison
from resnext.evaluation.metrics import Evaluation
from resnext.prediction.contact_sheet import draw_flips
from resnext.prediction.images import Prediction

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ("cat", "dog")


def evaluation(
    targets: list[int], predicted: list[int], labels: tuple[str, ...] = LABELS
) -> Evaluation:
    """The evaluation of given predictions."""
    right, got = np.array(targets), np.array(predicted)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (right, got), 1)
    return Evaluation(
        data="photos",
        count=len(right),
        accuracy=float((right == got).mean()),
        top5=None,
        nll=0.5,
        confusion=confusion,
        labels=labels,
        targets=right.astype(np.int32),
        predicted=got.astype(np.int32),
        confidence=np.linspace(0.5, 0.9, len(right)).astype(np.float32),
        indices=np.arange(len(right), dtype=np.int32),
    )


def comparison(a: Evaluation, b: Evaluation, max_loss: float | None = None) -> Comparison:
    """Their comparison."""
    return Comparison(a, b, *mcnemar(a.right, b.right), max_loss=max_loss)


def test_flips_are_by_name() -> None:
    """The second model may number its classes otherwise; positions would flip everything."""
    a = evaluation([0, 0, 1, 1], [0, 1, 1, 1])
    b = evaluation([1, 1, 0, 0], [0, 1, 0, 0], ("dog", "cat"))
    flips = comparison(a, b).flips()
    assert [(x.index, x.actual, x.label_a, x.label_b, x.effect) for x in flips] == [
        (0, "cat", "cat", "dog", "lost"),
        (1, "cat", "dog", "cat", "gained"),
    ]
    assert [(x.label, x.recall_a, x.recall_b) for x in comparison(a, b).classes()] == [
        ("cat", 0.5, 0.5),
        ("dog", 1.0, 1.0),
    ]


def test_images_that_one_model_could_not_read_are_left_out() -> None:
    """Rows would be matched with those of other images."""
    a, b = evaluation([0, 1, 0, 1], [0, 1, 0, 1]), evaluation([0, 0, 1], [0, 0, 0])
    object.__setattr__(b, "indices", np.array([0, 2, 3], np.int32))
    got = Comparison(a, b, 1, 0, 1.0)
    assert got.count == 3
    assert got.loss == pytest.approx(100 / 3)
    assert [x.index for x in got.flips()] == [3]


@pytest.mark.parametrize(
    ("lost", "gained", "max_loss", "worse", "word"),
    [
        (0, 0, None, False, "not worse"),
        (3, 0, None, False, "not worse"),  # p = 0.25
        (12, 1, None, True, "worse"),
        (1, 12, None, False, "better"),
        (3, 0, 0.0, True, "worse"),
        (3, 0, 1.5, False, "not worse"),  # exactly the largest accepted loss
        (4, 0, 1.5, True, "worse"),
        (0, 0, 0.0, False, "not worse"),
        (1, 12, 0.0, False, "better"),
    ],
)
def test_verdict(lost: int, gained: int, max_loss: float | None, worse: bool, word: str) -> None:
    """It decides whether a model goes into service."""
    targets = [0] * 200
    a = evaluation(targets, [1] * gained + [0] * (200 - gained))
    b = evaluation(targets, [0] * (200 - lost) + [1] * lost)
    got = comparison(a, b, max_loss)
    assert (got.only_a, got.only_b, got.worse) == (lost, gained, worse)
    assert got.loss == pytest.approx((lost - gained) / 2)
    assert got.verdict.startswith(f"B is {word} than A: ")


@pytest.mark.parametrize("max_loss", [-1, 100, float("nan"), True, "1"])
def test_wrong_max_loss(max_loss: object, tmp_path: Path) -> None:
    """Refused before anything runs."""
    with pytest.raises(InputError, match="max_loss must be from 0 to less than 100"):
        compare("a", "b", tmp_path, max_loss=max_loss)  # pyright: ignore[reportArgumentType]


def models(folder: Path) -> tuple[Path, Path, ResNeXt]:
    """Two model files: one knows cats from dogs, the other answers always the same."""
    card = Card(LABELS, Preprocessing(24, 24))
    good, bad = tiny_network(card=card), tiny_network(card=card)
    for model in (good, bad):
        model.fc.weight.data.zero_()
    bad.fc.bias.data.copy_(good.fc.bias.data.new_tensor([1.0, 0.0]))
    save(bad, folder / "bad.safetensors")
    return folder / "good.safetensors", folder / "bad.safetensors", good


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code is what a pipeline reads; the sheet and the JSON are what a person reads."""
    photos = photo_folder(tmp_path / "photos")
    good, bad, network = models(tmp_path)
    train_last_layer(network, photos)
    save(network, good)
    sheet, numbers = tmp_path / "flips.png", tmp_path / "numbers.json"
    given = ("compare", good, bad, photos, "--device", "cpu", "--sheet", sheet, "--json", numbers)
    code, out, _ = run_cli(capsys, monkeypatch, *given)
    assert code == 1
    assert "B is worse than A: 50.00 points lost on 24 images" in out
    assert "12 images got another class" in out
    assert "Only A is right on 12 images, only B on 0" in out
    content = json.loads(numbers.read_text())
    assert (content["worse"], content["loss"], len(content["flips"])) == (True, 50.0, 12)
    assert {flip["effect"] for flip in content["flips"]} == {"lost"}
    assert min(content["images_per_second"]) > 0
    with Image.open(sheet) as picture:
        assert picture.width == 5 * 188 + 20
    code, out, _ = run_cli(capsys, monkeypatch, *given[:6], "--max-loss", 60)
    assert (code, "B is not worse than A" in out) == (0, True)
    code, out, _ = run_cli(capsys, monkeypatch, "compare", bad, good, photos, "--device", "cpu")
    assert (code, "B is better than A" in out) == (0, True)
    same = ("compare", good, good, photos, "--device", "cpu", "--sheet", tmp_path / "no.png")
    code, out, _ = run_cli(capsys, monkeypatch, *same)
    assert (code, "was not written" in out, (tmp_path / "no.png").exists()) == (0, True, False)
    code, _, err = run_cli(capsys, monkeypatch, "compare", good, bad, photos, "--max-loss", -1)
    assert (code, err.count("\n")) == (2, 1)


def train_last_layer(network: ResNeXt, photos: Path) -> None:
    """Set the last layer to the difference of the classes' mean embeddings."""
    import torch

    from resnext.inference.engines.torch import TorchRunner
    from resnext.prediction.images import to_pixels
    from resnext.prediction.inputs import expand_images

    assert network.card
    preprocessing = network.card.preprocessing
    x = np.stack([to_pixels(*one, preprocessing) for one in expand_images(photos)])
    embeddings = torch.from_numpy(TorchRunner(network).pixels(x)[1])
    means = embeddings.view(2, 12, -1).mean(1)
    network.fc.weight.data.copy_(means)
    network.fc.bias.data.copy_(-means.square().sum(1) / 2)


def test_draw_flips() -> None:
    """A filled mark stands at the right answer, an empty one at the wrong answer."""
    picture = Image.new("RGB", (30, 20), "#808080")
    before, after = Prediction("a", ("cat",), (0.9,)), Prediction("a", ("dog",), (0.8,))
    drawn = draw_flips([picture], ["dog"], [before], [after])
    first, second = (drawn.getpixel((40, 20 + 168 + 6 + 28 + 9 + dy)) for dy in (0, 20))
    assert first == (255, 255, 255)
    assert second == (47, 111, 222)
