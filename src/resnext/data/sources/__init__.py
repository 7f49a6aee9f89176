"""One file per kind of data.

arrays.py   idx files and the digits
folders.py  class folders, lists
packed.py   tar shards and Parquet
"""
