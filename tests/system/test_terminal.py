"""Tables at the width of a terminal, and for programs that read them."""

from __future__ import annotations

import os

import pytest
from rich.table import Column, Table

from resnext.system.terminal import columns, print_table

NAMES = [f"photographs of the summer/a class with a long name/{i:03}.jpg" for i in range(2)]


def example(names: list[str]) -> Table:
    """A table as `explain` prints it."""
    numbers = ("Probability", "For", "Against", "Bias", "Sum", "Off by", "Check")
    right = [Column(name, justify="right") for name in numbers]
    name = Column("Image", overflow="fold")
    table = Table(name, "Class", *right, box=None, header_style="bold", pad_edge=False)
    for one in names:
        values = ("99.12%", "+12.31", "-1.27", "+0.07", "+11.11", "2e-07", "53/53")
        table.add_row(one, "golden retriever, a friendly dog", *values)
        table.add_row("", "cat", *values)
    return table


def printed(
    names: list[str], width: str, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> list[str]:
    """The lines at a width of the terminal."""
    patch.setenv("COLUMNS", width)
    print_table(example(names))
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("width", [80, 200])
def test_no_name_and_no_number_is_broken(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths were eleven columns wide and twenty lines high, and could not be copied."""
    lines = printed(NAMES, str(width), capsys, monkeypatch)
    for name in NAMES:
        (line,) = [line for line in lines if name in line]
        assert (line == name) == (width == 80)
    rows = [line.split()[-7:] for line in lines if line.endswith("53/53")]
    assert len(rows) == 4
    assert set(map(tuple, rows)) == {
        ("99.12%", "+12.31", "-1.27", "+0.07", "+11.11", "2e-07", "53/53")
    }
    assert max(len(line) for line in lines if line not in NAMES) <= width
    assert len(lines) == (10 if width == 80 else 5)


def test_columns_stand_below_their_titles(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are printed one by one, and must not differ in width."""
    lines = printed(NAMES, "90", capsys, monkeypatch)
    ends = {len(line) for line in lines if line.endswith(("53/53", "Check"))}
    assert len(ends) == 1
    assert lines[0] == "Image"


def test_short_names_stay_in_their_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(["[b]a.jpg[/b]", "b.jpg"], "120", capsys, monkeypatch)
    assert len(lines) == 5
    assert lines[1].startswith("a.jpg")


def test_without_a_terminal_no_row_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`resnext predict | grep` found parts of paths: without a terminal, rich takes 80 columns."""

    def no_terminal(_: int) -> os.terminal_size:
        raise OSError

    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", no_terminal)
    assert columns() > 10_000
    print_table(example([NAMES[0] * 20]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert NAMES[0] * 20 in lines[1]
