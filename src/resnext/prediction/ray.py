"""The same over a cluster: Ray's actors decode and answer, the caller writes.

Every machine must see the images and the model under the same names.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from resnext.errors import InputError
from resnext.inference.runner import Runner
from resnext.prediction.files import AnsweredBatch, PredictionSummary, answers, run

_BLOCK = 1024  # images of one task, at least


def _open(model: str, plan: bool) -> Runner:
    from resnext.inference.opener import open_runner

    return open_runner(model, device="auto", plan=plan)


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
    """Do what `bulk.predict_files` does, on each GPU of a Ray cluster, or each machine without.

    Ray is started on this machine unless it runs, or RAY_ADDRESS names a cluster.

    Args:
        model: Name of the model.
        images: Files, and folders that are searched at any depth.
        out: A file that ends in .csv, .jsonl or .parquet.
        top: Number of classes to report for each image.
        embeddings: Must be None: they are not collected from a cluster.
        batch_size: Images at a time; None for what the model is fastest with.
        overwrite: Whether `out` may be there already.
        progress: Whether to show how far it is, on standard error.
        plan: Whether each machine looks for its plan beside the model file.
        opener: Opens a model by name; the second argument is `plan`. Must be picklable.

    Raises:
        CheckpointError: A file cannot be written. Call again to continue.
        DataError: There is no image, or none that can be read.
        InputError: As there, or Ray is missing.
    """
    if embeddings is not None:
        raise InputError("embeddings are not collected from a cluster: leave them out.")
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise InputError(f"batch_size must be at least 1, not {batch_size!r}.")
    try:
        ray = import_module("ray")
        import_module("ray.data")
    except ImportError as error:
        raise InputError('Ray is not installed: pip install "resnext[ray]".') from error
    described = opener(model, False)
    batch = batch_size or described.batch
    block = -(-_BLOCK // batch) * batch
    how = {
        "model": model,
        "opener": opener,
        "plan": plan,
        "top": top,
        "batch": batch_size,
    }

    def answer(names: Iterator[str]) -> Generator[AnsweredBatch]:
        return _spread(ray, names, block, how)

    return run(
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


def _spread(
    ray: Any, names: Iterator[str], block: int, how: dict[str, Any]
) -> Generator[AnsweredBatch]:
    """Answers from the cluster, in order."""
    import pyarrow as pa

    context = ray.data.DataContext.get_current()
    options = context.execution_options
    log = logging.getLogger("ray.data")
    before = options.preserve_order, context.enable_progress_bars, log.level
    options.preserve_order, context.enable_progress_bars = True, False
    log.setLevel(logging.ERROR)  # progress is told by us
    try:
        tables = []
        while part := [os.fsencode(name) for name in islice(names, block)]:
            tables.append(ray.put(pa.table({"name": pa.array(part, pa.binary())})))
        done = ray.data.from_arrow_refs(tables).map_batches(
            _Actor,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_kwargs=how,
            **_places(ray),
        )
        for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield AnsweredBatch(table["row"].to_pylist(), table["problem"].to_pylist())
    finally:
        options.preserve_order, context.enable_progress_bars = before[:2]
        log.setLevel(before[2])


def _places(ray: Any) -> dict[str, Any]:
    """One actor for each GPU; if there are none, one for each machine, with all its cores."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus := int(sum(has.get("GPU", 0) for has in machines)):
        return {"compute": ray.data.ActorPoolStrategy(size=gpus), "num_gpus": 1}
    cores = [int(has["CPU"]) for has in machines if has.get("CPU", 0) >= 1]
    return {
        "compute": ray.data.ActorPoolStrategy(size=max(len(cores), 1)),
        "num_cpus": min(cores, default=1),
    }


class _Actor:
    """A model that is open on some machine."""

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
        """From a table of names to one of rows."""
        import pyarrow as pa

        names = map(os.fsdecode, table["name"].to_pylist())
        parts = list(answers(self.runner, names, self.top, self.batch))
        rows = [row for part in parts for row in part.rows]
        problems = [problem for part in parts for problem in part.problems]
        return pa.table(
            {"row": pa.array(rows, pa.string()), "problem": pa.array(problems, pa.string())}
        )
