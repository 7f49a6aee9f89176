"""Images in, batches out. Importing this package loads no torch.

open.py        `open_splits`, `open_for_evaluation`: from a path to images and labels
dataset.py     image sets, labels, splits
decoding.py    image files to pixels
transforms.py  pixels to tensors, as the card says
loader.py      evaluation batches
scan.py        unreadable, repeated and leaked images, found before training
sources/       one file per kind of data
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
