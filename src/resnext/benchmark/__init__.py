"""Benchmarks of other libraries and this one, side by side.

timing.py      `bench`: runs the contenders in turns
contenders.py  each library at its best known settings
results.py     rows, ratios and the table
"""

from resnext.benchmark.results import Benchmark
from resnext.benchmark.timing import bench

__all__ = ["Benchmark", "bench"]
