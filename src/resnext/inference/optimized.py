"""A classifier that runs as its plan says. torch is loaded only if the plan's engine needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from resnext.card import Card
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, InputError
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import EngineConfig, InputKind
from resnext.inference.plan import Plan, require_folder, save_beside
from resnext.inference.runner import Classifier, MapOutputs, MapSession, Outputs, Session
from resnext.system.forks import change_after_fork

if TYPE_CHECKING:
    from torch import Tensor

    from resnext.network import ResNeXt

K = TypeVar("K")
V = TypeVar("V")


class Optimized:
    """A classifier that is called like the network: images `(n, c, h, w)` in, logits `(n, k)` out.

    Results are in single precision. Calls from several threads are safe. Of a copy, also in another
    process, plan and network (or the path of its file) travel; the engine is opened again.

    Args:
        plan: How to compute.
        card: The network's card. With a plan that gives up accuracy for speed, the attribute `card`
            has the plan's image size, crop, temperature and threshold instead.
        config: The network's config.
        network: Returns the network, if the engine has to be built again; must be picklable if this
            object is to be.
        device: The GPU to run a plan for a GPU on, as a torch device; "auto" for the current one.
        classifier: Returns weight and bias of the last layer; None to take them from the network.
    """

    def __init__(
        self,
        plan: Plan,
        card: Card | None,
        config: ResNeXtConfig,
        network: Callable[[], ResNeXt],
        device: str = "auto",
        classifier: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        self.plan, self.card, self.config = plan, plan.card(card), config
        self._network = network
        self._load_classifier = classifier
        self._device = device
        self._sessions: dict[tuple[InputKind, EngineConfig], Session] = {}
        self._map_sessions: dict[EngineConfig, MapSession] = {}
        self._lock = threading.Lock()
        change_after_fork(self)

    def after_fork(self) -> None:
        """Forget what a forked process cannot use; it is opened again there."""
        self._lock = threading.Lock()
        self._sessions = _surviving(self._sessions)
        self._map_sessions = _surviving(self._map_sessions)

    def __reduce__(self) -> tuple[Any, ...]:
        """What a copy or another process opens again."""
        opened = self.plan, self.card, self.config, self._network, self._device
        return type(self), (*opened, self._load_classifier)

    @property
    def batch(self) -> int:
        """The batch size that the plan was made for."""
        return self.plan.batch

    @property
    def fingerprint(self) -> str:
        """Differs between models that may predict differently."""
        plan, form = self.plan, self.plan.form
        parts = [plan.model, form.engine, form.precision, plan.calibration, str(form)]
        if plan.tradeoff is not None:
            parts.append(f"{plan.size} of {plan.tradeoff.resize} pixels")
        return " ".join(filter(None, parts))

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of normalized images.

        Raises:
            InputError: The images have another size than the plan's, or are not floating point.
        """
        return self._tensors(x)[0]

    def embed(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Embeddings of normalized images: the last feature map averaged over its pixels."""
        return self._tensors(x)[1]

    def pixels(self, x: UInt8[np.ndarray, "n h w c"]) -> Outputs:
        """Logits and embeddings of pixels as `data.decoding.pixels` returns them.

        Raises:
            InputError: The images have another size than the plan's.
        """
        self._check_pixels(x)
        return self.session("pixels", len(x))(x)

    def maps(self, x: UInt8[np.ndarray, "n h w c"]) -> MapOutputs:
        """Logits and last feature maps of pixels, computed as the plan says.

        Raises:
            InputError: The images have another size than the plan's, or the engine returns no
                feature maps.
        """
        self._check_pixels(x)
        form = ENGINES[self.plan.form.engine].form_for(self.plan.form, len(x))
        with self._lock:
            session = self._map_sessions.get(form)
            if session is None:
                session = self._map_sessions[form] = self._open(form, "pixels", maps=True)
        return session(x)

    @cached_property
    def classifier(self) -> Classifier:
        """The last layer of the network."""
        if self._load_classifier is not None:
            return Classifier(*self._load_classifier())
        from resnext.inference.engines.torch import classifier_of

        return classifier_of(self.network)

    @cached_property
    def network(self) -> ResNeXt:
        """The network that the plan was made for; loaded at first use."""
        return self._network()

    def explain(self) -> str:
        """A table of all measurements, and the choice."""
        from resnext.inference.plan_table import plan_table

        return plan_table(self.plan)

    def save_plan(self, file: str | Path) -> Path:
        """Write the plan next to the model's file, where `predict` and `evaluate` find it."""
        return save_beside(Path(file), self.plan)

    def session(self, kind: InputKind, count: int) -> Session:
        """The engine for calls with `count` images; opened at the first call, then kept."""
        form = ENGINES[self.plan.form.engine].form_for(self.plan.form, count)
        with self._lock:
            session = self._sessions.get((kind, form))
            if session is None:
                session = self._sessions[kind, form] = self._open(form, kind)
        return session

    def _tensors(self, x: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor]:
        import torch

        side, c = self.plan.size, self.config.in_channels
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
            raise InputError(f"Images must be a floating-point tensor, not {got}.")
        if x.ndim != 4 or tuple(x.shape[1:]) != (c, side, side):
            raise self._wrong_shape(f"(n, {c}, {side}, {side})", tuple(x.shape))
        session = self.session("images", len(x))
        values = np.ascontiguousarray(x.detach().float().cpu().numpy())
        logits, embeddings = (torch.from_numpy(result).to(x.device) for result in session(values))
        return logits, embeddings

    def _check_pixels(self, x: np.ndarray) -> None:
        side = self.plan.size
        if x.shape[1:] != (side, side, self.config.in_channels):
            raise self._wrong_shape(f"(n, {side}, {side}, {self.config.in_channels})", x.shape)

    def _wrong_shape(self, wanted: str, got: tuple[int, ...]) -> InputError:
        """The error for images of another size, which would be computed with wrong confidences."""
        smaller = "" if self.plan.tradeoff is None else " Prepare them as card.preprocessing says."
        return InputError(
            f"Images must have shape {wanted}, for which this was optimized, not {got}.{smaller}"
        )

    def _open(self, form: EngineConfig, kind: InputKind, maps: bool = False) -> Any:
        engine, path = ENGINES[form.engine], self.plan.graph(kind)
        state = "missing"
        if engine.suffix and path.exists():
            try:
                return engine.open_maps(path, form) if maps else engine.open(path, form)
            except InputError:
                raise
            except Exception:  # engines raise errors of many types
                state = "damaged"
        if form.precision == "int8":
            raise CheckpointError(
                f"{path}, which holds the 8-bit network, is {state}. Run resnext optimize --again."
            )
        from resnext.inference.engines.builder import EngineBuilder
        from resnext.system.device import pick_device

        device = pick_device("cpu" if self.plan.device == "cpu" else self._device)
        preprocessing = self.card.preprocessing if self.card else None
        network = vars(self).get("network") or self._network()  # not kept: the engine has a copy
        builder = EngineBuilder(network, self.plan.size, device, preprocessing)
        with suppress(CheckpointError, OSError):  # the file only saves time in later processes
            require_folder(path.parent)
            builder.save(form, kind, self.plan.graph(kind))
        return builder.map_session(form, kind) if maps else builder.session(form, kind)


def _surviving(sessions: dict[K, V]) -> dict[K, V]:
    """The sessions that a forked process can go on using."""
    return {key: x for key, x in sessions.items() if getattr(x, "survives_fork", False)}
