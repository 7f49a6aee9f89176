"""The command line.

app.py          all commands, the error messages and exit codes, `main`
info.py         info
train.py        train, distill
classify.py     evaluate, predict
compare.py      compare
drift.py        drift
explain.py      explain
index.py        index
review.py       review
serve.py        serve
export.py       export
speed.py        optimize, bench
checkpoints.py  catalog, convert, doctor, push
tables.py       the tables that commands print
plots.py        charts of the catalog and of benchmarks
options.py      option types and output files that several commands share
unreadable.py   images that a command cannot read
"""
