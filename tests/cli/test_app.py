"""The command line: every mistake is one clear line and exit code 2."""

from __future__ import annotations

import io
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import photo_folder, run_cli, tiny_network
from PIL import Image

import resnext
from resnext.cli.app import main
from resnext.errors import Terminated

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
    return photo_folder(tmp_path / "photos", count=2)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("trian", 'Did you mean "train"'),
        ("info resnext51_32x4d", "Did you mean resnext50_32x4d"),
        ("info resnext50_32x4d --size 0", "must have at least 1 pixels"),
        ("info resnext50_32x4d --size big", '"big" is not a whole number.'),
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
        ("train PHOTOS --size 3.5", '--size: "3.5" is not a whole number.'),
        ("train PHOTOS --retries 0.6", '--retries: "0.6" is not a whole number.'),
        ("predict TEXT PHOTOS --top 1.5", '--top: "1.5" is not a whole number.'),
        ("bench --batch-size 1 --batch-size 2.5", '"2.5" is not a whole number.'),
        ("train PHOTOS --out .", ". is a folder. Give the name of a file"),
        ("train PHOTOS --config nothing.json", "nothing.json does not exist. Give a config file"),
        ("train PHOTOS --config TEXT", "notes.txt is not JSON"),
        ("train PHOTOS --config MODEL --model x", "Give --model or --config, not both"),
        ("train PHOTOS --config MODEL --weights x", "Give --config or --weights, not both"),
        ("train PHOTOS --model x --weights x", "Give --model or --weights, not both"),
        ("train PHOTOS --model MODEL", "Give a file of weights as weights (--weights)"),
        ("info nothing.json", "nothing.json does not exist. Give a config file"),
        ("bench nothing.py", "nothing.py does not exist. Give a config file"),
        ("train PHOTOS --model resnext50_32x4d --size 16", "size must be at least 32 pixels"),
        ("train PHOTOS --epochs 0", "epochs must be a whole number from 1"),
        ("train PHOTOS --recipe best", "No recipe is called 'best'"),
        ("train PHOTOS --recipe distill", "Use resnext distill TEACHER --data PHOTOS"),
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
        ("predict MODEL", "No images were given"),
        ("predict MODEL nowhere.jpg", "nowhere.jpg: no such file"),
        ("predict MODEL TEXT", "not a readable image"),
        ("predict MODEL EMPTY", "holds no image"),
        ("predict MODEL PHOTOS --top 4", "top must be from 1 to the 3 classes"),
        ("predict MODEL PHOTOS --limit 0", "--limit must be at least 1"),
        ("predict MODEL PHOTOS --batch-size 0", "batch_size must be at least 1"),
        ("predict MODEL PHOTOS --sheet FOLDER/sheet.xyz", "cannot be written"),
        ("predict MODEL digits", "the model has cat, dog, fish"),
        ("predict MODEL digits --out FOLDER/a.csv", "--out takes files and folders"),
        ("predict MODEL PHOTOS --out FOLDER/a.csv --limit 1", "--out takes files and folders"),
        ("predict MODEL PHOTOS --out FOLDER/a.csv --sheet a.png", "--out takes files and folders"),
        ("predict MODEL PHOTOS --out FOLDER/a.txt", "must end in .csv, .jsonl or .parquet"),
        ("predict MODEL PHOTOS --out FOLDER/a.csv --ray --embeddings a.npy", "with --ray"),
        ("predict MODEL PHOTOS --embeddings a.npy", "--embeddings needs --out FILE"),
        ("predict MODEL PHOTOS --workers 1", "--workers needs --out FILE"),
        ("predict MODEL PHOTOS --ray", "--ray needs --out FILE"),
        ("evaluate MODEL PHOTOS --json FOLDER", "is a folder. Give the name of a file"),
        ("evaluate MODEL PHOTOS --json TEXT/no/a.json", "cannot be written: TEXT: Not a directory"),
        ("bench MODEL --json TEXT/a.json", "Not a directory. Write somewhere else"),
        ("bench MODEL --plot TEXT/a.png", "Not a directory. Write somewhere else"),
        ("bench MODEL --plot FOLDER/a.gif", "must be a .png, .svg or .pdf file"),
        ("catalog --plot TEXT/a.png", "Not a directory. Write somewhere else"),
        ("convert MODEL TEXT/a.pth --to timm", "Not a directory. Write somewhere else"),
        ("predict MODEL PHOTOS --sheet TEXT/a.png", "Not a directory. Write somewhere else"),
        ("predict MODEL PHOTOS --sheet FOLDER/a.xyz", "give a suffix such as .png"),
        ("predict MODEL PHOTOS --out TEXT/a.csv", "Not a directory. Write somewhere else"),
        ("train PHOTOS --out TEXT/a.safetensors", "Not a directory. Write somewhere else"),
        ("optimize nothing.safetensors", "is not a file. A plan is saved next to a model file"),
        ("optimize FOLDER", "is not a file"),
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
    """A traceback does not help with a mistyped name, and no file may be changed."""
    text = tmp_path / "notes.txt"
    text.write_text("not a model")
    (tmp_path / "empty").mkdir()
    paths = {"MODEL": model, "PHOTOS": photos, "TEXT": text, "EMPTY": tmp_path / "empty"}
    for name, path in {**paths, "FOLDER": tmp_path}.items():
        command, message = command.replace(name, str(path)), message.replace(name, str(path))
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
    """To find a bug of ours, one needs the traceback."""
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
    assert "epoch 1, validation accuracy " in text
    assert run_cli(capsys, monkeypatch, "evaluate", out, photos)[0] == 0
    assert run_cli(capsys, monkeypatch, "predict", out, photos)[0] == 0


