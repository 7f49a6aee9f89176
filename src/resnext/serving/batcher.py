"""Threads that decode images and compute batches.

Whenever the engine is free, it takes the oldest images that are decoded, up to a batch: there is no
timer. While it computes, the next ones arrive, so under load batches fill by themselves.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import count

import numpy as np

from resnext.serving.admission import Admission
from resnext.serving.metrics import Metrics
from resnext.serving.model import Answer, Model
from resnext.serving.problems import Problem, damaged, unavailable
from resnext.system.cpu import available_cores

_AHEAD = 4  # batches of decoded pixels


class Job:
    """One image on its way.

    Args:
        source: The content of an image file, or pixels that are ready. It is dropped as soon as it
            is not needed.
        top: Number of classes to report.
        future: Gets the answer or the problem. Once it is done, for instance because the client
            left, the image is not computed.
    """

    __slots__ = ("future", "number", "pixels", "since", "source", "top")

    def __init__(
        self, source: bytes | np.ndarray, top: int, future: asyncio.Future[Answer | Problem]
    ) -> None:
        self.source: bytes | np.ndarray | None = source
        self.pixels: np.ndarray | None = None
        self.top, self.future = top, future
        self.number, self.since = 0, 0.0


class Batcher:
    """Computes the images of one model.

    Args:
        model: The model.
        loop: The event loop that waits for the answers.
        metrics: Counts what happens.
        admission: Learns the throughput.
    """

    def __init__(
        self,
        model: Model,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        admission: Admission,
    ) -> None:
        self.model, self._loop = model, loop
        self._metrics, self._admission = metrics, admission
        self._numbers = count()
        self._waiting: deque[Job] = deque()
        self._decoded: list[tuple[int, Job]] = []  # a heap: oldest first
        self._ahead = 0  # images that are being decoded or were, and are not computed yet
        self._closed = False
        lock = threading.Lock()
        self._room, self._ready = threading.Condition(lock), threading.Condition(lock)
        names = ["engine", *(f"decode-{i}" for i in range(available_cores()))]
        self._threads = [
            threading.Thread(
                target=self._compute if name == "engine" else self._decode,
                name=f"resnext-{name}",
                daemon=True,
            )
            for name in names
        ]
        for thread in self._threads:
            thread.start()

    def put(self, jobs: Sequence[Job]) -> bool:
        """Add images, in order; False if it is closed. Called by the event loop."""
        now = time.perf_counter()
        with self._room:
            if self._closed:
                return False
            for job in jobs:
                job.number, job.since = next(self._numbers), now
                self._waiting.append(job)
            self._room.notify(len(jobs))
        return True

    def close(self, seconds: float) -> None:
        """End the threads once everything is computed; wait for them.

        Args:
            seconds: How long to wait, if the engine hangs.
        """
        end = time.monotonic() + seconds
        with self._room:
            self._closed = True
            self._room.notify_all()
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))

    @property
    def waiting(self) -> int:
        """Images that are not being computed yet."""
        return len(self._waiting) + self._ahead

    # -- threads that decode ---------------------------------------------------------------------

    def _decode(self) -> None:
        while (job := self._next()) is not None:
            problem = None
            source, started = job.source, time.perf_counter()
            try:
                if source is not None:  # else the client left just now
                    job.pixels = self.model.pixels(source)
            except Problem as error:
                problem = error
            except Exception as error:  # such as MemoryError
                problem = damaged(f"The image cannot be decoded: {type(error).__name__}.")
            job.source = source = None
            now = time.perf_counter()
            self._metrics.observe("resnext_stage_seconds", now - started, stage="decode")
            if problem is not None:
                self._metrics.count("resnext_images_total", outcome="damaged")
                self._deliver([(job, problem)])
            job.since = now
            with self._room:
                if job.pixels is None:
                    self._ahead -= 1
                    self._room.notify()
                else:
                    heapq.heappush(self._decoded, (job.number, job))
                self._ready.notify()

    def _next(self) -> Job | None:
        """The oldest image to decode; None at the end."""
        most = _AHEAD * self.model.batch
        with self._room:
            while True:
                while self._waiting and self._ahead < most:
                    job = self._waiting.popleft()
                    if not self._dropped(job):
                        self._ahead += 1
                        return job
                if self._closed and not self._waiting:
                    self._ready.notify_all()
                    return None
                self._room.wait()

    # -- the thread that computes ----------------------------------------------------------------

    def _compute(self) -> None:
        while batch := self._take():
            jobs, busy = batch
            started = time.perf_counter()
            for job in jobs:
                waited = started - job.since
                self._metrics.observe("resnext_stage_seconds", waited, stage="queue")
            answers = self._answers(jobs)
            seconds = time.perf_counter() - started
            self._metrics.observe("resnext_stage_seconds", seconds, stage="engine")
            self._metrics.observe("resnext_batch_images", len(jobs))
            self._deliver(list(zip(jobs, answers, strict=True)), busy)

    def _take(self) -> tuple[list[Job], bool] | None:
        """The oldest decoded images, and whether they were there already; None at the end."""
        jobs: list[Job] = []
        busy = True
        with self._ready:
            while True:
                while self._decoded and len(jobs) < self.model.batch:
                    _, job = heapq.heappop(self._decoded)
                    self._ahead -= 1
                    if not self._dropped(job):
                        jobs.append(job)
                self._room.notify_all()
                if jobs:
                    return jobs, busy
                if self._closed and not self._waiting and not self._ahead:
                    return None
                busy = False
                self._ready.wait()

    def _answers(self, jobs: Sequence[Job]) -> list[Answer | Problem]:
        """The answers; if the engine fails, each image is tried alone, once."""
        try:
            x = np.stack([job.pixels for job in jobs if job.pixels is not None])
            return self.model.answers(self.model.outputs(x), [job.top for job in jobs])
        except Exception as error:  # engines raise errors of many types
            if len(jobs) > 1:
                return [answer for job in jobs for answer in self._answers([job])]
            reason = type(error).__name__
            return [unavailable(f"The engine failed on this image: {reason}.", "engine")]

    def _dropped(self, job: Job) -> bool:
        """Whether nobody waits for an image any more."""
        if not job.future.done():
            return False
        job.source = job.pixels = None
        reason = "left" if job.future.cancelled() else "deadline"
        self._metrics.count("resnext_dropped_total", reason=reason)
        self._metrics.count("resnext_images_total", outcome="dropped")
        return True

    def _deliver(self, results: list[tuple[Job, Answer | Problem]], busy: bool = False) -> None:
        """Hand results to the event loop."""

        def settle() -> None:
            if any(isinstance(result, Answer) for _, result in results):
                self._admission.computed(len(results), busy)
            for job, result in results:
                if not job.future.done():
                    job.future.set_result(result)

        for job, result in results:
            job.pixels = None
            if isinstance(result, Answer):
                self._count(result)
            elif result.status != 422:
                self._metrics.count("resnext_images_total", outcome="failed")
        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the loop has ended, and with it everybody who waits
            return

    def _count(self, answer: Answer) -> None:
        self._metrics.count("resnext_images_total", outcome="answered")
        self._metrics.predicted(*answer.top[0])
        if answer.unsure:
            self._metrics.count("resnext_unsure_total")
        if answer.unknown:
            self._metrics.count("resnext_unknown_total")
