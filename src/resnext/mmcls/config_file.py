"""Reads OpenMMLab config files (mmcls, mmpretrain, mmdet) as data, without executing them.

A config file is Python. It is parsed, and the subset of the language that describes data is
evaluated, statement by statement; anything else is refused, and the error names its line. Work and
memory are bounded, so that a hostile file can neither run code nor hang.
"""

from __future__ import annotations

import ast
import json
import warnings
from os.path import normpath
from pathlib import Path
from typing import Any

from resnext.errors import ConfigError, MissingFileError, ResNeXtError
from resnext.mmcls.expressions import BASE_VALUE, EXECUTED, Expressions, code_of, kind_of

_MAX_BYTES = 1_000_000
_MAX_ITEMS = 1_000_000  # elements or characters that one operation may make
_MAX_WORK = 2_000_000  # the same over a file and all its bases, each step counting as one


def read_config(path: str | Path) -> dict[str, Any]:
    """Read an OpenMMLab config file and its bases without executing them.

    Args:
        path: A `.py` or `.json` file, as mmcv's or mmengine's `Config.fromfile` takes.

    Returns:
        The merged settings: dictionaries, lists, tuples, strings, numbers, booleans and None; no
        object occurs twice. An imported class is its name, a set is a sorted list.

    Raises:
        ConfigError: A file would have to be executed, is damaged, or contradicts its bases.
        MissingFileError: A file does not exist.
    """
    return _File(Path(path)).read()


def parse_config(text: str, name: str = "config") -> dict[str, Any]:
    """Read an OpenMMLab config from its text, as checkpoints hold it; it can have no bases.

    Raises:
        ConfigError: The text would have to be executed, or is damaged.
    """
    return _Text(text, name).read()


class _BaseDict(dict[Any, Any]):
    """A dict from a base file: `update` merges into it, but replaces values of a plain dict."""


