"""README and docs are true: Python runs, commands parse, links, paths and the tree exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from resnext.cli.app import app

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "resnext"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
IDS = [page.name for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    """A page's code in one language."""
    return blocks_of(page.read_text(), language)


def blocks_of(text: str, language: str) -> list[str]:
    """The code in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


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
    """A link into the repository must name a file that exists, and a heading of that page."""
    links = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", page.read_text())
    for target in (link or picture for link, picture in links):
        if "://" not in target:
            path, _, heading = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), target
            assert not heading or heading in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """What links to the headings of a page look like on GitHub."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


def tree() -> set[str]:
    """The files of the tree on the page about the architecture, relative to the package."""
    text = ARCHITECTURE.read_text().partition("## The tree")[2]
    root, *lines = blocks_of(text, "text")[0].splitlines()
    assert root == "src/resnext/"
    files, folders = set(), []
    for line in lines:
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth - 1 :] = [name] if name.endswith("/") else []
        if not name.endswith("/"):
            files.add("".join(folders) + name)
    return files


def test_the_tree_is_complete() -> None:
    """A newcomer looks for a file where the page says it is."""
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()}
    expected = {
        str(path)
        for path in files
        if "__pycache__" not in path.parts
        and (path.name != "__init__.py" or path == Path("__init__.py"))
    }
    assert sorted(tree() ^ expected) == []


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", ARCHITECTURE], ids=lambda p: p.name)
def test_named_paths_exist(page: Path) -> None:
    """A file that was renamed must not survive in the pages that lead through the code."""
    text = re.sub(r"\]\([^)]*\)|```text\nsrc/.*?```", "", page.read_text(), flags=re.DOTALL)
    for name in re.findall(r"(?<![\w./-])[\w-]+(?:/[\w.-]+)*(?:\.py\b|/)(?!\w)", text):
        assert (ROOT / name).exists() or (PACKAGE / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_quoted_paths_exist(page: Path) -> None:
    """A page that names a test or a script as proof must name one that exists."""
    for name in re.findall(r"`((?:benchmarks|docs|scripts|src|tests)/[\w./-]+)", page.read_text()):
        assert (ROOT / name).exists(), name


def test_arrows_are_those_that_are_checked() -> None:
    """The page's rows and the linter's layers must not drift apart."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    text = ARCHITECTURE.read_text().partition("## Arrows")[2]
    rows = [set(re.findall(r"\w+", row)) for row in blocks_of(text, "text")[0].splitlines()]
    assert rows == [set(re.findall(r"\w+", layer)) for layer in layers]


@pytest.mark.parametrize(
    "script",
    sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("scripts/*.py")]),
    ids=lambda p: p.name,
)
def test_scripts_import_what_exists(script: Path) -> None:
    """Scripts that print the README's numbers broke when modules moved: no test runs them."""
    imports = re.findall(r"from (resnext[\w.]*) import (\([^)]*\)|[\w, ]+)", script.read_text())
    for module, names in imports:
        for name in re.findall(r"\w+", names):
            assert hasattr(import_module(module), name), f"{module}.{name}"


def test_every_config_field_is_documented() -> None:
    """Users find a field only if the page on the config has it."""
    from dataclasses import fields

    from resnext import ResNeXtConfig

    text = (ROOT / "docs" / "config.md").read_text()
    for field in fields(ResNeXtConfig):
        assert f"`{field.name}`" in text, field.name
