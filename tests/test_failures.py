"""The page on failures quotes what the commands print: each failure here is provoked again."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import photo_folder, run_cli

from resnext.prediction import files
from resnext.training.trainer import Trainer

PAGE = Path(__file__).parent.parent / "docs" / "failures.md"
QUICK = (
    "--model resnext11_8x16d --size 32 --epochs 2 --batch-size 16 --workers 0 "
    "--precision fp32 --learning-rate 0.0125"
)
Run = Callable[..., tuple[int, str]]


def normalize(text: str) -> str:
    """Text without line breaks and numbers, which differ from run to run."""
    return re.sub(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?", "#", " ".join(text.split()))


def quoted() -> list[re.Pattern[str]]:
    """The messages of the page; "…" stands for anything."""
    blocks = re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    messages = [m for block in blocks for m in re.split(r"\n(?=resnext: )", block)]
    return [re.compile(re.escape(normalize(m)).replace("…", ".*")) for m in messages]


def assert_quoted(printed: str) -> None:
    """The page has this line: an error as one whole message, other lines inside of one."""
    line = normalize(printed)
    if line.startswith("resnext: "):
        found = any(pattern.fullmatch(line) for pattern in quoted())
    else:
        found = any(re.search(re.escape(line).replace("…", ".*"), m) for m in texts())
    assert found, f"docs/failures.md does not have: {printed}"


def texts() -> list[str]:
    """The outputs on the page, numbers left out."""
    return [normalize(b) for b in re.findall(r"```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with p1, which has two unreadable images; the first run on it is kept here too."""
    folder = tmp_path_factory.mktemp("failures")
    photo_folder(folder / "p1", count=40)
    image = folder / "p1" / "cat" / "007.jpg"
    image.write_bytes(image.read_bytes()[:-133])
    (folder / "p1" / "dog" / "003.jpg").write_text("not an image")
    return folder


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run a command in an empty folder; its exit code and what it wrote to standard error."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str]:
        code, _, err = run_cli(capsys, monkeypatch, *line.replace("QUICK", QUICK).split())
        return code, err

    return run


@pytest.fixture
def finished(trained: Path, tmp_path: Path, command: Run, one_thread: None) -> tuple[Run, str]:
    """The command, in a folder with p1 and a complete run on it, and what that run printed."""
    log = trained / "log.txt"
    shutil.copytree(trained / "p1", tmp_path / "p1")
    if not log.exists():
        code, err = command("train p1 QUICK --out a.safetensors")
        assert code == 0, err
        log.write_text(err)
        shutil.copytree(tmp_path / "a.run", trained / "a.run")
        shutil.copy(tmp_path / "a.safetensors", trained)
    else:
        shutil.copytree(trained / "a.run", tmp_path / "a.run")
        shutil.copy(trained / "a.safetensors", tmp_path)
    return command, log.read_text()


@pytest.mark.parametrize(
    "line",
    [
        "train few",
        "train one",
        "train empty",
        "train seg",
        "train nowhere",
        "train shards/train-{003..005}.tar",
        "train pets --recipe best",
        "train pets --recipe mine.py:bad",
        "train pets --recipe mine.py:bad --out a.safetensors",
        "train pets --set foo=1",
        "train pets --set mixup",
        "train pets --set magnitude=5",
        "train pets --recipe distill",
        "train pets --device gpu",
        "train pets --model resnext5",
        "train pets --model resnext50_32x4d --size 16",
        "train pets --precision fp16",
        "train pets --out notes.txt/a.safetensors",
        "train pets --out pets",
        "train p2 --out p2.safetensors --model resnext11_8x16d --batch-size 8",
    ],
)
def test_mistakes_in_arguments_and_data(line: str, command: Run, tmp_path: Path) -> None:
    """Each is one line, exit code 2, before training."""
    photo_folder(tmp_path / "pets", count=2)
    photo_folder(tmp_path / "few", ("b",), count=3)
    photo_folder(tmp_path / "few", ("a",), count=1)
    photo_folder(tmp_path / "one", ("a",), count=3)
    photo_folder(tmp_path / "empty", ("a",), count=3)
    (tmp_path / "empty" / "b").mkdir()
    (tmp_path / "seg").mkdir()
    (tmp_path / "notes.txt").touch()
    if "mine.py" in line and "--out" in line:
        (tmp_path / "mine.py").write_text("bad = 1 / 0")
    if " p2 " in line:
        photo_folder(tmp_path / "p2", count=40)
        for i in range(3):
            (tmp_path / "p2" / "cat" / f"{i:03}.jpg").write_text("not an image")
    code, err = command(line)
    assert (code, err.count("\n")) == (2, 1), err
    assert_quoted(err)


