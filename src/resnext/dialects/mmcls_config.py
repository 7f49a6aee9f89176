"""Reads OpenMMLab config files (mmcls, mmpretrain, mmdet) as data: nothing in them is ever run.

Such a file is Python. It is parsed, and the part of the language that describes data is evaluated
here, node by node; whatever needs more is refused with its line. What a file may cost is bounded
as well, so that a hostile one can neither run nor hang.
"""

from __future__ import annotations

import ast
import json
import operator
import re
import reprlib
import warnings
from collections.abc import Callable, Iterator
from os.path import normpath
from pathlib import Path
from typing import Any

from resnext.errors import ConfigError, MissingFileError, ResNeXtError

_MAX_BYTES = 1_000_000
_MAX_ITEMS = 1_000_000  # elements or characters that one operation may make
_MAX_WORK = 4_000_000  # the same over a file and all its bases, each step counting as one
_MAX_INT = 2**63  # larger numbers mean nothing here, and products of them fill the memory

_EXECUTED = "which would have to be executed"
_METHODS = ("update", "merge", "append", "extend", "insert", "pop")
_SEQUENCES = (str, list, tuple)
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
}
_REFERENCE = re.compile(r"\{\{(_base_\.[\w.]+|file\w+)\}\}")  # Python reads it as a set in a set
_BASE_VALUE = re.compile(r"\{\{\s*_base_\.([\w.]+)\s*\}\}")
_FILE_VALUE = re.compile(r"\{\{\s*(file(?:Dirname|Basename|BasenameNoExtension|Extname))\s*\}\}")


def read_config(path: str | Path) -> dict[str, Any]:
    """Read an OpenMMLab config file and its bases without executing them.

    Args:
        path: A `.py` or `.json` file, as mmcv's or mmengine's `Config.fromfile` takes.

    Returns:
        The merged settings, of dictionaries, lists, tuples, strings, numbers, booleans and None,
        none of them shared. An imported class is its name, a set is a sorted list.

    Raises:
        ConfigError: A file would have to be executed, is damaged, or contradicts its bases.
        MissingFileError: A file does not exist.
    """
    return _File(Path(path)).read()


