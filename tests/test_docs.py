"""README and docs are true: their Python runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from resnext.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
IDS = [page.name for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    """A page's code in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples that no longer run are worse than none."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_exist(page: Path) -> None:
    """A renamed option or make target must not survive in a page."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            command, *arguments = shlex.split(line, comments=True)
            if command == "make":
                assert set(arguments) <= set(targets)
            else:
                assert command == "resnext"
                app.parse_args(arguments, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    """A link into the repository must name a file that is there."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_config_field_is_documented() -> None:
    """A field that the page on the config leaves out is a field nobody finds."""
    from dataclasses import fields

    from resnext import ResNeXtConfig

    text = (ROOT / "docs" / "config.md").read_text()
    for field in fields(ResNeXtConfig):
        assert f"`{field.name}`" in text, field.name
