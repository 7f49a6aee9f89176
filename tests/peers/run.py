"""Run test files of mmcls on our networks, and print held/failed.

    python tests/peers/run.py --mmcls CHECKOUT

A checkout of the repository, MMClassification 0.x or MMPretrain 1.x, since packages leave tests
out. The files are run unmodified, behind the shim beside this script.
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
}


def main() -> None:
    """Run the suites whose checkouts were given."""
    parser = argparse.ArgumentParser(description="Run test files of mmcls on our networks.")
    for library in FILES:
        parser.add_argument(f"--{library}", type=Path, help=f"checkout of {library}")
    checkouts = {name: path for name, path in vars(parser.parse_args()).items() if path}
    if not checkouts:
        parser.error("give the checkout of at least one library, such as --mmcls PATH")
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
        command += ["-p", "no:cacheprovider", "-c", os.devnull, "--tb=line", str(file)]
        paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        held, failed = (_count(done.stdout, word) for word in ("passed", "failed"))
        print(f"{library} {file.name}: {held} held, {failed} failed", flush=True)
        for line in done.stdout.splitlines():
            if line.startswith(("FAILED", "ERROR")):
                print(f"    {line}", flush=True)
        if not held + failed:
            print(done.stdout + done.stderr)


def _count(text: str, word: str) -> int:
    found = re.findall(rf"(\d+) {word}", text)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    main()
