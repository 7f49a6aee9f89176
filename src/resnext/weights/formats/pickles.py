"""Pickles with more than tensors: harmless objects are read, and no code is executed.

Objects of foreign classes become `InertObject`, which keeps their data and does nothing.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from resnext.errors import CheckpointError

# Classes and functions that training leaves in checkpoints
_HARMLESS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "argparse.Namespace",
    "fastcore.foundation.L",
    "types.SimpleNamespace",
    "datetime.datetime",
    "datetime.timedelta",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    *(
        f"builtins.{x}"
        for x in (
            "bool",
            "bytes",
            "dict",
            "float",
            "frozenset",
            "int",
            "list",
            "object",
            "range",
            "str",
            "tuple",
        )
    ),
    "builtins.getattr",
    "builtins.set",
    "builtins.slice",
    "builtins.complex",
    "_codecs.encode",
    "numpy.dtype",
    "numpy._core.numeric._frombuffer",
    "numpy.core.numeric._frombuffer",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{x}"
        for core in ("core", "_core")
        for x in ("scalar", "_reconstruct")
    ),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
)
_DICTIONARIES = (
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "addict.addict.Dict",
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)


class InertObject:
    """Replaces an object whose class is not loaded, and keeps its data."""

    args: tuple[object, ...] = ()
    state: object = None  # pickles make objects without calling `__init__`

    def __init__(self, *args: object) -> None:
        self.args = args

    def __setstate__(self, state: object) -> None:
        """Keep the state of the object."""
        self.state = state


def _empty(*args: object) -> OrderedDict[str, Any]:
    """Replaces `defaultdict`, so that its factory is not called."""
    return OrderedDict()


STUBS: dict[str, Callable[..., Any]] = {name: type(name, (InertObject,), {}) for name in _HARMLESS}
STUBS |= {name.replace("builtins.", "__builtin__."): STUBS[name] for name in _HARMLESS}
STUBS |= {**dict.fromkeys(_DICTIONARIES, OrderedDict), "collections.defaultdict": _empty}
"""Stand-ins of classes and functions, by their names in Python 3 and Python 2."""

_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


class _Reader(
    pickle._Unpickler
):  # the C version would allocate a memo of any size that a file states
    """Resolves names to stand-ins only, so that a file can name code but never run it."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name.

        Raises:
            CheckpointError: The name is not known to be harmless.
        """
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return OrderedDict
        if full not in STUBS:
            raise CheckpointError(
                f"it names {full}, which is not known to be harmless. Nothing was executed. If you "
                f"trust it, load it with the library that wrote it and torch.save its state dict"
            )
        return STUBS[full]


def read_pickle(file: IO[bytes]) -> Any:
    """The content of a plain pickle, with NumPy arrays rebuilt and other objects inert.

    Raises:
        CheckpointError: The pickle names something not known to be harmless, or is damaged.
    """
    try:
        return revived(_Reader(file, encoding="latin1").load())
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise CheckpointError(f"it is a damaged pickle ({brief(error)})") from error


def brief(error: BaseException) -> str:
    """First line of an error about a damaged file, at most 200 characters."""
    return str(error).partition("\n")[0].strip(" .")[:200] or type(error).__name__


def revived(value: Any) -> Any:
    """A value with the arrays in its dictionaries rebuilt from their bytes.

    Raises:
        CheckpointError: The bytes of an array do not fit its shape.
    """
    return _revived(value, {})


def _revived(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, InertObject):
        return _array(value)
    if not isinstance(value, dict):
        return value
    if id(value) not in seen:  # a dictionary may be in itself
        seen[id(value)] = again = {}
        again |= {key: _revived(x, seen) for key, x in dict.items(value)}
    return seen[id(value)]


def _array(value: InertObject) -> Any:
    """The array in a stand-in that has version, shape, type, order and bytes as its state.

    Raises:
        CheckpointError: The bytes do not fit the shape.
    """
    kind, state, name = None, value.state, type(value).__name__
    raw, shape, fortran = None, (), False
    if name.endswith("._reconstruct") and isinstance(state, tuple) and len(state) == 5:
        _, shape, kind, fortran, raw = state
    elif name.endswith("._frombuffer") and len(value.args) == 4:  # protocol 5
        raw, kind, shape, order = value.args
        fortran = order == "F"
    if isinstance(raw, InertObject) and raw.args:  # protocol 2 writes bytes as text
        raw = str(raw.args[0]).encode("latin1")
    if isinstance(raw, str):  # Python 2 wrote bytes and text alike
        raw = raw.encode("latin1")
    code = str(kind.args[0]) if isinstance(kind, InertObject) and kind.args else ""
    if (
        code not in _DTYPES
        or not isinstance(raw, bytes | bytearray)
        or not isinstance(shape, tuple)
    ):
        return value
    ends = kind.state[1] if isinstance(kind, InertObject) and isinstance(kind.state, tuple) else "<"
    dtype = np.dtype(code).newbyteorder(">" if ends == ">" else "<")
    array = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="))
