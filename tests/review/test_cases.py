"""What a review shows, and in which order."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import resnext
from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig
from resnext.cli.app import app
from resnext.errors import DataError
from resnext.evaluation.label_doubts import Doubt, write_doubts
from resnext.inference import open_runner
from resnext.review.cases import Answers, Case, ask, find_cases, open_collection
from resnext.review.server import ReviewServer
from resnext.review.session import Session
from resnext.system.progress import PlainReporter, SilentReporter

LABELS = ("cat", "dog")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images of each class, of smooth noise, in which copies can be found."""
    for label in LABELS:
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(4):
            rng = np.random.default_rng([i, label == "cat"])
            coarse = Image.fromarray(rng.integers(0, 255, (9, 9, 3)).astype(np.uint8))
            picture = coarse.resize((128, 128), Image.Resampling.BICUBIC)
            picture.save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


def cases(photos: Path, p: Any, **options: Any) -> list[Case]:
    """The cases of a review, with probabilities of cat and dog for each image."""
    collection = open_collection(photos, LABELS)
    probabilities = np.asarray(p, np.float32)
    embeddings = np.zeros((len(probabilities), 1), np.float32)
    answers = Answers(np.log(probabilities), probabilities, embeddings)
    labels = {path: label for path, _, label in collection.classes()}
    usual: dict[str, Any] = {"threshold": None, "doubts": None, "progress": SilentReporter()}
    return find_cases(collection, answers, labels, **usual | options)


def names(found: list[Case]) -> list[tuple[Any, ...]]:
    """Kind, files below the data, and suggestion of each case."""
    return [
        (c.kind, *("/".join(Path(path).parts[-2:]) for path in c.paths), c.suggestion)
        for c in found
    ]


SURE = [[0.99, 0.01]] * 4 + [[0.01, 0.99]] * 4


def test_doubts_come_before_unsure_ones(photos: Path, tmp_path: Path) -> None:
    """By the list of training where there is one, else by the model."""
    p = [*SURE[:3], [0.02, 0.98], [0.55, 0.45], [0.3, 0.7], *SURE[6:]]
    found = cases(photos, p, threshold=0.75)
    assert names(found) == [
        ("doubt", "cat/3.png", "dog"),
        ("unsure", "dog/0.png", "cat"),
        ("unsure", "dog/1.png", None),
    ]
    assert [label for label, _ in found[0].classes] == ["dog", "cat"]
    doubts = [
        Doubt("train", 0, str(photos / "dog" / "2.png"), "dog", "cat", 0.9),
        Doubt("train", 0, str(photos / "dog" / "3.png"), "cat", "dog", 0.9),  # was changed since
    ]
    write_doubts(tmp_path / "doubts.csv", doubts)
    found = cases(photos, SURE, doubts=tmp_path / "doubts.csv")
    assert names(found) == [("doubt", "dog/2.png", "cat")]


