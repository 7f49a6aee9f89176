"""Other libraries and ours side by side.

timing.py      `bench`: runs the contenders in turns
contenders.py  each at the best setting that is known
"""

from resnext.benchmark.timing import Benchmark, bench

__all__ = ["Benchmark", "bench"]
