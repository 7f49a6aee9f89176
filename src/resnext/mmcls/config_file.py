"""Reads OpenMMLab config files (mmcls, mmpretrain, mmdet) as data, without executing them.

A config file is Python. It is parsed, and the subset of the language that describes data is
evaluated here, node by node; anything else is refused, and the error names its line. Work and
memory are bounded, so that a hostile file can neither run code nor hang.
"""

from __future__ import annotations

import ast
import json
import operator as do
import re
import reprlib
import warnings
from collections.abc import Callable
from os.path import normpath
from pathlib import Path
from typing import Any

from resnext.errors import ConfigError, MissingFileError, ResNeXtError

_MAX_BYTES = 1_000_000
_MAX_ITEMS = 1_000_000  # elements or characters that one operation may make
_MAX_WORK = 2_000_000  # the same over a file and all its bases, each step counting as one
_MAX_INT = 2**63  # products of larger numbers would fill the memory

_MATHS: dict[type[ast.AST], Callable[..., Any]] = {
    **{ast.Add: do.add, ast.Sub: do.sub, ast.Mult: do.mul, ast.Mod: do.mod, ast.Pow: do.pow},
    **{ast.Div: do.truediv, ast.FloorDiv: do.floordiv},
    **{ast.USub: do.neg, ast.UAdd: do.pos, ast.Not: do.not_},
    **{ast.Eq: do.eq, ast.NotEq: do.ne, ast.Is: do.is_, ast.IsNot: do.is_not},
    **{ast.Lt: do.lt, ast.LtE: do.le, ast.Gt: do.gt, ast.GtE: do.ge},
    **{ast.In: lambda item, all_: item in all_, ast.NotIn: lambda item, all_: item not in all_},
}
_BASE_VALUE = re.compile(r"\{\{\s*_base_\.([\w.]+)\s*\}\}")
_FILE_VALUE = re.compile(r"\{\{\s*(file(?:Dirname|Basename|BasenameNoExtension|Extname))\s*\}\}")
_EXECUTED = "which would have to be executed"


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


