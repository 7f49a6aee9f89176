"""File formats: reads and writes dictionaries of arrays, independent of networks.

reading.py  every format that can be read
writing.py  files as other libraries write them
pickles.py  reads pickles without executing code
torch7.py   Torch7's serialization
wrappers.py wrappers' names and reparametrized weights of torch
"""
