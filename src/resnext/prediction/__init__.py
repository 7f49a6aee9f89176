"""Classify images. Importing this package loads no torch.

images.py         `predict`: images in memory or in files, predictions in memory
inputs.py         what `predict` takes as images
files.py          `predict_files`: folders of any size to a table, resumable
output.py         tables (CSV, JSON Lines, Parquet) and the journal behind them
drift.py          whether answers still look like those of a reference
ray.py            `predict_files_with_ray`: `predict_files` on a Ray cluster
lettering.py      text in pictures, in whatever script
contact_sheet.py  images and their predictions as one picture
"""

from resnext.prediction.files import predict_files
from resnext.prediction.images import predict

__all__ = ["predict", "predict_files"]