class _File:
    """One config file while it is evaluated.

    Args:
        path: Where it is.
        child: The file that inherits from it, None for the one that the caller named.
    """

    def __init__(self, path: Path, child: _File | None = None) -> None:
        self.path = path
        self.full = Path(normpath(path.absolute()))
        self.child = child
        self.leaf: _File = child.leaf if child else self  # counts the work of all files
        self.work = 0
        self.line = 1  # the current one, for messages
        self.names: dict[str, Any] = {}
        self.lines: dict[str, int] = {}
        self.imports: dict[str, str | None] = {}  # None for a module, which has no value

    def read(self) -> dict[str, Any]:
        """Settings of the file, merged into those of its bases."""
        try:
            text = self.text()
            if self.path.suffix == ".json":
                self.load(json.loads(_BASE_VALUE.sub(r'"{{_base_.\1}}"', text)))
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
            raise self.error(f"holds {_kind(settings)}", "Write an object: {...}.")
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
                    problem = f"{path} is a dict that does not fit {_kind(below)} in the base"
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
                raise self.error(f"uses {_brief(node)}, {_EXECUTED}")

    def read_base(self, node: ast.stmt) -> None:
        """Execute an import from another config file, under `with read_base`."""
        self.line = node.lineno
        if not isinstance(node, ast.ImportFrom) or not node.level or not node.module:
            raise self.error(f"uses {_brief(node)} to inherit", "Write from .file import names.")
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
                raise self.error(f"sets an element of {_kind(holder)}", "Set it in a dict.")
            if isinstance(target, ast.Attribute):
                holder[target.attr] = value
            else:
                holder[self.flat(self.evaluate(target.slice))] = value
        else:
            raise self.error(f"assigns to {_brief(target)}", "Assign to one name.")

    def update(self, owner: ast.expr, call: ast.Call, *, merge: bool) -> None:
        """Execute `owner.update(...)` or `owner.merge(...)`."""
        holder = self.elements(owner, dict)
        new = self.arguments(call)
        if merge or isinstance(holder, _BaseDict):
            new = self.merge(new, {} if new.get("_delete_") else holder, strict=False)
            holder.clear()
        holder.update(new)

    # Expressions

    def evaluate(self, node: ast.expr) -> Any:
        """Value of an expression."""
        self.line = node.lineno
        self.spend(1)
        value = self.value(node)
        if isinstance(value, complex) or (isinstance(value, int) and abs(value) >= _MAX_INT):
            raise self.error("makes a number that no config needs")
        return value

    def value(self, node: ast.expr) -> Any:
        """Value of an expression, by its kind."""
        match node:
            case ast.Constant(str() | int() | float() | None as value):
                return self.fill(value)
            case ast.Name(name):
                return self.lookup(name)
            case ast.List(nodes):
                return [self.evaluate(each) for each in nodes]
            case ast.Tuple(nodes):
                return tuple([self.evaluate(each) for each in nodes])
            case ast.Set([ast.Set([ast.Name() | ast.Attribute()])]):
                text = ast.unparse(node)  # Python reads {{_base_.a}} as a set in a set
                if not _BASE_VALUE.fullmatch(text) and not _FILE_VALUE.fullmatch(text):
                    raise self.error(f"uses {_brief(node)}, which refers to nothing")
                return self.fill(text)
            case ast.Set(nodes):
                return sorted({self.flat(self.evaluate(each)) for each in nodes}, key=repr)
            case ast.Dict(keys, nodes):
                made: dict[Any, Any] = {}
                for key, each in zip(keys, nodes, strict=True):
                    if key is None:
                        made |= self.elements(each, dict)
                    else:
                        made[self.flat(self.evaluate(key))] = self.evaluate(each)
                return made
            case ast.Call():
                return self.call(node)
            case ast.Attribute(owner, key):
                return self.member(self.evaluate(owner), key)
            case ast.Subscript(owner, ast.Slice(lower, upper, step)):
                holder = self.elements(owner, str, list, tuple)
                return holder[
                    slice(*(each and self.evaluate(each) for each in (lower, upper, step)))
                ]
            case ast.Subscript(owner, index):
                return self.member(self.evaluate(owner), self.evaluate(index))
            case ast.UnaryOp(op, operand) if type(op) in _MATHS:
                return _MATHS[type(op)](self.evaluate(operand))
            case ast.BinOp(left, op, right):
                return self.combine(op, self.evaluate(left), self.evaluate(right))
            case ast.BoolOp(op, [*nodes, last]):
                for each in nodes:
                    value = self.evaluate(each)
                    if bool(value) is isinstance(op, ast.Or):
                        return value
                return self.evaluate(last)
            case ast.Compare(left, ops, others):
                values = [self.flat(self.evaluate(each)) for each in (left, *others)]
                trios = zip(ops, values, values[1:], strict=False)
                return all(_MATHS[type(op)](one, other) for op, one, other in trios)
            case ast.IfExp(test, body, orelse):
                return self.evaluate(body if self.evaluate(test) else orelse)
            case ast.ListComp(element, [ast.comprehension(target, source, conditions)]):
                self.spend(len(self.names))
                outside = self.names.copy()
                results: list[Any] = []
                for item in self.elements(source, list, tuple):
                    self.assign(target, item)
                    if all(self.evaluate(each) for each in conditions):
                        results.append(self.evaluate(element))
                self.names = outside
                return results
            case _:
                raise self.error(f"uses {_brief(node)}, {_EXECUTED}")

    def lookup(self, name: str) -> Any:
        """Value of a name."""
        if name in self.imports and self.imports[name] is None:
            raise self.error(f"uses {name}, a module, {_EXECUTED}")
        if name not in self.imports and name not in self.names:
            raise self.error(f"uses {name}, which is not defined above")
        return self.imports.get(name) or self.names[name]

    def fill(self, value: Any) -> Any:
        """Replace `{{ _base_.a.b }}`, `{{ fileBasename }}` and other references by their values."""
        if isinstance(value, dict):
            return {key: self.fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item) for item in value]
        if not isinstance(value, str) or "{{" not in value:
            return value
        if reference := _BASE_VALUE.fullmatch(value):
            result = self.lookup("_base_")
            for key in reference[1].split("."):
                result = self.member(result, key)
            return result
        if _BASE_VALUE.search(value) or "{{$" in value:
            raise self.error(f"refers to a value from inside the string {reprlib.repr(value)}")
        file_values = {
            "fileDirname": self.full.parent.as_posix(),
            "fileBasename": self.full.name,
            "fileBasenameNoExtension": self.full.stem,
            "fileExtname": self.full.suffix,
        }
        return _FILE_VALUE.sub(lambda name: file_values[name[1]], value)

    def elements(self, node: ast.expr, *kinds: type) -> Any:
        """Value of an expression that must be of one of these types, to be taken apart."""
        value = self.evaluate(node)
        if not isinstance(value, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise self.error(f"needs a {wanted} where {_kind(value)} is")
        self.spend(len(value))
        return value

    def call(self, call: ast.Call) -> Any:
        """Result of one of the few functions that turn data into data."""
        name = _brief(call.func)
        own = name in self.names or name in self.imports
        match name, call.args, call.keywords:
            case "dict", _, _ if not own:
                return self.arguments(call)
            case "int" | "round", [number], [] if not own:
                return (int if name == "int" else round)(self.evaluate(number))
            case "range", bounds, [] if not own:
                numbers = range(*[self.evaluate(each) for each in bounds])
                self.spend(len(numbers))
                return list(numbers)
            case _:
                raise self.error(f"uses a function call {name}(...), {_EXECUTED}")

    def arguments(self, call: ast.Call) -> dict[Any, Any]:
        """The dict that the arguments of `dict` or `update` make."""
        if len(call.args) > 1:
            raise self.error("gives several dicts to one call", "Give one dict and keywords.")
        made = dict(self.elements(call.args[0], dict)) if call.args else {}
        named: set[Any] = set()
        for keyword in call.keywords:
            name, value = keyword.arg, keyword.value
            given = {name: self.evaluate(value)} if name else self.elements(value, dict)
            if twice := named & given.keys():
                raise self.error(f"gives {min(twice, key=str)} twice", "Give it once.")
            named |= given.keys()
            made |= given
        return made

    def flat(self, value: Any) -> Any:
        """A value that takes no longer to compare or hash than to read."""
        parts = list(value) if isinstance(value, dict | list | tuple) else [value]
        parts += value.values() if isinstance(value, dict) else ()
        if not all(isinstance(part, str | int | float | None) for part in parts):
            raise self.error(f"compares {_kind(value)} that holds others")
        self.spend(sum(len(part) if isinstance(part, str) else 1 for part in parts))
        return value

    def member(self, holder: Any, key: Any) -> Any:
        """An element of a dict, list, tuple or string."""
        try:
            return holder[self.flat(key)]
        except (LookupError, TypeError):
            problem = f"takes {reprlib.repr(key)} of {_kind(holder)}, which has no such element"
            raise self.error(problem, "Define it.") from None

    def combine(self, op: ast.operator, left: Any, right: Any) -> Any:
        """Result of an arithmetic operator on numbers, strings, lists and tuples."""
        sizes = [len(side) for side in (left, right) if isinstance(side, str | list | tuple)]
        integers = [side for side in (left, right) if isinstance(side, int)]
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if isinstance(op, ast.Add) and len(sizes) == 2 and type(left) is type(right):
            self.spend(sum(sizes))
        elif isinstance(op, ast.Mult) and len(sizes) == len(integers) == 1:
            self.spend(sizes[0] * max(integers[0], 0))
        elif not numbers or type(op) not in _MATHS:
            problem = f"applies {type(op).__name__} to {_kind(left)} and {_kind(right)}"
            raise self.error(problem)
        elif isinstance(op, ast.Pow) and len(integers) == 2 and abs(right) > 64:
            raise self.error("makes a number that no config needs")
        return _MATHS[type(op)](left, right)


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


def _kind(value: Any) -> str:
    """Name of a value's type, for messages."""
    name = "dict" if isinstance(value, dict) else type(value).__name__
    return {"int": "an int", "NoneType": "None"}.get(name, f"a {name}")


def _brief(node: ast.AST) -> str:
    """The beginning of a piece of code, for messages."""
    return ast.unparse(node).partition("\n")[0][:60]
