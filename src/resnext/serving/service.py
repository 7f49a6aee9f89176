"""What the routes call: a model with its threads, and a new one in its place. Knows no HTTP."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from resnext.errors import CheckpointError, ResNeXtError
from resnext.explanation.explanation import Explanation
from resnext.inference.runner import Runner
from resnext.prediction.drift import DriftMonitor, read_answers
from resnext.serving.admission import Admission
from resnext.serving.batcher import Batcher, Job
from resnext.serving.metrics import Metrics
from resnext.serving.model import Answer, Model
from resnext.serving.problems import Problem, unavailable
from resnext.serving.replace import check_replacement, open_gate
from resnext.serving.settings import Settings
from resnext.system.priority import give_way

if TYPE_CHECKING:
    from resnext.network import ResNeXt

_LAST = 3.0  # seconds that an engine has to end, when everybody has been answered
State = Literal["loading", "ready", "draining"]
T = TypeVar("T")


class Service:
    """A model that is served.

    Args:
        source: A network, a runner, a model file or a catalog name.
        settings: Options and limits.

    Attributes:
        metrics: All numbers.
        admission: What is let in.
        last_bytes: When all bodies must have come, on the event loop's clock; infinite until the
            server is asked to end.
    """

    def __init__(
        self, source: ResNeXt | Runner | str | Path, settings: Settings | None = None
    ) -> None:
        self.source, self.settings = source, settings or Settings()
        self.metrics = Metrics()
        if self.settings.reference is not None:
            self.metrics.watch_drift(DriftMonitor(read_answers(self.settings.reference)))
        self.admission = Admission(self.settings.images, self.settings.queue_bytes)
        self.last_bytes = math.inf
        self._receiving: set[asyncio.Timeout] = set()
        self._batcher: Batcher | None = None
        self._side = ThreadPoolExecutor(1, "resnext-side")  # explanations and neighbours
        self._changing = threading.Lock()
        gauge = self.metrics.gauge
        gauge("resnext_queue_images", "Images accepted and not answered yet.", self._images)
        gauge("resnext_queue_bytes", "Bytes of request bodies.", lambda: self.admission.bytes)
        gauge("resnext_ready", "Whether it is ready.", lambda: float(self.state == "ready"))
        gauge("resnext_build_info", "Versions.", self._build)

    @property
    def state(self) -> State:
        """Whether requests are answered."""
        if self.last_bytes < math.inf:
            return "draining"
        return "loading" if self._batcher is None else "ready"

    @property
    def model(self) -> Model:
        """The current model.

        Raises:
            Problem: 503; it is not loaded yet.
        """
        return self._current().model

    def refuse_unless_ready(self) -> None:
        """Refuse new work while there is no model, and once the server ends.

        Raises:
            Problem: 503.
        """
        if self.state == "draining":
            raise unavailable("The server is about to end.", "draining")
        self._current()

    def load(self, loop: asyncio.AbstractEventLoop) -> Model:
        """Open and warm the model; with another one running, replace it if it is no worse.

        Blocks; call it in a thread, whose priority is lowered.

        Args:
            loop: The event loop that waits for answers.

        Raises:
            ResNeXtError: The model cannot be used, or must not replace the present one, which then
                stays.
        """
        settings = self.settings
        give_way()  # and so do the engine's threads, which begin here: a refusal is quick
        with self._changing:
            model = Model(
                self.source,
                device=settings.device,
                plan=settings.plan,
                most_pixels=settings.pixels,
            )
            model.warm()
            old = self._batcher
            if old is not None:
                check_replacement(old.model, model, settings.gate)
            elif settings.gate is not None:
                open_gate(model, settings.gate)
            self._batcher = Batcher(model, loop, self.metrics, self.admission)
            if old is not None:
                old.close(settings.deadline)
            return model

    def reload(self, loop: asyncio.AbstractEventLoop) -> str:
        """Replace the model by the present content of its file; what happened, in one line."""
        try:
            if not isinstance(self.source, str | Path):
                raise CheckpointError("A model in memory cannot be loaded again.")
            before = self.model.version
            after = self.load(loop).version
        except Exception as error:  # a damaged file may raise anything
            self.metrics.count("resnext_reloads_total", outcome="refused")
            reason = str(error) if isinstance(error, ResNeXtError | OSError) else repr(error)
            return f"The model stays as it is. {reason}"
        self.metrics.count("resnext_reloads_total", outcome="done")
        return f"Version {after} has replaced version {before}"

    @contextmanager
    def receiving(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Move a deadline up inside a `with` block if the server is asked to end."""
        self._receiving.add(limit)
        try:
            yield
        finally:
            self._receiving.discard(limit)

    def drain(self) -> None:
        """Let nothing in any more; bodies that are still being sent get a last deadline."""
        self.last_bytes = asyncio.get_running_loop().time() + self.settings.last_bytes
        for limit in self._receiving:
            when = limit.when()
            limit.reschedule(min(self.last_bytes, math.inf if when is None else when))

    def close(self) -> None:
        """End the threads once everything that was let in is computed."""
        if self._batcher is not None:
            self._batcher.close(_LAST)
        self._side.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def submitted(
        self, images: Sequence[bytes | np.ndarray], top: int
    ) -> AsyncIterator[tuple[Model, Sequence[asyncio.Future[Answer | Problem]]]]:
        """Images on their way to the engine, inside an `async with` block.

        Args:
            images: Contents of image files, or pixels that are ready.
            top: Number of classes to report.

        Yields:
            The model that computes them, and the answer or problem of each, to be awaited. When
            they are cancelled, or at the end of the block, the images are dropped.
        """
        loop = asyncio.get_running_loop()
        jobs = [Job(image, top, loop.create_future()) for image in images]
        batcher = self._current()
        while not batcher.put(jobs):  # replaced at this moment
            closed, batcher = batcher, self._current()
            if batcher is closed:
                raise unavailable("The server is about to end.", "draining")
        timer = loop.call_later(self.settings.deadline, _expire, jobs)
        try:
            yield batcher.model, [job.future for job in jobs]
        finally:
            timer.cancel()
            for job in jobs:
                if not job.future.done():
                    job.future.cancel()
                job.source = None  # nobody waits: its bytes are free at once

    async def predict(
        self, images: Sequence[bytes | np.ndarray], top: int = 1
    ) -> tuple[Model, list[Answer | Problem]]:
        """What the model says about images; the model, and an answer or a problem for each.

        Args:
            images: Contents of image files, or pixels that are ready.
            top: Number of classes to report.
        """
        async with self.submitted(images, top) as (model, futures):
            return model, [await future for future in futures]

    async def explain(self, image: bytes, label: str | None, against: str | None) -> Explanation:
        """Why an image got a class.

        Raises:
            Problem: The image is damaged, or a class is unknown, or the model cannot explain.
        """
        model = self.model
        if not model.explains:
            raise Problem(
                404,
                "This model's file returns no feature maps, so it cannot be explained. Serve the "
                "file that it was exported from.",
                "no-maps",
            )
        return await self.aside(lambda: model.explain(image, label, against))

    async def aside(self, work: Callable[[], T]) -> T:
        """What a function returns that runs in a thread of its own, one at a time.

        Raises:
            Problem: The function raised it, or it failed.
        """
        running = asyncio.get_running_loop().run_in_executor(self._side, work)
        try:
            return await asyncio.wait_for(running, self.settings.deadline)
        except TimeoutError as error:
            raise _too_late() from error

    def _current(self) -> Batcher:
        if self._batcher is None:
            raise unavailable("The model is being loaded.", "loading")
        return self._batcher

    def _images(self) -> float:
        return self.admission.images

    def _build(self) -> dict[tuple[tuple[str, str], ...], float]:
        if self._batcher is None:
            return {}
        model = self._batcher.model
        return {
            (
                ("version", metadata.version("resnext")),
                ("model", model.name),
                ("model_version", model.version),
                ("engine", model.engine),
            ): 1.0
        }


def _expire(jobs: Sequence[Any]) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_result(_too_late())


def _too_late() -> Problem:
    return unavailable("The image could not be computed in time.", "deadline")
