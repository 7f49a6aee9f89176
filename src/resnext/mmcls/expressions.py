"""The expressions of OpenMMLab's config files, evaluated as data, node by node."""

from __future__ import annotations

import ast
import operator as do
import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from os.path import normpath
from pathlib import Path
from typing import Any

from resnext.errors import ConfigError

_MAX_INT = 2**63  # products of larger numbers would fill the memory

_MATHS: dict[type[ast.AST], Callable[..., Any]] = {
    **{ast.Add: do.add, ast.Sub: do.sub, ast.Mult: do.mul, ast.Mod: do.mod, ast.Pow: do.pow},
    **{ast.Div: do.truediv, ast.FloorDiv: do.floordiv},
    **{ast.USub: do.neg, ast.UAdd: do.pos, ast.Not: do.not_},
    **{ast.Eq: do.eq, ast.NotEq: do.ne, ast.Is: do.is_, ast.IsNot: do.is_not},
    **{ast.Lt: do.lt, ast.LtE: do.le, ast.Gt: do.gt, ast.GtE: do.ge},
    **{ast.In: lambda item, all_: item in all_, ast.NotIn: lambda item, all_: item not in all_},
}
BASE_VALUE = re.compile(r"\{\{\s*_base_\.([\w.]+)\s*\}\}")
_FILE_VALUE = re.compile(r"\{\{\s*(file(?:Dirname|Basename|BasenameNoExtension|Extname))\s*\}\}")
EXECUTED = "which would have to be executed"


class Expressions(ABC):
    """Evaluates the expressions of a file that describe data, and refuses all others.

    Args:
        path: Where the file is.

    Attributes:
        full: The same as an absolute path.
        line: The current line, for messages.
        names: Values of the names that are defined so far.
        imports: Names of what is imported; None for a module, which has no value.
    """

    def __init__(self, path: Path) -> None:
        self.full = Path(normpath(path.absolute()))
        self.line = 1
        self.names: dict[str, Any] = {}
        self.imports: dict[str, str | None] = {}

    @abstractmethod
    def error(self, problem: str, advice: str = "Write its value instead.") -> ConfigError:
        """The error to raise for the current line."""

    @abstractmethod
    def spend(self, amount: int) -> None:
        """Count work, before it is done; raise if it is too much."""

    @abstractmethod
    def assign(self, target: ast.expr, value: Any) -> None:
        """Give a value to a name or to an element of a dict or list."""

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
                if not BASE_VALUE.fullmatch(text) and not _FILE_VALUE.fullmatch(text):
                    raise self.error(f"uses {code_of(node)}, which refers to nothing")
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
                raise self.error(f"uses {code_of(node)}, {EXECUTED}")

    def lookup(self, name: str) -> Any:
        """Value of a name."""
        if name in self.imports and self.imports[name] is None:
            raise self.error(f"uses {name}, a module, {EXECUTED}")
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
        if reference := BASE_VALUE.fullmatch(value):
            result = self.lookup("_base_")
            for key in reference[1].split("."):
                result = self.member(result, key)
            return result
        if BASE_VALUE.search(value) or "{{$" in value:
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
            raise self.error(f"needs a {wanted} where {kind_of(value)} is")
        self.spend(len(value))
        return value

    def call(self, call: ast.Call) -> Any:
        """Result of one of the few functions that turn data into data."""
        name = code_of(call.func)
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
                raise self.error(f"uses a function call {name}(...), {EXECUTED}")

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
            raise self.error(f"compares {kind_of(value)} that holds others")
        self.spend(sum(len(part) if isinstance(part, str) else 1 for part in parts))
        return value

    def member(self, holder: Any, key: Any) -> Any:
        """An element of a dict, list, tuple or string."""
        try:
            return holder[self.flat(key)]
        except (LookupError, TypeError):
            problem = f"takes {reprlib.repr(key)} of {kind_of(holder)}, which has no such element"
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
            problem = f"applies {type(op).__name__} to {kind_of(left)} and {kind_of(right)}"
            raise self.error(problem)
        elif isinstance(op, ast.Pow) and len(integers) == 2 and abs(right) > 64:
            raise self.error("makes a number that no config needs")
        return _MATHS[type(op)](left, right)


def kind_of(value: Any) -> str:
    """Name of a value's type, for messages."""
    name = "dict" if isinstance(value, dict) else type(value).__name__
    return {"int": "an int", "NoneType": "None"}.get(name, f"a {name}")


def code_of(node: ast.AST) -> str:
    """The beginning of a piece of code, for messages."""
    return ast.unparse(node).partition("\n")[0][:60]
