"""File formats: reads and writes dictionaries of arrays. Nothing here knows a network.

reading.py  every format that can be read
writing.py  files as other libraries write them
pickles.py  pickles read without executing anything
torch7.py   Torch7's serialization
"""
