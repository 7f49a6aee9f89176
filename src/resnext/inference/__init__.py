"""Run a network fast.

runner.py      the interface of everything that predicts, and its outputs
opener.py      from a model's file or name to a runner
engines/       the libraries that compute a network, and what they are built from
fold.py        batch norms become part of convolutions
plan.py        what was chosen for a model and a machine, and the files that say so
plan_table.py  a plan's measurements as a table
optimize.py    `optimize`: validates, looks into the cache, searches, writes the plan
search.py      times engines and forms, and keeps those that agree with the network
optimized.py   a classifier that is computed as its plan says
"""

from resnext.inference.opener import open_runner

__all__ = ["open_runner"]
