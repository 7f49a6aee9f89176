"""Images that are like none of the classes: the score, its threshold, and where it is shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from explanation_cases import in_form
from helpers import photo_folder, run_cli
from PIL import Image
from training_runs import quick

import resnext
from resnext import Card
from resnext.errors import ConfigError, InputError
from resnext.inference import open_runner
from resnext.neighbours import open_index
from resnext.neighbours.model_files import index_path
from resnext.neighbours.unknown import UnknownScore, bank_rows
from resnext.prediction import predict_files
from resnext.prediction.contact_sheet import draw_sheet
from resnext.prediction.images import Prediction
from resnext.training import indexing
from resnext.training.run_state import TrainState

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that `train` has indexed, beside the folder `photos`."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    photo_folder(folder / "photos", ("blue", "red"), count=60)
    quick(folder / "photos", folder / "m.safetensors", val_fraction=0.4)
    return folder / "m.safetensors"


@pytest.mark.parametrize(("images", "classes", "k"), [(30, 2, 5), (80, 2, 6), (700, 2, 50)])
def test_the_score_is_a_distance_and_the_energy(images: int, classes: int, k: int) -> None:
    """Against a loop in double precision; both parts vary equally over the images it is fitted to.

    The nearest images that are passed over must belong to the same class, so they are fewer in
    small sets.
    """
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((images, 8)).astype(np.float32)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    rows, logits = rng.random((200, 8), np.float32) * 7, rng.random((200, classes), np.float32)
    cosines = [[float(x @ y) / np.linalg.norm(x) for y in bank.astype(float)] for x in rows]
    distances = [1 - sorted(some)[-k] for some in cosines]
    np.testing.assert_allclose(UnknownScore(bank)(logits, rows), distances, atol=1e-5)
    energies = [-np.log(np.exp(some.astype(float)).sum()) for some in logits]
    wanted = np.array(distances) + np.std(distances) / np.std(energies) * np.array(energies)
    score = UnknownScore(bank).fitted(logits, rows)
    assert score is not None
    np.testing.assert_allclose(score(logits, rows), wanted, atol=1e-4)
    assert (score(logits, rows) > score.threshold).sum() == 10
    assert UnknownScore(bank[:2])(logits, rows).shape == (200,)  # fewer than five images


def test_constant_logits_have_no_weight() -> None:
    """A classifier that was never trained gives the same logits to all images."""
    rng = np.random.default_rng(0)
    bank, rows = np.eye(8, dtype=np.float32), rng.random((30, 8), np.float32)
    score = UnknownScore(bank).fitted(np.zeros((30, 3), np.float32), rows)
    assert score is not None
    assert score.weight == 0


def test_few_images_fit_no_threshold() -> None:
    """The 95 % quantile of three images says nothing."""
    few = np.ones((19, 3), np.float32)
    assert UnknownScore(np.eye(3, dtype=np.float32)).fitted(few, few) is None


def test_the_bank_is_spread_over_the_index() -> None:
    """The images of an index are sorted by class: a bank of the first would know one class."""
    assert bank_rows(10, 512) == [*range(10)]
    rows = bank_rows(100_000, 2048)
    assert len(rows) == 2_000_000 // 2048
    assert rows[0] == 0
    assert rows[-1] > 99_000
    assert len({*np.diff(rows).tolist()}) <= 2


def test_training_fits_the_threshold(trained: Path) -> None:
    """Card and index must agree, and the index must belong to the file that was saved last."""
    card = resnext.load(trained).card
    assert card is not None
    score = open_index(trained).unknown_score(card)
    assert score is not None
    assert (card.unknown_threshold, card.unknown_weight) == (score.threshold, score.weight)
    assert score.weight > 0
    assert len(open_index(trained)) == 72
    val = resnext.data.open_splits(trained.parent / "photos", val_fraction=0.4).val
    known = resnext.predict(trained, [str(x) for x in val.images])
    assert sum(bool(one.unknown) for one in known) == 2  # of 48
    assert [one.unknown_threshold for one in known] == [card.unknown_threshold] * len(val)


def test_the_threshold_of_the_card_comes_first(trained: Path, tmp_path: Path) -> None:
    """Users can change it there; the index keeps what it was fitted to."""
    network = resnext.load(trained)
    assert isinstance(network, resnext.ResNeXt)
    assert network.card is not None
    values = {**network.card.to_dict(), "unknown_threshold": -1e9}
    network.card = Card.from_dict(values)
    resnext.save(network, tmp_path / "m.safetensors")
    index_path(tmp_path / "m.safetensors").write_bytes(index_path(trained).read_bytes())
    photo = trained.parent / "photos" / "red" / "000.jpg"
    assert resnext.predict(tmp_path / "m.safetensors", photo)[0].unknown is True
    with pytest.raises(ConfigError, match="unknown_threshold must be finite"):
        Card(unknown_threshold=float("nan"))


def test_without_an_index_nothing_is_said(trained: Path, tmp_path: Path) -> None:
    """`unknown` is neither true nor false then, and the table has no such column."""
    (tmp_path / "m.safetensors").write_bytes(trained.read_bytes())
    photo = trained.parent / "photos" / "red" / "000.jpg"
    assert resnext.predict(tmp_path / "m.safetensors", photo)[0].unknown is None
    predict_files(open_runner(tmp_path / "m.safetensors"), photo, tmp_path / "t.csv")
    assert "unknown" not in (tmp_path / "t.csv").read_text()


def test_tables_have_a_column(trained: Path, tmp_path: Path) -> None:
    """The same answers as `predict`, in every format."""
    photos = trained.parent / "photos"
    Image.fromarray(np.full((24, 28, 3), 255, np.uint8)).save(photos / "red" / "white.png")
    try:
        wanted = [one.unknown for one in resnext.predict(trained, photos)]
        runner, index = open_runner(trained), open_index(trained)
        for name in ("t.csv", "t.jsonl"):
            predict_files(runner, photos, tmp_path / name, index=index)
    finally:
        (photos / "red" / "white.png").unlink()
    assert {True, False} <= {*wanted}
    with (tmp_path / "t.csv").open(newline="") as file:
        assert [row["unknown"] == "true" for row in csv.DictReader(file)] == wanted
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    assert [json.loads(line)["unknown"] for line in lines] == wanted


def test_a_table_begun_without_the_index_is_not_continued_with_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of its rows would lack the column."""
    photos, runner, index = trained.parent / "photos", open_runner(trained), open_index(trained)

    def failing(*_: object) -> None:
        raise KeyboardInterrupt

    for first, second in ((index, None), (None, index)):
        with monkeypatch.context() as patch:
            patch.setattr("resnext.prediction.files.finish", failing)
            with pytest.raises(KeyboardInterrupt):
                predict_files(runner, photos, tmp_path / "t.csv", index=first)
        with pytest.raises(InputError, match="was started with another index"):
            predict_files(runner, photos, tmp_path / "t.csv", index=second)
        predict_files(runner, photos, tmp_path / "t.csv", index=first)
        (tmp_path / "t.csv").unlink()


