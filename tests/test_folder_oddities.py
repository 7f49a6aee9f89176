"""One folder with everything that folders of photos hold; what the commands say about it."""

from __future__ import annotations

import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from helpers import photo_folder, run_cli, tiny_network
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_failures import PAGE, assert_quoted, normalize, texts

from resnext import Card, Preprocessing, save
from resnext.data.sources import folders
from resnext.training import launch

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = tuple(unicodedata.normalize("NFC", name) for name in ("café", "cat", "dog"))
TRAIN = "train odd --dry-run --model resnext11_8x16d --size 32 --batch-size 16 --workers 0"


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, in the current one, on a machine without pillow-heif."""
    heif = (".heic", ".heics", ".heif", ".heifs", ".hif")
    monkeypatch.setattr(folders, "_ENDINGS", tuple({*folders._ENDINGS} - {*heif}))
    monkeypatch.chdir(tmp_path)
    root = Path("odd")
    photo_folder(root, (unicodedata.normalize("NFD", "café"),), count=12, size=20)
    photo_folder(root, CLASSES, count=60)
    for name in ("cat/clip.mp4", "cat/clip.MOV", "cat/more.zip", "dog/raw.CR2", "dog/logo.svg"):
        (root / name).touch()
    for i in range(16):
        (root / "dog" / f"IMG_{i}.HEIC").touch()
    for name in (
        "dog/scan.dcm",
        "dog/notes.txt",
        "labels.csv",
        "old.parquet",
        "dog/README",
        "cat/.DS_Store",
    ):
        (root / name).touch()
    for name in ("@eaDir", "cat/@eaDir/000.jpg"):
        (root / name).mkdir(parents=True)
    for name in ("scripts/resize.py", "__pycache__/resize.pyc"):
        (root / name).parent.mkdir()
        (root / name).touch()
    picture = root / "cat" / "001.jpg"
    shutil.copy(picture, root / "@eaDir" / "thumbnail.jpg")
    shutil.copy(picture, root / "cat" / "@eaDir" / "000.jpg" / "thumbnail.jpg")
    shutil.copy(picture, root / "loose.jpg")
    Image.new("RGB", (24, 24), (99, 9, 200)).save(root / "cat" / "LOUD.JPG")
    Image.new("RGB", (24, 24), (99, 200, 9)).save(root / "dog" / "also.jfif")
    (root / "cat" / "others").symlink_to(Path("../dog"))
    (root / "cat" / "gone.jpg").symlink_to("/nowhere/gone.jpg")
    (root / "dog" / "gone.txt").symlink_to("/nowhere/gone.txt")
    (root / "cat" / "circle").symlink_to("circle")
    (root / "cat" / "cut.jpg").write_bytes(picture.read_bytes()[:300])
    (root / "cat" / "page.jpg").write_text("<!DOCTYPE html><title>404 Not Found</title>")
    info = PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    Image.new("RGB", (24, 24), (9, 99, 200)).save(root / "dog" / "generated.png", pnginfo=info)
    return root


def section() -> str:
    """The part of the page about folders."""
    return PAGE.read_text().partition("## Oddities of folders")[2].partition("\n## ")[0]


def test_what_train_prints(
    odd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thing that is not used is named, in lines that are read in one look."""
    monkeypatch.setattr(launch, "_run", lambda *_: None)  # the forecast depends on the machine
    code, _, err = run_cli(capsys, monkeypatch, *TRAIN.split())
    assert code == 0, err
    printed = normalize(err)
    assert printed in texts()
    assert err.startswith(f"Classes: 3 ({', '.join(CLASSES)}).\nImages: ")
    assert "; 61 (cat) to 72 (café) per class; " in err
    assert "\nPassed over: 35 files and folders; 3 unreadable images.\n16 .HEIC files" in err
    for row in re.findall(r"^\|.*\|(.*)\|$", section(), re.MULTILINE):
        for said in re.findall(r"`(.*?)`", row):
            assert normalize(said) in printed, said


def test_what_evaluate_and_predict_print(
    odd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen photos without an answer, and no word about them, look like a complete table."""
    save(tiny_network(card=Card(CLASSES, Preprocessing(32, 32))), "m.safetensors")
    heic = '16 .HEIC files passed over: pip install "resnext[heif]" to read HEIF.'
    code, out, err = run_cli(capsys, monkeypatch, "evaluate", "m.safetensors", "odd")
    assert code == 0, err
    assert err.splitlines()[0] == heic
    assert len(err.splitlines()) == 14
    assert "195 images" in out
    code, out, err = run_cli(
        capsys, monkeypatch, "predict", "m.safetensors", "odd", "--out", "new/answers.csv"
    )
    assert code == 0, err
    assert err.splitlines()[0] == heic
    assert "199 images" in out
    assert "3 could not be read" in out
    code, out, err = run_cli(capsys, monkeypatch, "predict", "m.safetensors", "odd/dog")
    assert code == 0, err
    assert err.splitlines()[0] == heic
    assert out.count(".jpg") == 60
    for line in (
        "compare m.safetensors m.safetensors odd",
        "optimize m.safetensors --data odd --engine torch",
        "optimize m.safetensors --data odd --engine torch --max-loss 99",
    ):
        code, out, err = run_cli(capsys, monkeypatch, *line.split())
        assert code == 0, err
        assert err.splitlines()[0] == heic
        assert err.count(".HEIC") == 1
        assert "Skipped, could not be read: " in out or "left out as unreadable." in err


def test_a_class_of_heic_alone_is_refused(
    odd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pillow-heif it has no image; the line says what to install."""
    for path in (odd / "dog").iterdir():
        if path.suffix != ".HEIC":
            path.unlink()
    code, _, err = run_cli(capsys, monkeypatch, *TRAIN.split())
    assert code == 2
    assert_quoted(err)


@pytest.mark.parametrize("line", ["linked", "seg", "pets/cat", "folds", "parts"])
def test_folders_of_another_level_are_refused(
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is one line that says which folder to give."""
    monkeypatch.chdir(tmp_path)
    photo_folder(Path("seg/seg_train/seg_train"), count=2)
    for name in ("pets", "linked", "folds/fold1", "folds/fold2"):
        photo_folder(Path(name), count=2)
    for name in ("cat", "dog"):
        photo_folder(Path("parts") / name, ("train", "val"), count=2)
    Path("linked/eel").symlink_to("../store/eel")
    code, _, err = run_cli(capsys, monkeypatch, "train", line)
    assert (code, err.count("\n")) == (2, 1)
    assert_quoted(err)
