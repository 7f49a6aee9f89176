"""Run test files of mmcls, timm and torchvision on our networks, and print held/failed.

    python tests/peers/run.py --mmcls FOLDER --timm FOLDER --torchvision FOLDER

Each folder is a checkout of the repository: MMClassification 0.x or MMPretrain 1.x, timm 1.0,
torchvision from 0.14 on. timm's source archive will do: `pip download --no-deps --no-binary :all:
timm`. The files are run unmodified, each behind the shim beside this script that is named after
the library.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FILES = {
    "mmcls": [
        f"tests/test_models/test_backbones/test_{name}.py"
        for name in ("resnext", "seresnext", "resnet", "seresnet")
    ],
    "timm": ["tests/test_models.py", "tests/test_utils.py"],
    "torchvision": ["test/test_models.py", "test/test_backbone_utils.py"],
}


def main() -> None:
    """Run the suites whose checkouts were given."""
    parser = argparse.ArgumentParser(description="Run other libraries' tests on our networks.")
    for library in FILES:
        parser.add_argument(f"--{library}", type=Path, help=f"checkout of {library}")
    checkouts = {name: path for name, path in vars(parser.parse_args()).items() if path}
    if not checkouts:
        parser.error("give the folder of at least one library, such as --mmcls PATH")
    for library, checkout in checkouts.items():
        run(library, checkout.resolve())


def run(library: str, checkout: Path) -> None:
    """Run the files of one library, one line for each file and each test that failed."""
    for name in FILES[library]:
        file = checkout / name
        if not file.is_file():
            print(f"{library}: {file} does not exist", flush=True)
            continue
        command = [sys.executable, "-m", "pytest", "-q", "-p", f"{library}_shim"]
        command += ["-p", "no:cacheprovider", "-c", os.devnull, "--tb=line", "-rfEs", str(file)]
        paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": paths, "SKIP_BIG_MODEL": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        held, failed, skipped = (_count(done.stdout, w) for w in ("passed", "failed", "skipped"))
        print(f"{library} {file.name}: {held} held, {failed} failed, {skipped} skipped", flush=True)
        for line in done.stdout.splitlines():
            if line.startswith(("FAILED", "ERROR", "SKIPPED")):
                print(f"    {line}", flush=True)
        if not held + failed:
            print(done.stdout + done.stderr)


def _count(text: str, word: str) -> int:
    found = re.findall(rf"(\d+) {word}", text)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    main()