def test_commands_mark_unknown_images(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the table with a line of explanation, and in the file."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((24, 28, 3), 255, np.uint8)).save("white.png")
    code, out, _ = run_cli(capsys, monkeypatch, "predict", trained, "white.png")
    assert code == 0
    assert "(unknown)" in out
    assert "unknown marks 1 of 1 images that are like none of the classes" in out
    code, _, _ = run_cli(capsys, monkeypatch, "predict", trained, "white.png", "--out", "t.jsonl")
    assert (code, json.loads(Path("t.jsonl").read_text())["unknown"]) == (0, True)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_give_the_same_scores(trained: Path, engine: str) -> None:
    """They have only logits and embeddings, and no torch."""
    network = resnext.load(trained)
    assert isinstance(network, resnext.ResNeXt)
    index, photo = open_index(trained), trained.parent / "photos" / "red" / "000.jpg"
    (wanted,) = resnext.predict(trained, photo, like=2)
    (found,) = resnext.predict(in_form(network.eval(), engine), photo, like=2, index=index)
    assert found.unknown_score == pytest.approx(wanted.unknown_score, abs=1e-3)
    assert [one.row for one in found.like] == [one.row for one in wanted.like]


def test_sheets_mark_unknown_images() -> None:
    """Only those that are: None is not True."""
    picture = Image.new("RGB", (50, 50), "white")

    def red(score: float | None) -> bool:
        one = Prediction("a", ("cat",), (0.9,), None, (), score, 1.0)
        sheet = np.asarray(draw_sheet([picture], [one])).astype(int)
        return bool(((sheet[..., 0] > 150) & (sheet[..., 1] < 80)).any())

    assert [red(score) for score in (2.0, 1.0, None)] == [True, False, False]


@pytest.mark.parametrize("why", ["asked", "slow", "many"])
def test_runs_that_index_nothing(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --no-index silently, and otherwise with the command that writes it."""
    photo_folder(tmp_path / "photos", ("blue", "red"), count=6)
    if why == "slow":
        monkeypatch.setattr(indexing, "_limit", lambda state: 0.0)
    if why == "many":
        monkeypatch.setattr(indexing, "_MOST_IMAGES", 5)
    options = {"index": False} if why == "asked" else {}
    quick(tmp_path / "photos", tmp_path / "m.safetensors", progress=True, **options)
    assert not index_path(tmp_path / "m.safetensors").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert ("writes it" in said) == (why != "asked")


def test_a_run_is_not_failed_by_its_index(tmp_path: Path) -> None:
    """The model is finished by then, and hours of training are in it."""
    photo_folder(tmp_path / "photos", ("blue", "red"), count=6)
    (tmp_path / "m.index").mkdir()
    quick(tmp_path / "photos", tmp_path / "m.safetensors")
    assert (tmp_path / "m.run" / "report.html").exists()


def test_an_index_takes_a_small_share_of_a_run() -> None:
    """And nothing that a time budget does not have."""
    assert indexing._limit(TrainState(seconds={"training": 10.0})) == 20
    assert indexing._limit(TrainState(seconds={"training": 1000.0})) == 50
    assert indexing._limit(TrainState(seconds={"training": 100.0}, budget=107.0)) == 7
    assert indexing._limit(TrainState(seconds={"training": 100.0}, budget=90.0)) == 0


@pytest.mark.parametrize("index", [True, False])
def test_the_report_of_a_run_shows_neighbours(tmp_path: Path, index: bool) -> None:
    """The index must be written before the report, and only if it is wanted."""
    photo_folder(tmp_path / "photos", ("blue", "red"), count=30)
    for i in range(3):
        wrong = tmp_path / "photos" / "blue" / f"{i:03}.jpg"
        wrong.write_bytes((tmp_path / "photos" / "red" / f"{i + 10:03}.jpg").read_bytes())
    quick(tmp_path / "photos", tmp_path / "m.safetensors", val_fraction=0.4, index=index)
    report = (tmp_path / "m.run" / "report.html").read_text()
    assert "taken for" in report
    assert ("Like it" in report) == index
