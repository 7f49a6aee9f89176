"""What is published: both archives are complete, and the wheel works in an empty environment."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import resnext

ROOT = Path(__file__).parent.parent
NAME = f"resnext-{resnext.__version__}"
IN_PACKAGE = {".py", ".css", ".html", ".js", ".mjs", ".txt", ".typed"}
FOLDERS = ("benchmarks", "docs", "scripts", "src", "tests")
FILES = {
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "PKG-INFO",
    "README.md",
    "constraints.txt",
    "hubconf.py",
    "pyproject.toml",
}


def build(kind: str, source: Path, target: Path) -> Path:
    """Build the "sdist" or the "wheel" of a source tree, with the tool that pip would take."""
    target.mkdir(exist_ok=True)
    code = f"import sys; from hatchling.build import build_{kind}; build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, target], cwd=source, check=True)
    (archive,) = target.iterdir()
    return archive


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive."""
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive as some installers do."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / NAME, folder / "dist")


def sources(folder: str) -> set[str]:
    """The files of a folder of the repository, without caches."""
    files = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.is_file()}
    return {str(p) for p in files if not any(part[0] in "._" for part in p.parent.parts)}


def test_the_source_archive_is_complete(sdist: Path) -> None:
    """Distributions run the tests from it; what an editor or a run left behind stays out."""
    with tarfile.open(sdist) as archive:
        names = {member.name.removeprefix(f"{NAME}/") for member in archive if member.isfile()}
    assert names == FILES.union(*map(sources, FOLDERS))


def test_the_wheel_is_complete(wheel: Path) -> None:
    """The report's template and the class names were once found in the checkout only."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = {name for name in archive.namelist() if ".dist-info/" in name}
    assert names == {name.removeprefix("src/") for name in sources("src/resnext")}
    assert {Path(name).suffix for name in names} == IN_PACKAGE
    assert {"resnext/py.typed", "resnext/training/report/report.html"} <= names
    assert {n for n in names if n.endswith(".txt")} == {
        f"resnext/weights/labels/{n}.txt" for n in ("imagenet-1k", "imagenet-12k")
    }
    inside = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    assert about == {f"{NAME}.dist-info/{name}" for name in inside}


def dependencies(wheel: Path, *extras: str) -> set[importlib.metadata.Distribution]:
    """The distributions that a wheel with some extras depends on, directly or not."""
    metadata = zipfile.Path(wheel, f"{NAME}.dist-info/")
    found = {}
    waiting = [(importlib.metadata.PathDistribution(metadata), frozenset(extras))]  # pyright: ignore[reportArgumentType]
    while waiting:
        distribution, wanted = waiting.pop()
        for requirement in map(Requirement, distribution.requires or ()):
            marker, key = requirement.marker, (requirement.name, frozenset(requirement.extras))
            used = not marker or any(marker.evaluate({"extra": e}) for e in wanted or {""})
            if used and key not in found:
                found[key] = importlib.metadata.distribution(requirement.name)
                waiting.append((found[key], key[1]))
    return set(found.values())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel and links to what it declares, and nothing else.

    Installing the dependencies again would take minutes and a network.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = (folder / "lib").glob("python*/site-packages")
    for distribution in dependencies(wheel, "digits"):
        for file in distribution.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (packages / top).is_symlink():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    return folder


def run(folder: Path, *command: object) -> str:
    """What a command of the new environment prints, run outside of the repository."""
    tool, *arguments = map(str, command)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RESNEXT"))}
    done = subprocess.run(
        [folder / "bin" / tool, *arguments],
        cwd=folder,
        env={**kept, "RESNEXT_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_works_alone(installed: Path) -> None:
    """A dependency that is not declared, or a file that is not packaged, fails for users only."""
    code = "import importlib.util as u; print(u.find_spec('resnext').origin, u.find_spec('pytest'))"
    home, other = run(installed, "python", "-c", code).split()
    assert Path(home).is_relative_to(installed / "lib")
    assert other == "None"  # it is not a dependency

    model = installed / "digits.safetensors"
    train = ["train", "digits", "--model", "resnext11_8x16d", "--epochs", 1, "--out", model]
    run(installed, "resnext", *train)
    assert (installed / "digits.run" / "report.html").stat().st_size > 10_000
    table = run(installed, "resnext", "predict", model, "digits", "--limit", 3)
    assert len(re.findall(r"^\d .*%", table, re.MULTILINE)) == 3


def test_one_version() -> None:
    """A release that forgets one of them is cited or described wrongly."""
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [resnext.__version__]
