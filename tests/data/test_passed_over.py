"""What is passed over, and why: by ending, by reason, and in few lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resnext.data.passed_over import PassedOver


def counted(folder: Path, *names: str) -> list[str]:
    """Lines about files of these names, which are created in a folder."""
    found = PassedOver()
    for name in names:
        (folder / name).touch()
        found.add(folder / name)
    return found.lines()


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (
            [f"IMG_{i}.HEIC" for i in range(16)],
            '16 .HEIC files passed over: pip install "resnext[heif]" to read HEIF.',
        ),
        (
            ["a.mp4", "b.MOV", "c.mp4"],
            "2 .mp4, 1 .MOV files passed over: save frames of videos as images.",
        ),
        (["a.zip"], "1 .zip file passed over: unpack archives."),
        (["a.tar"], "1 .tar file passed over: unpack it, or give its own path if it is a shard."),
        (["a.tar.gz", "b.7z"], "1 .7z, 1 .gz files passed over: unpack archives."),
        (
            ["a.CR2", "b.cr2", "c.dng"],
            "2 .cr2, 1 .dng files passed over: develop camera raw into JPEG or TIFF.",
        ),
        (["a.svg"], "1 .svg file passed over: render drawings and documents as PNG."),
        (
            ["a.dcm", "b.jxl"],
            "1 .dcm, 1 .jxl files passed over: not a format that is read; save as PNG or TIFF.",
        ),
        (["notes.txt"], "1 .txt file passed over: not an image ending."),
        (
            [f"x.e{i}" for i in range(7)] + ["y.e6"],
            "2 .e6, 1 .e0, 1 .e1, 1 .e2, 1 .e3, 2 other files passed over: not an image ending.",
        ),
        ([], None),
    ],
)
def test_endings(tmp_path: Path, names: list[str], line: str | None) -> None:
    """Sixteen photos of a phone were missing without a word."""
    assert counted(tmp_path, *names) == ([] if line is None else [line])


def test_reasons_that_are_no_ending(tmp_path: Path) -> None:
    """Files without ending, hidden ones, links and pipes: each with the first one's path."""
    (tmp_path / "more").mkdir()
    (tmp_path / "link").symlink_to("more")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = PassedOver()
    for name in ("link", "gone", "pipe.jpg"):
        found.add(tmp_path / name)
    for name in ("Makefile", "a. long sentence", "b.abcdefghijklm", ".hidden.png", "._a.jpg"):
        (tmp_path / name).touch()
        found.add(tmp_path / name)
    assert found.lines() == [
        f"3 files without ending passed over, such as {tmp_path / 'Makefile'}: name images .jpg "
        f"or .png.",
        f"2 hidden or system files and folders passed over, such as {tmp_path / '._a.jpg'}.",
        f"1 broken link passed over, {tmp_path / 'gone'}.",
        f"1 linked folder passed over, {tmp_path / 'link'}: links to folders inside a class are "
        f"not followed.",
        f"1 pipe or device passed over, {tmp_path / 'pipe.jpg'}.",
    ]
    assert len(found) == 8


def test_the_order_of_counting_does_not_matter(tmp_path: Path) -> None:
    """File systems list in any order; two runs on the same folder print the same."""
    names = ["b.txt", "a.txt", "c.csv", "noending", "another", ".x"]
    first, again, rest = counted(tmp_path, *names), PassedOver(), PassedOver()
    for i, name in enumerate(reversed(names)):
        (again if i % 2 else rest).add(tmp_path / name)
    again.update(rest)
    assert again.lines() == first


def test_names_are_printed_safely(tmp_path: Path) -> None:
    """A file name may hold control characters of a terminal, and bytes that are no text."""
    [line] = counted(tmp_path, ".\x1b[31m" + os.fsdecode(b"\xff"))
    assert "\x1b" not in line
    assert line.isprintable()
