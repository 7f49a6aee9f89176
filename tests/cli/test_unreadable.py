"""Images that a command cannot read: the others get their answers, and none is lost silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import photo_folder, run_cli, tiny_network
from PIL import Image

import resnext
from resnext import Card, Preprocessing, save

pytestmark = pytest.mark.usefixtures("one_thread")
DAMAGED = "photos/cat/001.jpg"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: four photos, of which one is damaged, and a model."""
    monkeypatch.chdir(tmp_path)
    photo_folder(Path("photos"), count=2)
    Path(DAMAGED).write_text("no image")
    save(tiny_network(card=Card(("cat", "dog"), Preprocessing(16, 16))), tmp_path / "m.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "ending"),
    [
        ("explain m.safetensors photos --no-check --json e.json", "explanation.png: {} with maps"),
        ("explain m.safetensors photos --no-check --html", "explanation.html: {} with maps"),
        ("predict m.safetensors photos", "{} with predictions"),
        ("predict m.safetensors photos --batch-size 1", "{} with predictions"),
        ("predict m.safetensors photos --sheet s.png", "s.png: {} with predictions"),
    ],
)
def test_the_others_are_answered(
    folder: Path,
    line: str,
    ending: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One damaged image of a hundred ended the command, and ninety-nine answers were lost."""
    code, out, err = run_cli(capsys, monkeypatch, *line.split())
    assert code == 0, err
    assert err == f"{DAMAGED}: not a readable image (unknown format).\n"
    lines = out.splitlines()
    assert sum(".jpg" in row for row in lines) == 3
    assert f"{ending.format('3 images')}; 1 could not be read" in lines
    if "--json" in line:
        written = json.loads(Path("e.json").read_text())
        assert (len(written["explanations"]), written["skipped"]) == (3, [DAMAGED])
    if "--sheet" in line:
        with Image.open("s.png") as sheet:
            assert sheet.width < 4 * 168


@pytest.mark.parametrize("command", ["explain", "predict"])
def test_without_an_answer_the_command_fails(
    folder: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script must not take an empty answer for one."""
    code, out, err = run_cli(capsys, monkeypatch, command, "m.safetensors", DAMAGED)
    assert (code, out) == (2, "")
    assert err == f"resnext: {DAMAGED}: not a readable image (unknown format).\n"
    code, out, err = run_cli(capsys, monkeypatch, command, "m.safetensors", DAMAGED, DAMAGED)
    assert (code, out) == (2, "")
    assert err.endswith("\nresnext: None of 2 images could be read.\n")
    assert not Path("explanation.png").exists()


def test_python_calls_a_function(folder: Path) -> None:
    """A list of predictions has one for each image, unless the caller asked for less."""
    called: list[tuple[str, str]] = []
    found = resnext.predict(
        "m.safetensors", "photos", unreadable=lambda name, error: called.append((name, str(error)))
    )
    assert called == [(DAMAGED, f"{DAMAGED}: not a readable image (unknown format).")]
    wanted = ["photos/cat/000.jpg", "photos/dog/000.jpg", "photos/dog/001.jpg"]
    assert [one.name for one in found] == wanted
