"""Images in, batches out. Importing this package loads no torch.

open.py        `open_splits`, `open_for_evaluation`: from a path to images and labels
dataset.py     `ImageSet` and `Splits`: images and targets, held compactly
labels.py      class labels and their numbering
sources/       one file per kind of data: folders, lists, arrays, shards, Parquet
decoding.py    from image files to pixels, resized and cropped
depth.py       the values that images of more than 8 bits use
transforms.py  from pixels to tensors: preprocessing, random views for training (loads torch)
loader.py      batches for evaluation, test-time augmentation (loads torch)
workers.py     worker processes: how many fit, signals, and how they end (loads torch)
passed_over.py what is not read in folders, counted by ending and reason
scan.py        checks every image before training
scan_cache.py  records of images, cached between scans
duplicates.py  equal and similar images
unlabelled.py  images without classes, for distillation
"""

from resnext.data.dataset import EXTENSIONS, ImageSet, Problem, Splits, Stored, class_weights
from resnext.data.open import open_for_evaluation, open_splits
from resnext.data.sources.folders import image_files

__all__ = [
    "EXTENSIONS",
    "ImageSet",
    "Problem",
    "Splits",
    "Stored",
    "class_weights",
    "image_files",
    "open_for_evaluation",
    "open_splits",
]
