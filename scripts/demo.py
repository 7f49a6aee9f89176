"""The demo of `make demo`: train, evaluate and predict on real handwritten digits."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

FOLDER = Path("demo")


def run(command: str) -> None:
    """Print a command, then run it as a user would."""
    print(f"\n$ {command}", flush=True)
    arguments = shlex.split(command)
    tool = Path(sys.executable).with_name(arguments[0])
    if code := subprocess.call([tool, *arguments[1:]]):
        sys.exit(code)


def main() -> None:
    """Train on 1,151 digits, validate on 287, test on 359 others and draw ten of those."""
    FOLDER.mkdir(exist_ok=True)
    model, sheet = FOLDER / "model.safetensors", FOLDER / "predictions.png"
    run(f"resnext train digits --model resnext11_8x16d --out {model} --overwrite")
    run(f"resnext evaluate {model} digits")
    run(f"resnext predict {model} digits --limit 10 --sheet {sheet}")
    print(f"\nThe model is in {model}, ten test digits with predictions in {sheet}.")
    tool = os.path.relpath(Path(sys.executable).with_name("resnext"))
    print(f"To give it pictures in the browser, or over HTTP:\n\n  {tool} serve {model}")


if __name__ == "__main__":
    main()
