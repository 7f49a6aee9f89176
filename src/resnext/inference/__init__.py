"""Run a network fast.

runner.py      the interface of everything that predicts; sessions of the engines
opener.py      from a model's file or name to a runner
fold.py        batch norms become part of convolutions
optimize.py    `optimize`: times engines and proves that they agree
plan.py        what was chosen, for which model and machine, and where it is kept
plan_table.py  the table that it was chosen from
optimized.py   a classifier that runs by a plan
engines/       what computes
"""

from resnext.inference.opener import open_runner

__all__ = ["open_runner"]
