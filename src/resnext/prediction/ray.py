"""Folder prediction on a Ray cluster: actors decode and compute, the caller writes the table.

Every machine must find the images and the model under the same paths.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from resnext.checks import at_least
from resnext.errors import InputError
from resnext.inference.runner import Runner
from resnext.prediction.files import AnsweredBatch, PredictionSummary, answers, predict_table

_BLOCK = 1024  # images per task, at least


def _open(model: str, plan: bool) -> Runner:
    """A runner whose predictions do not depend on the machine: accuracy is not given up."""
    from resnext.inference.opener import open_runner
    from resnext.inference.optimized import Optimized

    runner = open_runner(model, plan=plan)
    if isinstance(runner, Optimized) and runner.plan.tradeoff is not None:
        return open_runner(model, plan=False)
    return runner


def predict_files_with_ray(
    model: str,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    top: int = 1,
    embeddings: str | Path | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
    plan: bool = True,
    opener: Callable[[str, bool], Runner] = _open,
) -> PredictionSummary:
    """Classify image files on a Ray cluster, and write a table with one row for each, in order.

    One actor runs on each GPU of the cluster, or on each machine if the cluster has no GPUs. The
    table is that of `predict_files`, and an interrupted call is continued in the same way. Ray is
    started on this machine unless it is already running or RAY_ADDRESS names a cluster.

    Args:
        model: A model file or name that every machine can open.
        images: Files, and folders that are searched at any depth.
        out: A file ending in .csv, .jsonl or .parquet.
        top: Number of classes to report for each image.
        embeddings: Must be None: embeddings are not collected from a cluster.
        batch_size: Images per batch; None for the runner's own.
        overwrite: Whether `out` may exist.
        progress: Whether to show progress on standard error.
        plan: Whether each machine uses its plan next to the model file. Plans that give up accuracy
            for speed are not used: predictions would depend on the machine.
        opener: Opens a model by name; the second argument is `plan`. Must be picklable.

    Raises:
        CheckpointError: A file cannot be written. Call again to continue.
        DataError: No images are given, or none can be read.
        InputError: Ray is not installed, the model has no card with labels, an argument is out of
            range, or `out` exists or was started with other arguments.
    """
    if embeddings is not None:
        raise InputError("embeddings are not collected from a cluster: leave them out.")
    if batch_size is not None:
        at_least("batch_size", batch_size, 1, error=InputError)
    try:
        ray = import_module("ray")
        import_module("ray.data")
    except ImportError as error:
        raise InputError('Ray is not installed: pip install "resnext[ray]".') from error
    described = opener(model, False)
    batch = batch_size or described.batch
    block = -(-_BLOCK // batch) * batch
    actor = {
        "model": model,
        "opener": opener,
        "plan": plan,
        "top": top,
        "batch": batch_size,
    }

    def answer(names: Iterator[str]) -> Generator[AnsweredBatch]:
        return _answers_from_cluster(ray, names, block, actor)

    return predict_table(
        described,
        images,
        Path(out),
        answer,
        top=top,
        step=block,
        embeddings=None,
        overwrite=overwrite,
        progress=progress,
    )


def _answers_from_cluster(
    ray: Any, names: Iterator[str], block: int, actor: dict[str, Any]
) -> Generator[AnsweredBatch]:
    """Predictions for files in order; `actor` holds the arguments of `_Actor`."""
    import pyarrow as pa

    context = ray.data.DataContext.get_current()
    options = context.execution_options
    log = logging.getLogger("ray.data")
    before = options.preserve_order, context.enable_progress_bars, log.level
    options.preserve_order, context.enable_progress_bars = True, False
    log.setLevel(logging.ERROR)  # we show the progress
    try:
        tables = []
        while encoded := [os.fsencode(name) for name in islice(names, block)]:
            tables.append(ray.put(pa.table({"name": pa.array(encoded, pa.binary())})))
        done = ray.data.from_arrow_refs(tables).map_batches(
            _Actor,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_kwargs=actor,
            **_actor_pool(ray),
        )
        for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield AnsweredBatch(table["row"].to_pylist(), table["problem"].to_pylist())
    finally:
        options.preserve_order, context.enable_progress_bars = before[:2]
        log.setLevel(before[2])


def _actor_pool(ray: Any) -> dict[str, Any]:
    """One actor per GPU; without GPUs, one per machine, with all its cores."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus := int(sum(has.get("GPU", 0) for has in machines)):
        return {"compute": ray.data.ActorPoolStrategy(size=gpus), "num_gpus": 1}
    cores = [int(has["CPU"]) for has in machines if has.get("CPU", 0) >= 1]
    return {
        "compute": ray.data.ActorPoolStrategy(size=max(len(cores), 1)),
        "num_cpus": min(cores, default=1),
    }


class _Actor:
    """A model, opened on one machine of the cluster."""

    def __init__(
        self,
        model: str,
        opener: Callable[[str, bool], Runner],
        plan: bool,
        top: int,
        batch: int | None,
    ) -> None:
        self.runner, self.top = opener(model, plan), top
        self.batch = batch or self.runner.batch

    def __call__(self, table: Any) -> Any:
        """Turn a table of file names into one of rows."""
        import pyarrow as pa

        names = map(os.fsdecode, table["name"].to_pylist())
        batches = list(answers(self.runner, names, self.top, self.batch))
        rows = [row for batch in batches for row in batch.rows]
        problems = [problem for batch in batches for problem in batch.problems]
        return pa.table(
            {"row": pa.array(rows, pa.string()), "problem": pa.array(problems, pa.string())}
        )