@pytest.mark.parametrize(
    ("library", "setting"),
    [("kornia", "policy=trivial"), ("pytorch_optimizer", "optimizer=lamb")],
)
def test_missing_libraries(
    library: str, setting: str, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found missing before anything is written."""
    from resnext.training import preparation

    monkeypatch.setattr(preparation, "find_spec", lambda name: None if name == library else name)
    photo_folder(tmp_path / "pets", count=2)
    code, err = command(f"train pets QUICK --set {setting}")
    assert (code, err.count("\n")) == (2, 1), err
    assert_quoted(err)
    assert not list(tmp_path.glob("*.run"))


def test_unreadable_images(finished: tuple[Run, str], tmp_path: Path) -> None:
    """The lines of the scan, and the file that lists all."""
    _, log = finished
    lines = [row for row in log.splitlines() if "unreadable" in row]
    assert len(lines) == 2
    for line in lines:
        assert_quoted(line)
    for row in (tmp_path / "a.run" / "quarantine.csv").read_text().splitlines():
        assert_quoted(row)


@pytest.mark.parametrize(
    "line",
    [
        "train p1 QUICK --out a.safetensors",
        "train p1 QUICK --out a.safetensors --resume --epochs 3",
        "train p1 QUICK --out a.safetensors --resume --learning-rate 0.1",
        "train p1 QUICK --out a.safetensors --resume --precision bf16",
        "train p1 QUICK --out b.safetensors --resume",
    ],
)
def test_existing_files_and_other_arguments(
    line: str, finished: tuple[Run, str], tmp_path: Path
) -> None:
    """Refused, and nothing changes."""
    command, _ = finished
    shutil.copy("a.safetensors", "b.safetensors")
    for option in re.findall(r"--resume (--\S+)", line):  # given once only
        line = line.replace("QUICK", re.sub(rf"{option} \S+", "", QUICK))
    before = (tmp_path / "a.safetensors").read_bytes()
    code, err = command(line)
    assert code == 2, err
    assert_quoted(err.splitlines()[-1].replace("b.safetensors", "a.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_complete_runs_and_damaged_checkpoints(finished: tuple[Run, str], tmp_path: Path) -> None:
    """A complete run, one damaged checkpoint, then all of them."""
    command, _ = finished
    resume = "train p1 QUICK --out a.safetensors --resume"
    code, err = command(resume)
    assert code == 0
    assert_quoted(err.splitlines()[-1])
    newest = sorted((tmp_path / "a.run").glob("*.state"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    code, err = command(resume)
    assert code == 0
    assert_quoted(err.splitlines()[0])
    assert_quoted(next(row for row in err.splitlines() if row.startswith("Resumed")))
    for path in (tmp_path / "a.run").glob("*.state"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, err = command(resume)
    assert code == 2
    assert_quoted(err.splitlines()[-1])


def test_other_images(finished: tuple[Run, str], tmp_path: Path) -> None:
    """An image was removed: neither `--resume` nor `evaluate` can use the folder."""
    command, _ = finished
    (tmp_path / "p1" / "cat" / "011.jpg").unlink()
    for line in ("train p1 QUICK --out a.safetensors --resume", "evaluate a.safetensors p1"):
        code, err = command(line)
        assert code == 2
        assert_quoted(err.splitlines()[-1])


def test_equal_images_and_evaluation_on_training_images(
    command: Run, tmp_path: Path, one_thread: None
) -> None:
    """The four lines of the scan, and what `evaluate` says of the training part."""
    photo_folder(tmp_path / "p4" / "train", count=8)
    photo_folder(tmp_path / "p4" / "val", count=12)
    for part in ("cat", "dog"):  # images that are equal by the generator's seed
        for path in (tmp_path / "p4" / "val" / part).iterdir():
            path.write_bytes(path.read_bytes() + b"val")
    train, val = tmp_path / "p4" / "train", tmp_path / "p4" / "val"
    shutil.copy(train / "cat" / "000.jpg", val / "cat" / "dup.jpg")
    shutil.copy(train / "cat" / "002.jpg", train / "cat" / "xx.jpg")
    shutil.copy(train / "dog" / "001.jpg", train / "cat" / "yy.jpg")
    code, err = command("train p4 QUICK --out p4.safetensors")
    assert code == 0, err
    lines = [row for row in err.splitlines() if " equal to " in row or "in two classes" in row]
    assert len(lines) == 4
    for line in lines:
        assert_quoted(line)
    code, err = command("evaluate p4.safetensors p4/train")
    assert code == 2
    assert_quoted(err)


def test_interruption(finished: tuple[Run, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in an epoch, then the line of the run that continues."""
    command, _ = finished
    original = Trainer._epoch

    def interrupted(self: Trainer) -> None:
        if self.state.epoch == 2:
            signal.raise_signal(signal.SIGTERM)
        original(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_epoch", interrupted)
        code, err = command("train p1 QUICK --out s.safetensors")
    assert code == 143
    assert_quoted(err.splitlines()[-1])
    code, err = command("train p1 QUICK --out s.safetensors --resume")
    assert code == 0
    assert_quoted(next(row for row in err.splitlines() if row.startswith("Resumed")))


def test_a_loss_that_diverges(finished: tuple[Run, str]) -> None:
    """A learning rate of 1000 and a retry, which does not help either."""
    command, _ = finished
    code, err = command(
        f"train p1 {QUICK.replace('0.0125', '1000')} --out n.safetensors --retries 1"
    )
    assert code == 2
    assert_quoted(err.splitlines()[-1])
    assert_quoted(next(row for row in err.splitlines() if " of the rate." in row))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("v1", "images in a row cannot be read"),
        ("v2", "of class 'dog' cannot be read any more"),
        ("v4", "validation images cannot be read any more"),
    ],
)
def test_images_that_vanish(
    case: str, message: str, finished: tuple[Run, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images, some of a class, and one of sixteen validation images."""
    command, _ = finished
    Path("p1").rename(case)
    original = Trainer._epoch

    def vanish(self: Trainer) -> None:
        train, val = ([str(x) for x in s.images] for s in (self.splits.train, self.splits.val))
        gone = {
            "v1": [*train, *val],
            "v2": [name for name in train if "dog" in name][:3],
            "v4": val[:1],
        }
        for name in gone[case]:
            Path(name).unlink(missing_ok=True)
        original(self)

    monkeypatch.setattr(Trainer, "_epoch", vanish)
    code, err = command(f"train {case} QUICK --out v.safetensors")
    assert code == 2
    *lines, last = err.splitlines()
    assert message in last
    assert_quoted(re.sub(rf"{case}/\w+/", f"{case}/cat/", last))
    left_out = [line for line in lines if line.startswith("Left out: ")]
    assert bool(left_out) == (case == "v2")
    for line in left_out:
        assert_quoted(re.sub(rf"{case}/\w+/", "v2/dog/", line))


def test_plans_and_tables(
    finished: tuple[Run, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans that cannot be used, a table that exists, one begun with other arguments."""
    command, _ = finished
    shutil.move("a.safetensors", "photos.safetensors")
    photo_folder(tmp_path / "new", count=2)
    assert command("optimize photos.safetensors --batch-size 1 --engine torch")[0] == 0
    plan = json.loads(Path("photos.plan.json").read_text())
    plan["plans"][0]["file"] = "0" * 64
    Path("photos.plan.json").write_text(json.dumps(plan))
    code, err = command("predict photos.safetensors new")
    assert code == 0
    assert "for other weights" in err
    assert_quoted(err.splitlines()[0])
    Path("photos.plan.json").write_text("not a plan")
    code, err = command("predict photos.safetensors new --out answers.csv")
    assert code == 0
    assert_quoted(err.splitlines()[0])
    code, err = command("predict photos.safetensors new --out answers.csv --no-plan")
    assert code == 2
    assert_quoted(err)
    Path("answers.csv").unlink()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "finish", interrupted)
        assert command("predict photos.safetensors new --out answers.csv --no-plan")[0] == 130
    code, err = command("predict photos.safetensors new --out answers.csv --no-plan --top 2")
    assert code == 2
    assert_quoted(err)
