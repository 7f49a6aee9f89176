"""The Makefile: what it lists, and what `make test` skips."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINTERS = ["ruff format", "ruff check", "basedpyright", "lint-imports"]
# As typed in a shell: under `make test`, an inner make would also print the folders it enters.
TYPED = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The Makefile beside one source file, with tools that only log their calls."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("a = 1\n")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for tool in ("python", "ruff", "basedpyright", "lint-imports", "pytest"):
        script = f'#!/bin/sh\necho "{tool} $1" >> log\n[ ! -e "fail-{tool}" ]\n'
        (tools / tool).write_text(script)
        (tools / tool).chmod(0o755)
    return tmp_path


def make(project: Path, target: str) -> list[str]:
    """The tools that a target ran, in order."""
    log = project / "log"
    log.unlink(missing_ok=True)
    subprocess.run(["make", target], cwd=project, env=TYPED, capture_output=True, check=False)
    return [line.strip().removesuffix(" -n") for line in log.read_text().splitlines()]


def ran(calls: list[str]) -> tuple[list[str], bool]:
    """The linters among some calls, and whether the tests ran."""
    linters = [name for name in LINTERS if any(call.startswith(name) for call in calls)]
    return linters, "pytest" in calls


def test_unchanged_files_are_not_linted_again(project: Path) -> None:
    """A second `make test` took as long as the first before its tests began."""
    assert ran(make(project, "test")) == (LINTERS, True)
    assert make(project, "test") == ["pytest"]
    (project / "src" / "a.py").touch()
    assert make(project, "test") == ["pytest"]


def test_every_change_is_linted(project: Path) -> None:
    """A file that was added, edited or removed must not be taken for one that passed."""
    make(project, "test")
    (project / "src" / "b.py").write_text("b = 1\n")
    assert ran(make(project, "test")) == (LINTERS, True)
    (project / "src" / "a.py").write_text("a = 2\n")
    assert ran(make(project, "test")) == (LINTERS, True)
    (project / "src" / "a.py").unlink()
    assert ran(make(project, "test")) == (LINTERS, True)


def test_what_failed_is_linted_again(project: Path) -> None:
    """A failure must neither be remembered as a success nor let the tests run."""
    (project / "fail-lint-imports").touch()
    for _ in range(2):
        assert ran(make(project, "test")) == (LINTERS, False)
    (project / "fail-lint-imports").unlink()
    assert ran(make(project, "test")) == (LINTERS, True)


def test_lint_always_lints(project: Path) -> None:
    """It answers for the files and the tools as they are now, whatever passed before."""
    for _ in range(2):
        assert ran(make(project, "lint")) == (LINTERS, False)


def test_bench_runs_scripts_that_exist(project: Path) -> None:
    """It ends at the first script that fails: a renamed one keeps the others from running."""
    calls = [call.split() for call in make(project, "bench")]
    scripts = [call[1] for call in calls if call[0] == "python" and call[1].startswith("bench")]
    assert len(scripts) > 5
    assert all((ROOT / script).exists() for script in scripts)


def test_help_lists_every_target() -> None:
    """`make` alone is what a newcomer types."""
    listed = subprocess.run(
        ["make"], cwd=ROOT, env=TYPED, capture_output=True, text=True, check=True
    ).stdout
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line.split()[1] for line in listed.splitlines()] == targets[0].split()
