"""The command line: every mistake is one clear line and exit code 2."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_cli
from PIL import Image

import resnext

REQUIRED = ("info", "train", "evaluate", "predict")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of an untrained network for three kinds of pets."""
    torch.manual_seed(0)
    network = resnext.create("resnext11_8x16d", num_classes=3)
    how = resnext.Preprocessing(size=32, resize=32)
    network.card = resnext.Card(labels=("cat", "dog", "fish"), preprocessing=how)
    resnext.save(network, tmp_path / "pets.safetensors")
    return tmp_path / "pets.safetensors"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images of each of two kinds of pets."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(2):
            image = Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8))
            image.save(tmp_path / "photos" / label / f"{i}.jpg")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("trian", 'Did you mean "train"'),
        ("info resnext51_32x4d", "Did you mean resnext50_32x4d"),
        ("info resnext50_32x4d --size 0", "must have at least 1 pixels"),
        ("info resnext50_32x4d --size big", 'unable to convert "big" into int'),
        ("info nothing.safetensors", "nothing.safetensors does not exist"),
        ("info FOLDER", "is a folder without model.safetensors"),
        ("info TEXT", "is not a file of weights"),
        ("info --colour red", "Unknown option: --colour"),
        ("train", "DATA requires an argument"),
        ("train nowhere", "nowhere does not exist. Give a folder of class folders"),
        ("train EMPTY", "has no class folders"),
        ("train TEXT", "is a file"),
        ("train PHOTOS --model resnext5", "No variant is called 'resnext5'"),
        ("train PHOTOS/cat", "has no class folders"),
        ("train PHOTOS --size 16", "size must be at least 32 pixels"),
        ("train PHOTOS --epochs 0", "epochs must be a whole number from 1"),
        ("train PHOTOS --recipe best", "No recipe is called 'best'"),
        ("train PHOTOS --device toaster", "device 'toaster' cannot be used"),
        ("train PHOTOS --out MODEL", "exists. Choose another name"),
        ("train digits --model resnext50_32x4d", "size must be at least 32 pixels"),
        ("evaluate MODEL", "DATA requires an argument"),
        ("evaluate TEXT PHOTOS", "is not a file of weights"),
        ("evaluate MODEL EMPTY", "has no class folders"),
        ("evaluate MODEL digits", "the model has cat, dog, fish"),
        ("catalog --licence gpl", "licence must be commercial, apache-2.0"),
        ("catalog --min-top1 high", 'unable to convert "high" into float'),
        ("catalog --plot FOLDER/a.txt", "must be a .png, .svg or .pdf"),
        ("convert MODEL", "PATH requires an argument"),
        ("convert MODEL FOLDER/a.pth --to keras", "--to"),
        ("convert MODEL FOLDER/a.pth --to torchvision", "has networks of four stages, not 3"),
        ("convert MODEL MODEL", "exists. Choose another name"),
        ("convert MODEL FOLDER/a.safetensors --labels TEXT", "1 labels are given for 3 classes"),
        ("convert nothing.pth FOLDER/a.safetensors", "nothing.pth does not exist"),
        ("doctor nothing.pth", "nothing.pth does not exist"),
        ("push MODEL cats", "must be owner/name"),
        ("predict resnext50_32x4d PHOTOS", "19 public checkpoints; choose one"),
        ("predict MODEL", "no images to classify"),
        ("predict MODEL nowhere.jpg", "nowhere.jpg: no such file"),
        ("predict MODEL TEXT", "not a readable image"),
        ("predict MODEL EMPTY", "holds no image"),
        ("predict MODEL PHOTOS --top 4", "top must be from 1 to the 3 classes"),
        ("predict MODEL PHOTOS --limit 0", "--limit must be at least 1"),
        ("predict MODEL PHOTOS --batch-size 0", "batch_size must be at least 1"),
        ("predict MODEL PHOTOS --sheet FOLDER/sheet.xyz", "cannot be written"),
    ],
)
def test_mistakes_end_in_one_line(
    command: str,
    message: str,
    model: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A traceback helps nobody who mistyped a name, and nothing may be lost."""
    text = tmp_path / "notes.txt"
    text.write_text("not a model")
    (tmp_path / "empty").mkdir()
    places = {"MODEL": model, "PHOTOS": photos, "TEXT": text, "EMPTY": tmp_path / "empty"}
    for name, place in {**places, "FOLDER": tmp_path}.items():
        command = command.replace(name, str(place))
    monkeypatch.chdir(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code, _, err = run_cli(capsys, monkeypatch, *command.split())
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("resnext: ")
    assert message in err
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks for our mistake needs the traceback."""
    with pytest.raises(resnext.ResNeXtError, match="No variant"):
        run_cli(capsys, monkeypatch, "info", "resnext5", "--debug")


def test_info_of_a_name_and_a_file(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Totals must be those of the network, at the size asked for or stored."""
    code, out, _ = run_cli(capsys, monkeypatch, "info", "resnext_50_32x4d")
    assert code == 0
    assert "25,028,904" in out
    assert "4.23" in out
    _, out, _ = run_cli(capsys, monkeypatch, "info", "resnext50_32x4d", "--size", "64")
    assert "2,048 × 2×2" in out
    _, out, _ = run_cli(capsys, monkeypatch, "info", model)
    assert "32×32" in out
    _, out, _ = run_cli(capsys, monkeypatch, "info")
    assert all(name in out for name in resnext.variants())


def test_evaluate_and_predict(
    model: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The commands must agree with the functions."""
    accuracy = resnext.evaluate(model, photos).accuracy
    code, out, _ = run_cli(capsys, monkeypatch, "evaluate", model, photos)
    assert code == 0
    assert f"accuracy {accuracy:.2%}" in " ".join(out.split())
    sheet = tmp_path / "sheet.png"
    code, out, _ = run_cli(
        capsys, monkeypatch, "predict", model, photos, "--sheet", sheet, "--top", 2
    )
    assert code == 0
    for prediction in resnext.predict(model, photos, top=2):
        assert f"{prediction.probabilities[0]:.2%}" in out
    with Image.open(sheet) as image:
        assert image.width > 4 * 150


def test_train_then_everything(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole job from the command line, with the file as the only link."""
    out = photos.parent / "new.safetensors"
    options = "--model resnext11_8x16d --size 16 --epochs 1 --batch-size 2 --workers 0"
    code, text, err = run_cli(capsys, monkeypatch, "train", photos, "--out", out, *options.split())
    assert code == 0, err
    assert "epoch   1/1" in err
    assert "images/s" in err
    assert "of the validation images right" in text
    assert run_cli(capsys, monkeypatch, "evaluate", out, photos)[0] == 0
    assert run_cli(capsys, monkeypatch, "predict", out, photos)[0] == 0


@pytest.mark.parametrize("command", ["", *REQUIRED])
def test_help_documents_every_option(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option without a word of help is an option nobody finds."""
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run_cli(capsys, monkeypatch, *command.split(), "--help")
    assert code == 0
    rows = [line.strip("│ ") for line in out.splitlines() if line.startswith("│")]
    options = [row for row in rows if row.startswith(("--", "*"))]
    assert options or command == ""
    for row in options:
        assert len(row.split("  ", 1)[-1].strip()) > 5, row


def children_seconds() -> float:
    """What processes that have ended took of the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_runs_as_a_module() -> None:
    """`resnext --help` takes under 0.4 s, so it must not import torch.

    Of the processor's time: others may run beside it.
    """
    seconds: list[float] = []
    for _ in range(3):
        began = children_seconds()
        done = subprocess.run(
            [sys.executable, "-m", "resnext", "--help"], capture_output=True, text=True, check=True
        )
        seconds.append(children_seconds() - began)
    assert "evaluate" in done.stdout
    assert min(seconds) < 0.4


def test_help_imports_nothing_large() -> None:
    """Neither torch nor numpy, nor a parser of Markdown, which the page does not need."""
    command = [sys.executable, "-X", "importtime", "-m", "resnext", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "resnext.cli" in imported
    assert not imported & {"torch", "numpy", "PIL", "markdown_it"}


def test_catalog(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are shown whole, because they are copied; the best for its cost is marked."""
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run_cli(
        capsys, monkeypatch, "catalog", "--licence", "commercial", "--max-gmacs", 5
    )
    assert code == 0
    assert "ResNeXt50_32X4D_Weights.IMAGENET1K_V2" in out
    assert "cc-by-nc" not in out
    marked = [line for line in out.splitlines() if "●" in line]
    assert len(marked) == 1
    assert "81.20" in marked[0]


def test_doctor_and_convert(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What doctor tells to type next must work when it is typed."""
    bare = tmp_path / "bare.pth"
    loaded = resnext.load(model)
    torch.save(loaded.state_dict(), bare)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    code, out, _ = run_cli(capsys, monkeypatch, "doctor", bare)
    assert code == 0
    assert "every number is finite" in out
    command = next(line for line in out.splitlines() if "resnext convert" in line)
    Path("classes.txt").write_text("cat\ndog\nfish\n")
    code, out, err = run_cli(capsys, monkeypatch, *command.split("resnext ")[1].split())
    assert (code, err) == (0, "")
    assert "Largest difference of an answer 0 of" in out
    converted = resnext.load("bare-own.safetensors")
    assert isinstance(converted, resnext.ResNeXt)
    assert converted.card is not None
    assert converted.card.labels == ("cat", "dog", "fish")
    bare.write_bytes(bare.read_bytes()[:1000])
    code, out, _ = run_cli(capsys, monkeypatch, "doctor", bare)
    assert code == 1
    assert "✗" in out


def test_labels_cannot_command_the_terminal(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Labels are other people's text: markup once crashed the table, and colours got through."""
    config = resnext.ResNeXtConfig((1,), 2, 8, num_stages=1, channels=(16,), num_classes=2)
    about = {"CLASSES": ("[/x]", "\x1b[31m[red]tomato")}
    state = resnext.ResNeXt(config).state_dict()
    folder = tmp_path / "sp ace"
    folder.mkdir()
    torch.save({"state_dict": state, "meta": about}, folder / "-it's.pth")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(folder)
    code, out, err = run_cli(capsys, monkeypatch, "predict", "./-it's.pth", photos, "--top", 2)
    assert (code, "[/x]" in out, "[red]tomato" in out, "\x1b" in out + err) == (
        0,
        True,
        True,
        False,
    )
    code, out, _ = run_cli(capsys, monkeypatch, "doctor", "./-it's.pth")
    assert code == 0
    assert "\x1b" not in out
    command = next(line for line in out.splitlines() if "resnext convert" in line)
    words = shlex.split(command.split("resnext ")[1])
    code, _, err = run_cli(capsys, monkeypatch, *words)
    assert (code, err) == (0, "")


def test_info_of_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public checkpoint has a size of its own, a backbone no classifier."""
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run_cli(capsys, monkeypatch, "info", "resnext50_32x4d.a1_in1k")
    assert code == 0
    assert "288×288" in out
    state = resnext.create("resnext26_32x4d").state_dict()
    trunk = {f"backbone.{n}": x for n, x in state.items() if not n.startswith("fc.")}
    torch.save(trunk, tmp_path / "a.pth")
    code, out, _ = run_cli(capsys, monkeypatch, "info", tmp_path / "a.pth")
    assert code == 0
    assert "classifier" not in out
    parameters = sum(x.numel() for n, x in trunk.items() if n.endswith(("weight", "bias")))
    assert f"{parameters:,}" in out
