"""What `import resnext` gives, and what it costs."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import resnext

PUBLIC = [
    "Backbone",
    "Card",
    "Preprocessing",
    "ResNeXt",
    "ResNeXtConfig",
    "ResNeXtError",
    "catalog",
    "convert",
    "create",
    "diagnose",
    "distill",
    "evaluate",
    "explain",
    "export",
    "load",
    "load_backbone",
    "mmcls",
    "optimize",
    "predict",
    "save",
    "serve",
    "train",
    "variant",
    "variants",
]
HEAVY = {"torch", "numpy", "PIL", "rich", "cyclopts", "safetensors", "jaxtyping"}


def run(code: str) -> Any:
    """What `code` prints as JSON in a fresh interpreter."""
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    )
    return json.loads(out.stdout)


def test_public_names_are_counted() -> None:
    """Each name is a promise; adding one is a decision, made here and in the changelog."""
    assert resnext.__all__ == PUBLIC
    assert sorted(dir(resnext)) == sorted([*PUBLIC, "__version__"])


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_exist_where_type_checkers_look(name: str) -> None:
    """The lazy table and the imports that editors read are written apart and can drift."""
    tree = ast.parse(Path(resnext.__file__).read_text(encoding="utf-8"))
    homes = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    value = getattr(resnext, name)
    assert getattr(resnext, name) is value
    if isinstance(value, ModuleType):
        assert (homes[name], value.__name__) == ("resnext", f"resnext.{name}")
    else:
        assert value.__name__ == name
        assert value.__module__.startswith(str(homes[name]))


def test_star_import() -> None:
    """`__all__` must not promise a name that is not there."""
    namespace: dict[str, Any] = {}
    exec("from resnext import *", namespace)
    assert set(PUBLIC) <= set(namespace)


def test_functions_are_not_hidden_by_modules() -> None:
    """Importing a submodule sets its name on the package: `resnext.train` would be a module."""
    modules = {path.stem for path in Path(resnext.__file__).parent.iterdir()}
    assert modules & set(PUBLIC) == {"mmcls"}


def test_unknown_names_are_refused() -> None:
    """The lazy lookup must fail as a module does, or `hasattr` and pickles misbehave."""
    with pytest.raises(AttributeError, match="module 'resnext' has no attribute 'resnext50'"):
        resnext.resnext50  # noqa: B018
    assert not hasattr(resnext, "__wrapped__")


def members(value: Any) -> dict[str, Any]:
    """An object and what it offers in public, by name."""
    title = getattr(value, "__name__", type(value).__name__)
    found = {title: value}
    if isinstance(value, ModuleType):
        for name in value.__all__:
            inner = members(getattr(value, name))
            found.update({f"{title}.{key}": v for key, v in inner.items()})
    elif inspect.isclass(value):
        for base in value.__mro__:
            if base.__module__.startswith("resnext"):
                found.update(
                    {
                        f"{value.__name__}.{key}": getattr(v, "__func__", v)
                        for key, v in vars(base).items()
                        if not key.startswith("_")
                        and (callable(v) or isinstance(v, property | classmethod | staticmethod))
                        and not inspect.isclass(v)
                    }
                )
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_documented(name: str) -> None:
    """`help(…)` is the first page a newcomer reads."""
    for key, value in members(getattr(resnext, name)).items():
        text = value.__doc__
        assert text, f"{key} has no docstring"
        assert text.strip().splitlines()[0].rstrip().endswith((".", ":")), key
        assert not text.startswith(f"{key}("), f"{key} has the docstring dataclasses make"


def test_importing_touches_nothing() -> None:
    """A heavy import at the top makes the first second of every script and command a wait."""
    code = (
        "import json, sys\n"
        "before = set(sys.modules)\n"
        "import resnext\n"
        "dir(resnext), resnext.__version__\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    loaded = {name.split(".")[0] for name in run(code)}
    assert "resnext" in loaded
    assert not HEAVY & loaded


def test_importing_takes_no_time() -> None:
    """Fifty milliseconds are noticed. It is CPU time, with a margin for a slow machine."""
    code = (
        "import time\n"
        "start = time.process_time()\n"
        "import resnext\n"
        "print(1000 * (time.process_time() - start))\n"
    )
    assert min(run(code) for _ in range(5)) < 50


@pytest.mark.parametrize(
    "name", ["ResNeXtConfig", "Card", "ResNeXtError", "catalog", "variant", "variants"]
)
def test_names_that_need_no_torch_do_not_load_it(name: str) -> None:
    """A tool that only lists or checks networks must start at once."""
    code = (
        "import json, sys, resnext\n"
        f"resnext.{name}\n"
        "print(json.dumps(sorted(module for module in sys.modules if '.' not in module)))\n"
    )
    assert not HEAVY & set(run(code))
