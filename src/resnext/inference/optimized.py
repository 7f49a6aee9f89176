"""A classifier in the form that was found the fastest. Torch is needed only for its own engines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from resnext.card import Card
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, InputError
from resnext.inference.plan import EngineConfig, Kind, Plan, require_folder, save_beside
from resnext.inference.runner import Outputs, Session, opened

if TYPE_CHECKING:
    from torch import Tensor

    from resnext.network import ResNeXt


class Optimized:
    """A classifier, called as the network is: images `(n, c, h, w)` in, logits `(n, k)` out.

    Answers are in single precision. It can be called from several threads.

    Args:
        plan: How to compute.
        card: The network's.
        config: The network's.
        network: Gives the network, should the engine have to be built.
    """

    def __init__(
        self,
        plan: Plan,
        card: Card | None,
        config: ResNeXtConfig,
        network: Callable[[], ResNeXt],
    ) -> None:
        self.plan, self.card, self.config = plan, card, config
        self._network = network
        self._sessions: dict[tuple[Kind, bool], Session] = {}
        self._lock = threading.Lock()

    @property
    def batch(self) -> int:
        """Images at a time that it was made fast for."""
        return self.plan.batch

    @property
    def fingerprint(self) -> str:
        """Tells apart what may answer differently."""
        return f"{self.plan.model} {self.plan.form}"

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits.

        Raises:
            InputError: Images of another size than the plan's, or no images.
        """
        return self._tensors(x)[0]

    def embed(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The last map averaged over its pixels."""
        return self._tensors(x)[1]

    def pixels(self, x: UInt8[np.ndarray, "n h w c"]) -> Outputs:
        """Logits and embeddings for pixels as `pictures.pixels` makes them."""
        return self._session("pixels", len(x))(x)

    def explain(self) -> str:
        """The table that was decided from."""
        from resnext.inference.plan_table import plan_table

        return plan_table(self.plan)

    def save_plan(self, file: str | Path) -> Path:
        """Write the plan beside the model's file, where `predict` and `evaluate` find it."""
        return save_beside(Path(file), self.plan)

    def _tensors(self, x: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor]:
        import torch

        side, c = self.plan.size, self.config.in_channels
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
            raise InputError(f"Images must be a floating-point tensor, not {got}.")
        if x.ndim != 4 or tuple(x.shape[1:]) != (c, side, side):
            raise InputError(
                f"Images must have shape (n, {c}, {side}, {side}), for which this was made, not "
                f"{tuple(x.shape)}."
            )
        session = self._session("images", len(x))
        values = np.ascontiguousarray(x.detach().float().cpu().numpy())
        logits, embeddings = (torch.from_numpy(found).to(x.device) for found in session(values))
        return logits, embeddings

    def _session(self, kind: Kind, count: int) -> Session:
        """The engine for so many images; a few are computed one by one."""
        form = self.plan.form
        alone = form.piece > 1 and count <= form.piece // 8 and form.engine == "openvino"
        with self._lock:
            found = self._sessions.get((kind, alone))
            if found is None:
                if alone:
                    form = EngineConfig(form.engine, form.precision, 1, 1, form.width)
                found = self._sessions[kind, alone] = self._opened(form, kind)
        return found

    def _opened(self, form: EngineConfig, kind: Kind) -> Session:
        path = self.plan.graph(kind)
        state = "gone"
        if form.engine in ("onnxruntime", "openvino") and path.exists():
            try:
                return opened(path, form)
            except InputError:
                raise
            except Exception:  # engines have errors of their own
                state = "damaged"
        if form.precision == "int8":
            raise CheckpointError(
                f"{path} is {state}, which holds the 8-bit network. Run resnext optimize --again."
            )
        import torch

        from resnext.inference.engines.builder import EngineBuilder

        place = torch.device("cpu" if self.plan.device == "cpu" else "cuda")
        how = self.card.preprocessing if self.card else None
        workshop = EngineBuilder(self._network(), self.plan.size, place, how)
        with suppress(CheckpointError, OSError):  # it is only for the next time
            require_folder(path.parent)
            workshop.save(self.plan, kind)
        return workshop.session(form, kind)
