"""Pickles that hold more than tensors: what is harmless is read, and none of it is executed.

Objects of foreign classes become `InertObject`, which keeps what belonged to them and does nothing.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from resnext.errors import CheckpointError

# What training leaves in checkpoints beside the weights
_HARMLESS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "argparse.Namespace",
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
    """Stands for an object of a class that is not loaded: keeps what it was made of."""

    def __init__(self, *args: object) -> None:
        self.args = args
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        """Keep what belonged to the object."""
        self.state = state


def _empty(*args: object) -> OrderedDict[str, Any]:
    """Stands for `defaultdict`, whose factory is not called."""
    return OrderedDict()


STUBS: dict[str, Callable[..., Any]] = {name: type(name, (InertObject,), {}) for name in _HARMLESS}
STUBS |= {name.replace("builtins.", "__builtin__."): STUBS[name] for name in _HARMLESS}
STUBS |= {**dict.fromkeys(_DICTIONARIES, OrderedDict), "collections.defaultdict": _empty}
"""Classes and functions by name, as Python 3 and as Python 2 wrote them."""

_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


class _Reader(pickle._Unpickler):  # in Python: the other's memo takes as much as a file asks for
    """Finds nothing but stand-ins, so a file can name code but never reach it."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name.

        Raises:
            CheckpointError: It is not known to be harmless.
        """
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return OrderedDict
        if full not in STUBS:
            raise CheckpointError(
                f"it names {full}, which is not known to be harmless. Nothing was executed"
            )
        return STUBS[full]


def read_pickle(file: IO[bytes]) -> Any:
    """What a plain pickle holds: NumPy arrays as such, other foreign objects as `InertObject`.

    Raises:
        CheckpointError: It names what is not known to be harmless, or is damaged.
    """
    try:
        return revived(_Reader(file, encoding="latin1").load())
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise CheckpointError(f"it is a damaged pickle ({brief(error)})") from error


def brief(error: BaseException) -> str:
    """What a reader says of a damaged file: its first line, as far as that can be read."""
    return str(error).partition("\n")[0].strip(" .")[:200] or type(error).__name__


def revived(value: Any) -> Any:
    """A value with the arrays in its dictionaries rebuilt from their bytes.

    Raises:
        CheckpointError: The bytes of one do not fit.
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
    """The array that NumPy would have rebuilt from a state of version, shape, type, order, bytes.

    Raises:
        CheckpointError: The bytes do not fit.
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