def test_a_network_that_has_not_learned_says_so(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With or without an empty list of training; else one looks for a list in vain."""
    p = [[0.1, 0.9]] * 4 + [[0.2, 0.8]] * 4
    write_doubts(tmp_path / "doubts.csv", [])
    for doubts in (None, tmp_path / "doubts.csv"):
        assert cases(photos, p, threshold=0.0, doubts=doubts, progress=PlainReporter()) == []
        assert (
            "No label is shown as doubtful. The network is clear about" in capsys.readouterr().err
        )


def test_a_list_of_other_images_is_refused(photos: Path, tmp_path: Path) -> None:
    """Its paths are relative to the folder of the training; elsewhere, it would seem empty."""
    write_doubts(tmp_path / "doubts.csv", [Doubt("train", 0, "p/1.png", "cat", "dog", 0.9)])
    with pytest.raises(DataError, match=r"is about other images, such as .*p/1\.png\. Start in"):
        cases(photos, SURE, doubts=tmp_path / "doubts.csv")
    write_doubts(tmp_path / "doubts.csv", [])
    assert cases(photos, SURE, doubts=tmp_path / "doubts.csv") == []


def test_copies_are_found_in_whatever_class(photos: Path) -> None:
    """Equal files, and the same picture in another size, quality and class."""
    shutil.copy(photos / "cat" / "0.png", photos / "cat" / "same.png")
    smaller = Image.open(photos / "cat" / "1.png").resize((80, 80))
    smaller.save(photos / "dog" / "small.jpg", quality=60)
    found = cases(photos, [SURE[0]] * 5 + [SURE[-1]] * 5)
    assert names(found) == [
        ("duplicate", "cat/0.png", "cat/same.png", None),
        ("duplicate", "cat/1.png", "dog/small.jpg", None),
    ]
    assert [case.note for case in found] == [
        "Equal files",
        "Nearly the same picture in two classes",
    ]


@pytest.mark.parametrize("size", [0, 8, 47])
def test_small_or_damaged_images_alone(photos: Path, size: int) -> None:
    """None of them is compared by its content: equal files are found, and nothing fails."""
    for path in photos.glob("*/*.png"):
        if size:
            Image.open(path).resize((size, size)).save(path)
        else:
            path.write_bytes(b"no image")
    shutil.copy(photos / "cat" / "0.png", photos / "dog" / "4.png")
    p = [[0.9, 0.1]] * 4 + [[0.1, 0.9]] * 5 if size else [[np.nan, np.nan]] * 9
    found = [case.kind for case in cases(photos, p)]
    assert found == (["duplicate"] if size else [])


def test_copies_are_found_among_deep_images(tmp_path: Path) -> None:
    """Their upper 8 bits alone are black, so no pair was found, and a warning was printed."""
    rng = np.random.default_rng(0)
    for i in range(4):
        values = np.kron(rng.integers(0, 250, (8, 8)), np.ones((16, 16))).astype(np.uint16)
        folder = tmp_path / "deep" / LABELS[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / f"{i}.png")
        if i == 0:
            Image.fromarray(values[::2, ::2].copy()).save(folder / "copy.png")
    found = cases(tmp_path / "deep", [[0.9, 0.1]] * 5, values=(0, 250))
    assert [{*map(os.path.basename, c.paths)} for c in found if c.kind == "duplicate"] == [
        {"0.png", "copy.png"}
    ]


def test_unknown_images_are_an_input(photos: Path) -> None:
    """Scores of another part of the library, the highest first."""
    unknown = {str(photos / "dog" / "1.png"): 0.2, str(photos / "cat" / "2.png"): 0.9}
    found = cases(photos, SURE, unknown=unknown)
    assert names(found) == [("unknown", "cat/2.png", None), ("unknown", "dog/1.png", None)]


def test_a_model_is_asked_about_every_readable_image(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Probabilities in the order of the images, with the temperature of the card."""
    config = ResNeXtConfig((1, 1), 2, 8, num_classes=2, channels=(16, 32), num_stages=2)
    network = ResNeXt(config).eval()
    network.card = Card(LABELS, Preprocessing(32, 32), temperature=2.0)
    (photos / "cat" / "1.png").write_bytes(b"no image")
    collection = open_collection(photos, LABELS)
    runner = open_runner(network, device="cpu")
    answers = ask(runner, collection.paths, PlainReporter())
    line = f"1 image could not be read, such as {collection.paths[1]}: not a "
    assert capsys.readouterr().err.startswith(line)
    assert np.isnan(answers.probabilities).any(1).tolist() == [i == 1 for i in range(8)]
    other = resnext.predict(network, collection.paths[5], top=2, device="cpu")[0]
    wanted = dict(zip(other.labels, other.probabilities, strict=True))
    assert answers.probabilities[5] == pytest.approx([wanted[x] for x in LABELS], abs=1e-6)
    assert answers.embeddings.shape == (8, network.num_features)
    assert [c.kind for c in cases(photos, answers.probabilities, threshold=1.0)] == ["unsure"] * 7
    with pytest.raises(DataError, match=r"None of 2 images could be read\. .*1\.png: not a"):
        ask(runner, collection.paths[1:2] * 2, SilentReporter())


def test_with_an_index_unknown_images_and_neighbours_are_shown(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the index says must reach the page: unknown images, and what each image is like."""
    config = ResNeXtConfig((1, 1), 2, 8, num_classes=2, channels=(16, 32), num_stages=2)
    network = ResNeXt(config).eval()
    network.card = Card(LABELS, Preprocessing(32, 32), threshold=1.0, unknown_threshold=0.0)
    monkeypatch.chdir(tmp_path)
    resnext.save(network, "m.safetensors")
    app(["index", "photos", "--model", "m.safetensors"], exit_on_error=False, result_action=None)
    (photos / "cat" / "0.png").write_bytes(b"no image")
    sessions: list[Session] = []

    def serve(server: ReviewServer) -> None:
        sessions.append(server.session)

    monkeypatch.setattr(ReviewServer, "serve_forever", serve)
    command = ["review", "photos", "--model", "m.safetensors", "--no-browser"]
    app(command, exit_on_error=False, result_action=None)
    (session,) = sessions
    kinds = [case.kind for case in session.cases]
    assert kinds.count("unknown") == 7
    assert session.state()["similar"]
    case = session.cases[kinds.index("unknown")]
    found = session.similar(kinds.index("unknown"))
    assert [Path(one.name).parent.name for one in found] == [one.label for one in found]
    assert {one.label for one in found} == {"cat", "dog"}
    assert len(found) == 6
    assert all(Path(one.name).resolve() != Path(case.paths[0]) for one in found)
    Path("m.index").unlink()
    app(command, exit_on_error=False, result_action=None)
    assert "unknown" not in [case.kind for case in sessions[1].cases]
    assert sessions[1].similar(0) == []


def test_images_in_arrays_are_refused() -> None:
    """A list of labels can only name files."""
    with pytest.raises(DataError, match="inside larger files, which a list of labels cannot name"):
        open_collection("digits", None)


def test_the_command_serves_what_it_found(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the command line to the list: the parts fit together."""
    config = ResNeXtConfig((1, 1), 2, 8, num_classes=2, channels=(16, 32), num_stages=2)
    network = ResNeXt(config).eval()
    network.card = Card(LABELS, Preprocessing(32, 32), threshold=1.0)
    monkeypatch.chdir(tmp_path)
    resnext.save(network, "m.safetensors")

    def serve(server: ReviewServer) -> None:
        assert {case.kind for case in server.session.cases} >= {"unsure"}
        server.session.decide(0, ["dog"])
        raise KeyboardInterrupt

    monkeypatch.setattr(ReviewServer, "serve_forever", serve)
    command = ["review", "photos", "--model", "m.safetensors", "--no-browser"]
    with pytest.raises(KeyboardInterrupt):
        app(command, exit_on_error=False)
    assert "labels.csv: 1 of 8 cases decided" in capsys.readouterr().out
    (tmp_path / "labels.csv").write_text("path,label\nphotos/cat/0.png,cow\n")
    with pytest.raises(DataError, match=r"labels\.csv has a class 'cow'; known are cat, dog"):
        app(command, exit_on_error=False)
