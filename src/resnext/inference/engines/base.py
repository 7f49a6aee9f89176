"""The protocol of an engine, and one way to compute a network with it. Loads no torch."""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float32

from resnext.errors import InputError
from resnext.inference.runner import MapSession, Session
from resnext.system.cpu import core_count

if TYPE_CHECKING:
    from resnext.inference.engines.builder import EngineBuilder

EngineChoice = Literal["auto", "torch", "compile", "tensorrt", "onnxruntime", "openvino"]
"""The built-in engines; `ENGINES` also has those that users added."""

InputKind = Literal["images", "pixels"]
"""Normalized images `(n, c, h, w)` of floats, or pixels `(n, h, w, c)` of 8 bits."""

PRECISIONS = ("fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True)
class EngineConfig:
    """One way to compute a network.

    Args:
        engine: Name of the engine.
        precision: "fp32", "bf16", "fp16" or "int8".
        piece: Images computed at once.
        streams: Pieces computed in parallel.
        width: Channels that narrower groups are merged to; 0 leaves groups as they are.
    """

    engine: str
    precision: str = "fp32"
    piece: int = 1
    streams: int = 1
    width: int = 0

    def __str__(self) -> str:
        """Settings that differ within an engine: "2 × 8 images, groups of 16"."""
        pieces = f"{self.streams} × {self.piece} image{'s' if self.piece > 1 else ''}"
        return f"{pieces}, groups of {self.width}" if self.width else pieces


class Engine(ABC):
    """A library, or a mode of one, that computes networks.

    Importing an engine's file must not import its package, which may be missing or slow to load.

    Attributes:
        name: Its name in plans and on the command line.
        title: Its name in tables and messages.
        package: The module that it needs.
        install_hint: Argument of `pip install` if that module is missing.
        suffix: Suffix of the file that is kept for the next process; empty if none is kept.
        merges_groups: Whether to time convolutions with wider groups.
        slow_to_build: Types of devices for which building takes minutes. On these, `optimize`
            times the engine only on request, or with fewer than two other engines.
    """

    name: str
    title: str
    package: str
    install_hint: str
    suffix: str = ""
    merges_groups: bool = False
    slow_to_build: tuple[str, ...] = ()

    @abstractmethod
    def precisions(self, device: str) -> tuple[str, ...]:
        """Precisions with kernels on a type of device ("cpu", "cuda")."""

    @abstractmethod
    def build(self, source: EngineBuilder, form: EngineConfig, kind: InputKind) -> Session:
        """A session of a network, in the network's process.

        Raises:
            InputError: A package is not installed.
        """

    def check_precision(self, precision: str, device: str) -> None:
        """Refuse a precision that the engine cannot compute in.

        Args:
            precision: The precision; "auto" for any.
            device: Type of the device: "cpu", "cuda".

        Raises:
            InputError: The engine has no kernels for it, or the hardware lacks the arithmetic.
        """
        known = self.precisions(device)
        if not known:
            raise InputError(f"{self.title} does not run on {device}. Use another device.")
        if precision not in ("auto", *known):
            raise InputError(
                f"{self.title} has no {precision} on {device}. Use {' or '.join(known)}, or "
                "another engine."
            )

    def divisions(self, batch: int) -> list[tuple[int, int]]:
        """Ways to divide a batch worth timing: (images at once, pieces in parallel)."""
        return [(batch, 1)]

    def form_for(self, form: EngineConfig, count: int) -> EngineConfig:
        """The form for a call with `count` images, given the plan's `form`."""
        return form

    def save(self, source: EngineBuilder, form: EngineConfig, kind: InputKind, path: Path) -> None:
        """Write the file that `open` reads, completely or not at all; for engines with a suffix."""
        raise NotImplementedError

    def open(self, path: Path, form: EngineConfig) -> Session:
        """A session from a file that `save` wrote; for engines with a suffix."""
        raise NotImplementedError

    def build_maps(self, source: EngineBuilder, form: EngineConfig, kind: InputKind) -> MapSession:
        """As `build`, but the session returns the last feature maps instead of embeddings.

        Raises:
            InputError: The engine returns no feature maps, or a package is not installed.
        """
        raise self._no_maps()

    def open_maps(self, path: Path, form: EngineConfig) -> MapSession:
        """As `open`, but the session returns the last feature maps instead of embeddings.

        It reads the same file, so files of earlier versions can be explained too.

        Raises:
            InputError: The engine returns no feature maps, or a package is not installed.
        """
        raise self._no_maps()

    def _no_maps(self) -> InputError:
        return InputError(
            f"{self.title} returns no feature maps. Explain the network itself: plan=False or "
            "--no-plan."
        )

    def quantize(
        self,
        source: EngineBuilder,
        width: int,
        images: Float32[np.ndarray, "n c h w"],
        accuracy: Callable[[Session], float] | None = None,
    ) -> None:
        """Make the 8-bit network that `build` uses; for engines that have int8.

        Args:
            source: The network; keeps the result.
            width: Channels that narrower groups are merged to; 0 leaves groups as they are.
            images: Chooses the ranges of activations.
            accuracy: Measures a session. If given, the layers that cost most accuracy are returned
                to floating point until at most half a point is lost.
        """
        raise NotImplementedError

    @property
    def version(self) -> str:
        """Version of the installed package; empty if it is not installed."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return ""

    @property
    def installed(self) -> bool:
        """Whether the package is installed."""
        return find_spec(self.package) is not None

    def load(self) -> Any:
        """The package.

        Raises:
            InputError: The package is not installed.
        """
        return load_package(self.package, self.install_hint)


def core_divisions(batch: int) -> list[tuple[int, int]]:
    """Ways to divide a batch over cores: (images at once, pieces in parallel).

    All images at once, one by one, or one piece for every one, two or four cores.
    """
    ways = {(batch, 1), (1, 1)}
    for cores in (1, 2, 4):
        n = min(core_count() // cores, batch)
        if n > 1:
            ways |= {(-(-batch // n), n), (1, n)}
    return sorted(ways)


def load_package(name: str, install_hint: str) -> Any:
    """Import a module that may be missing.

    Args:
        name: The module.
        install_hint: Argument of `pip install`.

    Raises:
        InputError: The package is not installed.
    """
    if find_spec(name) is None:
        raise InputError(f"{name} is not installed. Install it with pip install {install_hint}.")
    return import_module(name)


@contextmanager
def silenced(logger: str) -> Iterator[None]:
    """Hide a library's warnings, printed lines, and log records of a logger below errors."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
