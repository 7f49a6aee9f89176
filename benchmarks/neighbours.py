"""Time and memory of an index: opening it, one search, exact and whitened, and unknown scores.

    python benchmarks/neighbours.py --images 100000 --width 2048

The embeddings are random: an exact search takes as long for any others. Run alone on the machine.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnext.neighbours.build import unit
from resnext.neighbours.file import IndexFile, Record, UnfinishedIndex
from resnext.neighbours.index import Index
from resnext.neighbours.unknown import UnknownScore, bank_rows
from resnext.system.cpu import available_cores, cpu_name

_STEP = 1000


def main() -> None:
    """Write an index, search in it, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--searches", type=int, default=20)
    given = parser.parse_args()
    print(f"{cpu_name()}, {available_cores()} cores, NumPy {np.__version__}")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.index"
        began = time.perf_counter()
        write(path, given.images, given.width, rng)
        print(f"written in {time.perf_counter() - began:.1f} s, {path.stat().st_size / 1e6:.0f} MB")
        print(f"memory so far {peak():.0f} MB")
        queries = rng.random((given.searches + 1, given.width), np.float32)
        for whitened in (None, 256):
            began = time.perf_counter()
            index = Index(IndexFile(path), (), "", whitened)
            index.search(queries[0])
            opened = time.perf_counter() - began
            times = [timed(index.search, query) for query in queries[1:]]
            print(
                f"{'exact' if whitened is None else f'{whitened} whitened'}: opened with the first "
                f"search in {opened:.2f} s, then {1000 * statistics.median(times):.1f} ms a search "
                f"({1000 * min(times):.1f} to {1000 * max(times):.1f}), memory {peak():.0f} MB"
            )
            del index
    for width in (128, 512, 2048):
        bank = unit(rng.random((len(bank_rows(10**9, width)), width), np.float32))
        score = UnknownScore(bank, weight=0.1)
        rows, logits = rng.random((50, width), np.float32), rng.random((50, 1000), np.float32)
        pairs = zip(logits[:, None], rows[:, None], strict=True)
        alone = statistics.median(timed(score, *pair) for pair in pairs)
        together = timed(score, logits, rows) / len(rows)
        print(
            f"unknown score against {len(bank):,} x {width}: {1000 * alone:.2f} ms for one image, "
            f"{1000 * together:.2f} ms an image for {len(rows)} at once"
        )


def write(path: Path, count: int, width: int, rng: np.random.Generator) -> None:
    """An index of random embeddings, positive as those of networks are."""
    unfinished = UnfinishedIndex(path, {}, width, _STEP)
    for _ in range(0, count, _STEP):
        vectors = unit(rng.random((_STEP, width), np.float32)).astype(np.float16)
        unfinished.add([Record(vector, b"x") for vector in vectors])
    names = [f"{i}.jpg" for i in range(len(unfinished.sizes))]
    unfinished.finish(names, [-1] * len(names), {})


def timed(function: Callable[..., object], *query: np.ndarray) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    function(*query)
    return time.perf_counter() - began


def peak() -> float:
    """Most memory that the process has used, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