def test_a_config_file_stands_for_a_variant(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network without a name could be trained from Python only."""
    config = resnext.ResNeXtConfig(
        (1, 1), 2, 8, channels=(16, 32), num_stages=2, small_stem=True, norm="group", norm_groups=4
    )
    net, out = photos.parent / "net.json", photos.parent / "new.safetensors"
    net.write_text(config.to_json())
    code, text, _ = run_cli(capsys, monkeypatch, "info", net)
    assert (code, "norm='group'" in text) == (0, True)
    command = ["train", photos, "--config", net, "--out", out, "--size", 16, "--epochs", 1]
    for more in ([], ["--resume"]):
        code, _, err = run_cli(
            capsys, monkeypatch, *command, "--batch-size", 2, "--workers", 0, *more
        )
        assert code == 0, err
    assert "The run is complete" in err
    loaded = resnext.load(out)
    assert loaded.config == config.replace(num_classes=2)
    assert "ResNeXt(1, 1), 2×8d" in (photos.parent / "new.run" / "report.html").read_text()


@pytest.mark.parametrize("command", ["", *REQUIRED])
def test_help_documents_every_option(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option needs a help text."""
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run_cli(capsys, monkeypatch, *command.split(), "--help")
    assert code == 0
    rows = [line.strip("│ ") for line in out.splitlines() if line.startswith("│")]
    options = [row for row in rows if row.startswith(("--", "*"))]
    assert options or command == ""
    for row in options:
        assert len(row.split("  ", 1)[-1].strip()) > 5, row


def children_seconds() -> float:
    """CPU time of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_runs_as_a_module() -> None:
    """`resnext --help` takes under 0.4 s of CPU time, so it must not import torch."""
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
    """The commands that doctor recommends must work."""
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
    assert "Logits differ by at most 0 (largest logit " in out
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


def test_the_model_of_a_digits_prediction_needs_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --limit, all held-out digits are classified, however many there are."""
    card = resnext.Card(
        tuple("0123456789"),
        resnext.Preprocessing(8, 8, mean=(0.5,), std=(0.5,), colour="L"),
    )
    config = tiny_network().config.replace(in_channels=1, num_classes=10)
    resnext.save(tiny_network(config, card), tmp_path / "digits.safetensors")
    monkeypatch.setenv("COLUMNS", "100")
    file = tmp_path / "digits.safetensors"
    for options, count in (((), 359), (("--limit", 3), 3), (("--limit", 1000), 359)):
        code, out, err = run_cli(capsys, monkeypatch, "predict", file, "digits", *options)
        assert (code, err.count("Traceback")) == (0, 0)
        assert len(out.splitlines()) == 1 + count


def test_predictions_below_the_threshold_are_marked(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The threshold in a card is of use only if it is shown."""
    preprocessing = resnext.Preprocessing(12, 14)
    monkeypatch.chdir(tmp_path)
    for threshold, marked in ((0.0, 0), (1.0, 4)):
        card = resnext.Card(("cat", "dog"), preprocessing, threshold=threshold)
        resnext.save(tiny_network(card=card), tmp_path / f"{marked}.safetensors")
        _, out, _ = run_cli(
            capsys, monkeypatch, "predict", tmp_path / f"{marked}.safetensors", "photos"
        )
        assert sum(" ? " in line for line in out.splitlines()[1:5]) == marked
        notice = (
            f"? marks {marked} of 4 predictions below the model's confidence threshold of 100.00%"
        )
        assert (notice in out) == bool(marked)


def test_predict_to_a_file(
    model: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every image has a row, also one that cannot be read, and the summary counts them."""
    (photos / "cat" / "000.jpg").write_text("no image")
    out, array = tmp_path / "a.csv", tmp_path / "a.npy"
    code, text, _ = run_cli(
        capsys, monkeypatch, "predict", model, photos, "--out", out, "--embeddings", array
    )
    assert code == 0
    assert re.fullmatch(
        rf"{out}: 4 images, [\d,.]+ images/s; 1 could not be read\n{array}: embeddings\n", text
    )
    assert len(out.read_text().splitlines()) == 5
    assert array.exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Terminated(), 143),
        (Terminated(signal.SIGHUP), 129),
        (KeyboardInterrupt(), 130),
        (type("Other", (Terminated,), {})(), 143),
    ],
    ids=["SIGTERM", "SIGHUP", "Ctrl-C", "subclass"],
)
def test_interruptions_have_exit_codes(
    error: KeyboardInterrupt,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scheduler tells a job that it ended itself from one that the user stopped."""

    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("resnext.weights.catalog.catalog", stop)
    assert run_cli(capsys, monkeypatch, "catalog") == (code, "", "")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 10 bytes"),
    ],
    ids=["Python", "CUDA", "CPU"],
)
def test_a_full_memory_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to change; any other RuntimeError is a bug and shows its traceback."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("resnext.weights.catalog.catalog", fail)
    code, _, err = run_cli(capsys, monkeypatch, "catalog")
    assert (code, err) == (2, "resnext: Out of memory. Lower --batch-size or --size.\n")
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        run_cli(capsys, monkeypatch, "catalog")


def test_names_that_the_terminal_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output on Windows or in a container may be ASCII, and names of files may be bytes."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    monkeypatch.setattr(sys, "argv", ["resnext", "catalog"])

    def say(*_: object, **__: object) -> None:
        print(os.fsdecode(b"caf\xe9"), "\u65e5")
        raise KeyboardInterrupt

    monkeypatch.setattr("resnext.weights.catalog.catalog", say)
    with pytest.raises(SystemExit):
        main()
    sys.stdout.flush()
    assert written.getvalue() == b"caf\\udce9 \\u65e5\n"


@pytest.mark.parametrize(
    ("reader", "arguments"),
    [
        ("left", ["--help"]),
        ("left", ["info"]),
        ("left", ["train", "--help"]),
        ("left", ["--version"]),
        ("full", ["info"]),
        ("full", ["--help"]),
        ("full", ["train", "--help"]),
        ("full", ["--version"]),
    ],
)
def test_output_that_nobody_takes(reader: str, arguments: list[str]) -> None:
    """`| head -1` is not an error, a full disk is one line; exit code 1 is that of `compare`."""
    ours, output = os.pipe()
    if reader == "full":
        os.close(output)
        output = os.open("/dev/full", os.O_WRONLY)
    os.close(ours)
    command = [sys.executable, "-m", "resnext", *arguments]
    try:
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(output)
    if reader == "left":
        assert (done.returncode, done.stderr) == (141, "")
    else:
        wanted = "resnext: [Errno 28] No space left on device\n"
        assert (done.returncode, done.stderr) == (2, wanted)


@pytest.mark.parametrize(("width", "top5"), [(80, False), (120, True)])
def test_catalog_names_are_whole_in_a_narrow_terminal(
    width: int, top5: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 80 columns, names were broken in two, and could not be copied."""
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run_cli(capsys, monkeypatch, "catalog")
    assert ("Top-5" in out) == top5
    words = set(out.split())
    assert all(row.name in words for row in resnext.catalog())
    assert max(map(len, out.splitlines())) <= width


@pytest.mark.parametrize("command", ["info resnext50_32x4d", "info resnext101_64x4d"])
def test_info_fits_eighty_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is broken in two cannot be read."""
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run_cli(capsys, monkeypatch, *command.split())
    table = out.splitlines()[-8:]
    assert [line.split()[0] for line in table] == [
        "Stage",
        "stem",
        *["stage"] * 4,
        "classifier",
        "total",
    ]
    assert "1,024 × 14×14" in out


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Terminated()], ids=type)
@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_prediction_says_how_to_continue(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: KeyboardInterrupt,
    begun: bool,
) -> None:
    """It ended without a word, although all predictions so far were kept."""

    def interrupted(*_: Any, **__: Any) -> None:
        if begun:
            (tmp_path / "a.csv.part").write_text("{}\n")
        raise error

    monkeypatch.setattr("resnext.inference.opener.open_runner", lambda *_, **__: None)
    monkeypatch.setattr("resnext.prediction.files.predict_files", interrupted)
    arguments = ("predict", "a.safetensors", "b.jpg", "--out", tmp_path / "a.csv")
    code, out, err = run_cli(capsys, monkeypatch, *arguments)
    assert code == (143 if isinstance(error, Terminated) else 130)
    assert (out, "same command again to continue" in err) == ("", begun)
