"""Run a network fast.

runner.py      the interface of everything that predicts, and its outputs
opener.py      from a model's file or name to a runner
engines/       the libraries that compute a network
fold.py        folds batch norms into convolutions
fused.py       convolutions that also add the shortcut and apply ReLU
plan.py        the choice for a model and a machine, and its files
plan_table.py  a plan's measurements as a table
optimize.py    `optimize`: checks arguments, reads the cache, searches, writes the plan
optimize_file.py    the same for files of other runtimes
search.py      times engines and forms, and keeps those that agree with the network
frontier.py    smaller images and int8 within a bound on the loss of accuracy
optimized.py   a classifier that runs as its plan says
exported.py    files of other runtimes, as runners
last_layer.py  the last layer of a file of another runtime
foreign.py     classifiers that others exported: labels and preprocessing from metadata
"""

from resnext.inference.opener import open_runner

__all__ = ["open_runner"]