class _BaseDict(dict[Any, Any]):
    """A dict from a base file: `update` merges into it, but replaces what is in a plain dict."""


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
        self.top: _File = child.top if child else self  # counts the work of all
        self.work = 0
        self.line = 1  # reached so far, for messages
        self.names: dict[str, Any] = {}
        self.lines: dict[str, int] = {}
        self.imports: dict[str, str | None] = {}  # None for a module, which has no value

    def read(self) -> dict[str, Any]:
        """Settings of the file, merged into those of its bases."""
        try:
            text = self.text()
            if self.path.suffix == ".json":
                self.load(text)
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
        except RecursionError as error:
            raise self.error("is nested too deeply", "Write it with fewer levels.") from error
        except (ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise self.error(f"cannot be evaluated ({reason})", "Correct it.") from error

    def error(self, problem: str, advice: str = "Write its value instead.") -> ConfigError:
        """The error to raise for what the line reached does."""
        return ConfigError(f"{self.path}:{self.line}: {problem}. {advice}")

    def spend(self, amount: int) -> None:
        """Count work, before it is done."""
        self.top.work += amount
        if amount > _MAX_ITEMS:
            raise self.error(f"makes more than {_MAX_ITEMS} elements")
        if self.top.work > _MAX_WORK:
            raise self.error("takes more work than any config needs")

    # Files

    def text(self) -> str:
        """Contents of the file."""
        named = f"{self.child.path}:{self.child.line}: " if self.child else ""
        if not self.path.exists():
            raise MissingFileError(f"{named}{self.path} does not exist. Correct the path.")
        if not self.path.is_file() or self.path.suffix not in (".py", ".json"):
            raise ConfigError(
                f"{named}{self.path} is not a .py or .json file, and no other can be read. "
                "Name or convert one."
            )
        with self.path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise self.error(f"is larger than {_MAX_BYTES} bytes", "Name a config file.")
        self.spend(max(len(content), 1000))  # opening a file is work too
        return content.decode("utf-8-sig")

    def load(self, text: str) -> None:
        """Define what a JSON file holds."""
        settings = json.loads(_BASE_VALUE.sub(r'"{{_base_.\1}}"', text))
        if not isinstance(settings, dict):
            raise self.error(f"holds {_kind(settings)}", "Write an object: {...}.")
        self.names["_base_"] = self.inherit(settings.pop("_base_", []))
        self.names |= self.fill(settings)

    def inherit(self, paths: Any) -> dict[str, Any]:
        """Settings of all `_base_` files together."""
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
            raise self.error("sets _base_ to no path", "Write _base_ = 'file.py' or a list.")
        together = _BaseDict()
        for path in paths:
            settings = self.base(path).read()
            if twice := sorted(together.keys() & settings.keys()):
                raise self.error(
                    f"Duplicate key: two _base_ files define {', '.join(twice)}",
                    "Keep it in one of them.",
                )
            together |= settings
        return together

    def base(self, path: str) -> _File:
        """A file that this one inherits from, named relative to it."""
        file = _File(Path(normpath(self.path.parent / path)), self)
        heir: _File | None = self
        while heir:
            if heir.full == file.full:
                raise self.error(f"inherits from {file.path}, which inherits from it", "Drop one.")
            heir = heir.child
        return file

    def settings(self) -> dict[str, Any]:
        """What the file defines, merged into its bases and copied, so that nothing is shared."""
        hidden = {"_base_", "_deprecation_", *self.imports}
        own = {
            name: value
            for name, value in self.names.items()
            if name not in hidden and not name.startswith("__")
        }
        settings: dict[str, Any] = _BaseDict() if self.child else {}
        for name, value in self.merge(own, self.names.get("_base_", {}), strict=True).items():
            self.line = self.lines.get(name, self.line)
            settings[name] = self.fresh(value)
        return settings

    def merge(self, new: dict[Any, Any], old: Any, where: str = "", *, strict: bool) -> Any:
        """`old`, a dict or list, with `new` merged into it as mmcv does; neither is changed."""
        self.spend(len(new) + len(old))
        merged = old.copy()
        for key, value in new.items():
            path = f"{where}{key}"
            place = int(key) if isinstance(old, list) else key
            inherited = isinstance(old, list) or key in old
            if isinstance(value, dict) and inherited and not value.get("_delete_"):
                below = old[place]
                positions = isinstance(below, list) and all(
                    str(key).isdecimal() and int(key) < len(below) for key in value
                )
                if isinstance(below, dict) or (strict and positions):
                    value = self.merge(value, below, f"{path}.", strict=strict)
                elif strict:
                    self.line = self.lines.get(path.partition(".")[0], self.line)
                    raise self.error(
                        f"{path} is a dict that does not fit {_kind(below)} in the base",
                        "Add _delete_=True to replace it.",
                    )
            merged[place] = value
        return merged

    def fresh(self, value: Any) -> Any:
        """A copy that shares nothing, not even with itself."""
        self.spend(1)
        match value:
            case dict():
                items = ((k, self.fresh(v)) for k, v in value.items() if k != "_delete_")
                return _BaseDict(items) if self.child else dict(items)
            case list() | tuple():
                return type(value)([self.fresh(item) for item in value])
            case set():
                return sorted(value, key=repr)
            case _:
                return value

    # Statements

    def run(self, node: ast.stmt) -> None:
        """Carry out one statement."""
        self.line = node.lineno
        match node:
            case ast.Assign(targets=targets, value=value):
                result = self.evaluate(value)
                for target in targets:
                    self.assign(target, result)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self.assign(target, self.evaluate(value))
            case ast.AugAssign(target=target, op=op, value=value):
                old = self.evaluate(target)
                result = self.combine(op, old, self.evaluate(value))
                if isinstance(old, list):  # Python changes a list in place: all its names see it
                    old[:] = result
                    result = old
                self.assign(target, result)
            case ast.Expr(ast.Call(ast.Attribute(attr=name) as method) as call) if name in _METHODS:
                self.change(call, method)
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                pass
            case ast.Expr(value=value):
                self.evaluate(value)
            case ast.Import(names=names):
                self.imports |= {n.asname or n.name.partition(".")[0]: None for n in names}
            case ast.ImportFrom(level=0, names=names) if names[0].name != "*":
                self.imports |= {n.asname or n.name: n.name for n in names}
            case ast.With(
                items=[ast.withitem(ast.Call(ast.Name(id="read_base"), [], []), None)], body=body
            ):
                for statement in body:
                    self.read_base(statement)
            case _:
                raise self.error(f"uses {_brief(node)}, {_EXECUTED}")

    def read_base(self, node: ast.stmt) -> None:
        """Import from another config file: the body of `with read_base(): ...`."""
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
        """Give a value to a name, an element of a dict or list, or several of them."""
        match target:
            case ast.Name(id=name):
                self.line = target.lineno
                self.define(name, value)
            case ast.Attribute(value=owner) | ast.Subscript(value=owner):
                holder = self.evaluate(owner)
                attribute = isinstance(target, ast.Attribute)
                key = target.attr if attribute else self.key(self.evaluate(target.slice))
                if not isinstance(holder, dict | list):
                    raise self.error(f"sets an element of {_kind(holder)}", "Set it in a dict.")
                holder[key] = value
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                if not isinstance(value, list | tuple) or len(value) != len(targets):
                    raise self.error(f"needs {len(targets)} values on the right", "Write them.")
                for each, item in zip(targets, value, strict=True):
                    self.assign(each, item)
            case _:
                raise self.error(f"assigns to {_brief(target)}", "Assign to a name.")

    def change(self, call: ast.Call, method: ast.Attribute) -> None:
        """Carry out a statement that calls a method of a dict or list."""
        holder = self.evaluate(method.value)
        self.spend(len(holder) if isinstance(holder, dict | list) else 1)
        if isinstance(holder, dict) and method.attr in ("update", "merge"):
            new = self.arguments(call)
            if method.attr == "merge" or isinstance(holder, _BaseDict):
                new = self.merge(new, {} if new.get("_delete_") else holder, strict=False)
                holder.clear()
            holder.update(new)
            return
        match holder, method.attr, self.items(call.args), call.keywords:
            case list(), "append", [item], []:
                holder.append(item)
            case list(), "extend", [list() | tuple() as items], []:
                self.spend(len(items))
                holder.extend(items)
            case list(), "insert", [int(place), item], []:
                holder.insert(place, item)
            case dict() | list(), "pop", [key], []:
                self.member(holder, key)
                del holder[key]
            case _:
                raise self.error(f"calls {method.attr} of {_kind(holder)} in a way unknown here")

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
            case ast.Constant(value=str() | int() | float() | None as value):
                return self.fill(value)
            case ast.Name(id=name):
                return self.lookup(name)
            case ast.List(elts=nodes):
                return self.items(nodes)
            case ast.Tuple(elts=nodes):
                return tuple(self.items(nodes))
            case ast.Set(elts=[ast.Set()]) if _REFERENCE.fullmatch(ast.unparse(node)):
                return self.fill(ast.unparse(node))
            case ast.Set(elts=nodes):
                return {self.key(item) for item in self.items(nodes)}
            case ast.Dict(keys=keys, values=values):
                made: dict[Any, Any] = {}
                for key, value in zip(keys, values, strict=True):
                    if key is None:
                        made |= self.mapping(value)
                    else:
                        made[self.key(self.evaluate(key))] = self.evaluate(value)
                return made
            case ast.Call():
                return self.call(node)
            case ast.Attribute(value=owner, attr=key):
                return self.member(self.evaluate(owner), key)
            case ast.Subscript(value=owner, slice=ast.Slice(lower, upper, step)):
                holder = self.evaluate(owner)
                if not isinstance(holder, _SEQUENCES):
                    raise self.error(f"slices {_kind(holder)}")
                self.spend(len(holder))
                return holder[slice(*(n and self.evaluate(n) for n in (lower, upper, step)))]
            case ast.Subscript(value=owner, slice=index):
                return self.member(self.evaluate(owner), self.evaluate(index))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](self.evaluate(operand))
            case ast.BinOp(left=left, op=op, right=right):
                return self.combine(op, self.evaluate(left), self.evaluate(right))
            case ast.BoolOp(op=op, values=nodes):
                value = None
                for each in nodes:
                    value = self.evaluate(each)
                    if bool(value) is isinstance(op, ast.Or):
                        break
                return value
            case ast.Compare(left=left, ops=ops, comparators=others):
                values = [self.flat(self.evaluate(each)) for each in (left, *others)]
                pairs = zip(ops, values, values[1:], strict=False)
                return all(_OPERATORS[type(op)](one, other) for op, one, other in pairs)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.evaluate(body if self.evaluate(test) else orelse)
            case ast.ListComp(elt=element, generators=loops):
                self.spend(len(self.names))
                outside = self.names.copy()
                made_items = [self.evaluate(element) for _ in self.rounds(loops)]
                self.names = outside
                return made_items
            case _:
                raise self.error(f"uses {_brief(node)}, {_EXECUTED}")

    def rounds(self, loops: list[ast.comprehension]) -> Iterator[None]:
        """Go through the loops of a comprehension, yielding whenever it makes an element."""
        if not loops:
            yield
            return
        for item in self.sequence(loops[0].iter):
            self.assign(loops[0].target, item)
            if all(self.evaluate(condition) for condition in loops[0].ifs):
                yield from self.rounds(loops[1:])

    def lookup(self, name: str) -> Any:
        """Value of a name."""
        if self.imports.get(name):
            return self.imports[name]
        if name in self.imports or name not in self.names:
            what = "a module" if name in self.imports else "which is not defined above"
            raise self.error(f"uses {name}, {what}")
        return self.names[name]

    def fill(self, value: Any) -> Any:
        """Put in what `{{ _base_.a.b }}`, `{{ fileBasename }}` and the like stand for."""
        match value:
            case dict():
                return {key: self.fill(item) for key, item in value.items()}
            case list():
                return [self.fill(item) for item in value]
            case str():
                if reference := _BASE_VALUE.fullmatch(value):
                    found = self.lookup("_base_")
                    for key in reference[1].split("."):
                        found = self.member(found, key)
                    return found
                if _BASE_VALUE.search(value) or "{{$" in value:
                    raise self.error(
                        f"refers to a value from inside the string {reprlib.repr(value)}"
                    )
                values = {
                    "fileDirname": self.full.parent.as_posix(),
                    "fileBasename": self.full.name,
                    "fileBasenameNoExtension": self.full.stem,
                    "fileExtname": self.full.suffix,
                }
                return _FILE_VALUE.sub(lambda found: values[found[1]], value)
            case _:
                return value

    def items(self, nodes: list[ast.expr]) -> list[Any]:
        """Values of the elements of a list, or of the arguments of a call."""
        found: list[Any] = []
        for node in nodes:
            starred = isinstance(node, ast.Starred)
            found += self.sequence(node.value) if starred else [self.evaluate(node)]
        return found

    def sequence(self, node: ast.expr) -> list[Any]:
        """Elements of what must be a list or tuple."""
        value = self.evaluate(node)
        if not isinstance(value, list | tuple):
            raise self.error(f"takes the elements of {_kind(value)}", "Write a list.")
        self.spend(len(value))
        return list(value)

    def mapping(self, node: ast.expr) -> dict[Any, Any]:
        """Value of what must be a dict."""
        value = self.evaluate(node)
        if not isinstance(value, dict):
            raise self.error(f"unpacks {_kind(value)} into a dict", "Write a dict.")
        self.spend(len(value))
        return value

    def call(self, node: ast.Call) -> Any:
        """Result of one of the few functions that make data out of data."""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        own = name in self.names or name in self.imports
        match name, node.args, node.keywords:
            case "dict", _, _ if not own:
                return self.arguments(node)
            case "round", [number], [] if not own:
                return round(self.evaluate(number))
            case "range", bounds, [] if not own:
                numbers = range(*self.items(bounds))
                self.spend(len(numbers))
                return list(numbers)
            case _:
                raise self.error(f"uses a function call {_brief(node.func)}(...), {_EXECUTED}")

    def arguments(self, call: ast.Call) -> dict[Any, Any]:
        """The dict that the arguments of `dict` and `update` stand for."""
        if len(call.args) > 1:
            raise self.error("gives several dicts to one call", "Give one dict and keywords.")
        made = dict(self.mapping(call.args[0])) if call.args else {}
        named: set[Any] = set()
        for keyword in call.keywords:
            name, value = keyword.arg, keyword.value
            given = {name: self.evaluate(value)} if name else self.mapping(value)
            if twice := named & given.keys():
                raise self.error(
                    f"gives {reprlib.repr(min(twice, key=str))} twice", "Give it once."
                )
            named |= given.keys()
            made |= given
        return made

    def key(self, value: Any) -> Any:
        """A value that can be a key."""
        if isinstance(value, dict | list | set):
            raise self.error(f"uses {_kind(value)} as a key", "Use a string.")
        return self.flat(value)

    def flat(self, value: Any) -> Any:
        """A value that takes no longer to compare or hash than to read."""
        parts = [value]
        if isinstance(value, dict | list | tuple | set):
            parts = [*value, *value.values()] if isinstance(value, dict) else [*value]
            if any(isinstance(part, dict | list | tuple | set) for part in parts):
                raise self.error(f"compares {_kind(value)} that holds other collections")
        self.spend(sum(len(part) if isinstance(part, str) else 1 for part in parts))
        return value

    def member(self, holder: Any, key: Any) -> Any:
        """An element of a dict, list, tuple or string."""
        if isinstance(holder, dict):
            found = self.key(key) in holder
        else:
            found = isinstance(holder, _SEQUENCES) and isinstance(key, int)
            found = found and -len(holder) <= key < len(holder)
        if not found:
            what = f"{reprlib.repr(key)} of {_kind(holder)}"
            raise self.error(f"takes {what}, which has no such element", "Define it.")
        return holder[key]

    def combine(self, op: ast.operator, left: Any, right: Any) -> Any:
        """Result of an arithmetic operator on numbers, strings, lists and tuples."""
        sequences = [side for side in (left, right) if isinstance(side, _SEQUENCES)]
        integers = [side for side in (left, right) if isinstance(side, int)]
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if isinstance(op, ast.Add) and len(sequences) == 2 and type(left) is type(right):
            self.spend(len(left) + len(right))
        elif isinstance(op, ast.Mult) and len(sequences) == len(integers) == 1:
            self.spend(len(sequences[0]) * max(integers[0], 0))
        elif not numbers or type(op) not in _OPERATORS:
            sides = f"{_kind(left)} and {_kind(right)}"
            raise self.error(f"applies {type(op).__name__} to {sides}")
        elif isinstance(op, ast.Pow) and len(integers) == 2 and abs(right) > 64:
            raise self.error("makes a number that no config needs")
        return _OPERATORS[type(op)](left, right)


def _kind(value: Any) -> str:
    """What a value is, for messages."""
    name = "dict" if isinstance(value, dict) else type(value).__name__
    return {"int": "an int", "NoneType": "None"}.get(name, f"a {name}")


def _brief(node: ast.AST) -> str:
    """The beginning of a piece of code, for messages."""
    return ast.unparse(node).partition("\n")[0][:60]
