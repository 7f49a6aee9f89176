"""One file per kind of data. A new kind is one file here and a line in `open.find_source`.

base.py        the return types of all sources: `Source`, `LoadedSplit`
folders.py     folders of images, one per class
csv_list.py    a CSV file with paths and labels
arrays.py      idx files, and scikit-learn's digits
webdataset.py  tar shards, local or at a URL
parquet.py     Hugging Face's Parquet files
"""
