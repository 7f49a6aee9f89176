"""Embeddings of images through the fastest engine at hand, cached on disk."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from resnext.card import Preprocessing
from resnext.data.dataset import ImageSet
from resnext.data.loader import eval_loader
from resnext.data.workers import shared_memory_line
from resnext.errors import CheckpointError, DataError, InputError, ResNeXtError
from resnext.inference.engines import ENGINES, EngineConfig
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.opener import open_planned
from resnext.inference.optimized import Optimized
from resnext.inference.runner import Session
from resnext.network import ResNeXt
from resnext.system.atomic import write_atomically
from resnext.system.cache import cache_folder
from resnext.system.cpu import available_cores
from resnext.system.device import DTYPES, pick_precision
from resnext.system.digest import short_digest
from resnext.system.progress import Reporter
from resnext.system.text import counted
from resnext.training.interrupts import Interrupts

BATCH = 64
_EXPORT_PAYS = 300  # images from which exporting the network takes less time than it saves


@dataclass(frozen=True)
class Embedder:
    """Turns images into embeddings: what the classifier of a network sees.

    Args:
        network: The network, in evaluation mode; its classifier is not used.
        weights: The file or name that it was loaded from, which may have a plan.
        preprocessing: How images become input.
        device: Where to run.
        requested_precision: "auto", "fp32", "bf16" or "fp16".
        workers: Processes that decode images.
        progress: Shows the progress.
        interrupts: Signals, which wait for the end of a batch while images are computed.
    """

    network: ResNeXt
    weights: str | Path
    preprocessing: Preprocessing
    device: torch.device
    requested_precision: str
    workers: int
    progress: Reporter
    interrupts: Interrupts

    @cached_property
    def plan(self) -> Optimized | None:
        """The plan next to the weights, if it applies and is not in 8 bits."""
        model = open_planned(self.weights, self.device.type, BATCH, progress=False)
        if model is None or model.plan.size != self.preprocessing.size:
            return None
        if model.config.in_channels != self.network.config.in_channels:
            return None
        allowed = DTYPES if self.requested_precision == "auto" else (self.requested_precision,)
        return model if model.plan.form.precision in allowed else None

    @cached_property
    def precision(self) -> str:
        """The precision of the embeddings: that of the plan, else that of any training."""
        if self.plan:
            return self.plan.plan.form.precision
        dtype = pick_precision(self.requested_precision, self.device)
        return next(name for name, known in DTYPES.items() if known is dtype)

    def embed(self, *parts: ImageSet) -> list[Float32[np.ndarray, "n d"]]:
        """The embeddings of each set, in the order of its images.

        Images that the cache holds are not computed. It is written also if the work is interrupted.

        Raises:
            DataError: An image cannot be read.
            ResNeXtError: An embedding is not finite.
        """
        path = self._cache_file(parts[0].name)
        known = read_cache(path, self.network.num_features)
        keys = [content_keys(images) for images in parts]
        distinct = {key for some in keys for key in some}
        missing = len(distinct - known.keys())
        if not missing:
            self.progress.line("All embeddings are in the cache.")
        else:
            session = self._session(len(distinct))  # the same one after an interruption
            self.progress.start("Computing embeddings", missing)
            try:
                with self.interrupts.listen():
                    for images, some in zip(parts, keys, strict=True):
                        self._compute(session, images, some, known)
            finally:
                self._write_cache(path, known)
        return [np.stack([known[key] for key in some]) for some in keys]

    def _compute(
        self, session: Session, images: ImageSet, keys: list[bytes], known: dict[bytes, np.ndarray]
    ) -> None:
        """Add the embeddings of all images of a set that are not known; copies only once."""
        first = {key: i for i, key in reversed([*enumerate(keys)])}
        missing = [i for key, i in first.items() if key not in known]
        if not missing:
            return
        loader = eval_loader(
            images, self.preprocessing, batch_size=BATCH, workers=self.workers, indices=missing
        )
        if line := shared_memory_line(self.workers, loader.workers):
            self.progress.line(line)
        for x, _ in loader:
            self.interrupts.check()
            rows = session(x.numpy())[1]
            if not np.isfinite(rows).all():
                raise ResNeXtError(
                    f"An embedding of {images.name} is NaN or infinite. Check the weights with "
                    f"resnext doctor, or compute with --precision fp32."
                )
            for i, row in zip(loader.done[-len(rows) :], rows, strict=True):
                known[keys[i]] = row
            self.progress.advance(len(rows))
        lost = sorted({*missing} - {*loader.done})
        if lost:
            raise DataError(
                f"{counted(len(lost), 'image')} became unreadable since the check, such as "
                f"{images.title(lost[0])}. Run the same command with --resume: it checks again."
            )

    def _session(self, count: int) -> Session:
        """The plan's engine, else the first one that can be built."""
        if self.plan:
            return self._opened(self.plan.session("images", BATCH), self.plan.plan.form)
        builder = EngineBuilder(self.network.to(self.device), self.preprocessing.size, self.device)
        *exported, last = engine_forms(count, self.device.type, self.precision)
        for form in exported:
            with suppress(InputError):  # onnx or onnxscript is not installed
                return self._opened(builder.session(form), form)
        return self._opened(builder.session(last), last)

    def _opened(self, session: Session, form: EngineConfig) -> Session:
        title = ENGINES[form.engine].title
        self.progress.line(f"Computing embeddings with {title}, {form.precision}.")
        return session

    def _cache_file(self, data: str) -> Path:
        """The cache file of a data set, by everything that an embedding depends on."""
        config = self.network.config.replace(num_classes=1)
        digest = hashlib.sha256(repr((config, self.preprocessing, self.precision)).encode())
        for name, x in self.network.state_dict().items():
            if not name.startswith("fc."):
                digest.update(f"{name} {x.dtype}".encode())
                digest.update(x.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        folder = os.path.abspath(data)  # noqa: PTH100
        name = f"{digest.hexdigest()[:16]}-{short_digest(folder)}.safetensors"
        return cache_folder() / "embeddings" / name

    def _write_cache(self, path: Path, known: dict[bytes, np.ndarray]) -> None:
        if not known:
            return
        tables = {
            "keys": np.stack([np.frombuffer(key, np.uint8) for key in known]),
            "embeddings": np.stack([*known.values()]),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda temporary: save_file(tables, temporary))
        except (OSError, CheckpointError) as error:
            self.progress.line(f"The next run will compute all embeddings again: {error}")


def engine_forms(count: int, device: str, precision: str) -> list[EngineConfig]:
    """Ways to compute embeddings, the fastest first and PyTorch, which always works, last.

    The order is that of most measurements with `optimize`. OpenVINO and ONNX Runtime first export
    the network, which takes seconds.

    Args:
        count: Number of images.
        device: Type of the device.
        precision: Precision to compute in.
    """
    forms: list[EngineConfig] = []
    exporting = [name for name, engine in reversed(ENGINES.items()) if engine.suffix]
    for name in (*exporting, "torch"):
        engine = ENGINES[name]
        if engine.suffix and (count < _EXPORT_PAYS or not engine.installed):
            continue
        if precision in engine.precisions(device):
            piece, streams = max(engine.divisions(BATCH), key=lambda way: (way[1], -way[0]))
            forms.append(EngineConfig(name, precision, piece, streams))
    return forms


def content_keys(images: ImageSet) -> list[bytes]:
    """A hash of each image as it is stored: 16 bytes.

    Raises:
        DataError: An image cannot be read.
    """

    def key(index: int) -> bytes:
        data = images.read(index)
        if isinstance(data, np.ndarray):
            data = f"{data.shape} ".encode() + np.ascontiguousarray(data).tobytes()
        return hashlib.blake2b(data, digest_size=16).digest()

    with ThreadPoolExecutor(min(available_cores(), 8)) as pool:
        return [*pool.map(key, range(len(images)))]


def read_cache(path: Path, width: int) -> dict[bytes, np.ndarray]:
    """Embeddings of earlier runs by `content_keys`; empty if there are none, or they are damaged.

    Args:
        path: The cache file.
        width: Numbers in an embedding.
    """
    with suppress(OSError, SafetensorError, KeyError):
        tables = load_file(path)
        keys, rows = tables["keys"], tables["embeddings"]
        if keys.shape == (len(rows), 16) and rows.shape[1:] == (width,):
            return {key.tobytes(): row for key, row in zip(keys, rows, strict=True)}
    return {}