class _File(Expressions):
    """One config file while it is evaluated.

    Args:
        path: Where it is.
        child: The file that inherits from it, None for the one that the caller named.
    """

    def __init__(self, path: Path, child: _File | None = None) -> None:
        super().__init__(path)
        self.path = path
        self.child = child
        self.leaf: _File = child.leaf if child else self  # counts the work of all files
        self.work = 0
        self.lines: dict[str, int] = {}  # where each name got its value

    def read(self) -> dict[str, Any]:
        """Settings of the file, merged into those of its bases."""
        try:
            text = self.text()
            if self.path.suffix == ".json":
                self.load(json.loads(BASE_VALUE.sub(r'"{{_base_.\1}}"', text)))
            else:
                with warnings.catch_warnings(action="ignore"):  # about escapes such as "\d"
                    statements = ast.parse(text).body
                for statement in statements:
                    self.run(statement)
            return self.settings()
        except ResNeXtError:
            raise
        except (SyntaxError, json.JSONDecodeError) as error:
            self.line = error.lineno or 1
            raise self.error(f"cannot be parsed ({error.msg})", "Correct the syntax.") from error
        except (RecursionError, MemoryError) as error:  # the latter comes from the parser
            raise self.error("is nested too deeply", "Write it with fewer levels.") from error
        except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise self.error(f"cannot be evaluated ({reason})", "Correct it.") from error

    def error(self, problem: str, advice: str = "Write its value instead.") -> ConfigError:
        """The error to raise for the current line."""
        return ConfigError(f"{self.path}:{self.line}: {problem}. {advice}")

    def spend(self, amount: int) -> None:
        """Count work, before it is done."""
        self.leaf.work += amount
        if amount > _MAX_ITEMS or self.leaf.work > _MAX_WORK:
            raise self.error("makes more elements than any config needs")

    # Files

    def text(self) -> str:
        """Contents of the file."""
        named = f"{self.child.path}:{self.child.line}: " if self.child else ""
        if not self.path.exists():
            raise MissingFileError(f"{named}{self.path} does not exist. Correct the path.")
        if not self.path.is_file() or self.path.suffix not in (".py", ".json"):
            problem = f"{self.path} is not a .py or .json file, and no other can be read"
            raise ConfigError(f"{named}{problem}. Name or convert one.")
        with self.path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise self.error(f"is larger than {_MAX_BYTES} bytes", "Name a config file.")
        self.spend(max(len(content), 1000))  # opening a file is work too
        return content.decode("utf-8-sig")

    def load(self, settings: Any) -> None:
        """Define the values of a JSON file."""
        if not isinstance(settings, dict):
            raise self.error(f"holds {kind_of(settings)}", "Write an object: {...}.")
        self.define("_base_", settings.pop("_base_", []))
        self.names |= self.fill(settings)

    def inherit(self, paths: Any) -> dict[str, Any]:
        """Settings of all `_base_` files together."""
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
            raise self.error("sets _base_ to no path", "Write _base_ = 'file.py' or a list.")
        together = _BaseDict()
        for path in paths:
            settings = self.base(path).read()
            if twice := ", ".join(sorted(together.keys() & settings.keys())):
                problem = f"Duplicate key: more than one _base_ file defines {twice}"
                raise self.error(problem, "Keep it in one of them.")
            together |= settings
        return together

    def base(self, path: str) -> _File:
        """A file that this one inherits from, named relative to it."""
        base = _File(Path(normpath(self.path.parent / path)), self)
        child: _File | None = self
        while child:
            if child.full == base.full:
                raise self.error(f"inherits from {base.path}, which inherits from it", "Drop one.")
            child = child.child
        return base

    def settings(self) -> dict[str, Any]:
        """The file's names, merged into its bases and copied, so that no value is shared."""
        hidden = {"_base_", "_deprecation_", *self.imports}
        own = {k: v for k, v in self.names.items() if k not in hidden and not k.startswith("__")}
        settings: dict[str, Any] = _BaseDict() if self.child else {}
        for name, value in self.merge(own, self.names.get("_base_", {}), strict=True).items():
            self.line = self.lines.get(name, self.line)
            settings[name] = self.fresh(value)
        return settings

    def merge(self, new: dict[Any, Any], old: Any, where: str = "", *, strict: bool) -> Any:
        """`old`, a dict or list, with `new` merged into it as mmcv does; neither is changed.

        Strict, as between files: a dict over another kind of value is refused, as is a missing
        position of a list. Not strict, as in `update`: the dict replaces the value.
        """
        self.spend(len(new) + len(old))
        merged = old.copy()
        for key, value in new.items():
            path = f"{where}{key}"
            index = int(key) if isinstance(old, list) else key
            if isinstance(value, dict) and not value.get("_delete_"):
                below = old[index] if isinstance(old, list) or key in old else {}
                fits = isinstance(below, dict) or (
                    isinstance(below, list)
                    and strict
                    and all(str(each).isdecimal() and int(each) < len(below) for each in value)
                )
                if fits:
                    value = self.merge(value, below, f"{path}.", strict=strict)
                elif strict:
                    self.line = self.lines.get(path.partition(".")[0], self.line)
                    problem = f"{path} is a dict that does not fit {kind_of(below)} in the base"
                    raise self.error(problem, "Add _delete_=True to replace it.")
            merged[index] = value
        return merged

    def fresh(self, value: Any) -> Any:
        """A deep copy in which no value occurs twice."""
        self.spend(1)
        if isinstance(value, dict):
            items = ((k, self.fresh(v)) for k, v in value.items() if k != "_delete_")
            return _BaseDict(items) if self.child else dict(items)
        if isinstance(value, list | tuple):
            return type(value)([self.fresh(item) for item in value])
        return value

    # Statements

    def run(self, node: ast.stmt) -> None:
        """Execute one statement."""
        self.line = node.lineno
        match node:
            case ast.Assign(targets=targets, value=value):
                result = self.evaluate(value)
                for target in targets:
                    self.assign(target, result)
            case ast.AugAssign(target=target, op=op, value=value):
                old = self.evaluate(target)
                result = self.combine(op, old, self.evaluate(value))
                if isinstance(old, list):  # Python changes a list in place: all its names see it
                    old[:] = result
                    result = old
                self.assign(target, result)
            case ast.Expr(ast.Call(ast.Attribute(owner, "update" | "merge" as name)) as call):
                self.update(owner, call, merge=name == "merge")
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                pass
            case ast.Expr(value=value):
                self.evaluate(value)
            case ast.Import(names=names):
                self.imports |= {n.asname or n.name.partition(".")[0]: None for n in names}
            case ast.ImportFrom(level=0, names=names) if names[0].name != "*":
                self.imports |= {n.asname or n.name: n.name for n in names}
            case ast.With([ast.withitem(ast.Call(ast.Name("read_base"), [], []), None)], body):
                for statement in body:
                    self.read_base(statement)
            case _:
                raise self.error(f"uses {code_of(node)}, {EXECUTED}")

    def read_base(self, node: ast.stmt) -> None:
        """Execute an import from another config file, under `with read_base`."""
        self.line = node.lineno
        if not isinstance(node, ast.ImportFrom) or not node.level or not node.module:
            raise self.error(f"uses {code_of(node)} to inherit", "Write from .file import names.")
        base = self.base("../" * (node.level - 1) + node.module.replace(".", "/") + ".py")
        settings = base.read()
        for alias in node.names:
            name = alias.asname or alias.name
            if alias.name == "*":
                for each, value in settings.items():
                    self.define(each, value)
                self.imports |= base.imports
            elif alias.name in settings:
                self.define(name, settings[alias.name])
            elif alias.name in base.imports:
                self.imports[name] = base.imports[alias.name]
            else:
                raise self.error(f"imports {name}, which {base.path} lacks", "Correct the name.")

    def define(self, name: str, value: Any) -> None:
        """Give a name its value."""
        self.names[name] = self.inherit(value) if name == "_base_" else value
        self.lines[name] = self.line
        self.imports.pop(name, None)

    def assign(self, target: ast.expr, value: Any) -> None:
        """Give a value to a name or to an element of a dict or list."""
        if isinstance(target, ast.Name):
            self.line = target.lineno
            self.define(target.id, value)
        elif isinstance(target, ast.Attribute | ast.Subscript):
            holder: Any = self.evaluate(target.value)
            if type(holder) not in (dict, _BaseDict, list):
                raise self.error(f"sets an element of {kind_of(holder)}", "Set it in a dict.")
            if isinstance(target, ast.Attribute):
                holder[target.attr] = value
            else:
                holder[self.flat(self.evaluate(target.slice))] = value
        else:
            raise self.error(f"assigns to {code_of(target)}", "Assign to one name.")

    def update(self, owner: ast.expr, call: ast.Call, *, merge: bool) -> None:
        """Execute `owner.update(...)` or `owner.merge(...)`."""
        holder = self.elements(owner, dict)
        new = self.arguments(call)
        if merge or isinstance(holder, _BaseDict):
            new = self.merge(new, {} if new.get("_delete_") else holder, strict=False)
            holder.clear()
        holder.update(new)


class _Text(_File):
    """A config given as text."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(Path(name))
        self.content = text

    def text(self) -> str:
        """The text itself."""
        self.spend(max(len(self.content), 1000))
        return self.content

    def base(self, path: str) -> _File:
        """Refuse to read files that a checkpoint names."""
        raise self.error(f"inherits from {path}", "Pass the config file.")
