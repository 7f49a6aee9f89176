"""The command line.

app.py    one function for each command
plots.py  charts of the catalog and of benchmarks
"""
