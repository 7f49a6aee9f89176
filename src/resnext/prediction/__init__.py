"""What a classifier sees in images. Importing this package loads no torch.

images.py         `predict`: images in memory or in files, answers in memory
files.py          `predict_files`: folders of any size, resumable
output.py         CSV, JSON Lines and Parquet, and the journal behind them
ray.py            the same on a Ray cluster
contact_sheet.py  predictions as one picture
"""

from resnext.prediction.files import predict_files
from resnext.prediction.images import predict

__all__ = ["predict", "predict_files"]
