"""Modules that must be importable without torch, which takes seconds and hundreds of megabytes."""

from __future__ import annotations

import subprocess
import sys

import resnext

WITH_TORCH = {  # of the packages below, the modules that are about tensors or devices
    "resnext.data.loader",
    "resnext.data.transforms",
    "resnext.data.workers",
    "resnext.explanation.gradients",
    "resnext.explanation.sanity",
    "resnext.system.device",
}
PROGRAM = """
import importlib
import pkgutil
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ImportError(f"{name} was imported")


def load(name):
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: {error}")


with_torch = sys.argv[1].split(",")
refused = ["torch", "numpy", "PIL"]
sys.meta_path.insert(0, Refuse())
for name in sys.argv[2].split(","):
    load(name)
refused = ["torch"]
for name in sys.argv[3].split(","):
    load(name)
for name in sys.argv[4].split(","):
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
        if module.name not in with_torch:
            load(module.name)
"""
PLAIN = (
    "resnext",
    "resnext.architectures",
    "resnext.dilation",
    "resnext.card",
    "resnext.checks",
    "resnext.config",
    "resnext.errors",
    "resnext.foreign_names",
    "resnext.summary",
    "resnext.weights.header",
)
MODULES = (
    "resnext.cli.app",
    "resnext.inference.exported",
    "resnext.inference.opener",
    "resnext.inference.plan",
    "resnext.inference.plan_table",
    "resnext.inference.runner",
    "resnext.weights.aliases",
    "resnext.weights.catalog",
    "resnext.weights.classifier",
)
PACKAGES = tuple(
    f"resnext.{name}"
    for name in ("data", "explanation", "neighbours", "pages", "prediction", "serving", "system")
)


def test_what_needs_no_torch_imports_none() -> None:
    """Prediction on OpenVINO, checks of images and `--help` waited for torch to load."""
    lists = (",".join(names) for names in (sorted(WITH_TORCH), PLAIN, MODULES, PACKAGES))
    command = [sys.executable, "-c", PROGRAM, *lists]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_public_names_are_listed_without_torch() -> None:
    """Completion in a shell must not load torch; a name loads it when it is used."""
    program = "import sys, resnext; print(dir(resnext)); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(sorted([*resnext.__all__, "__version__"]))
