"""How good a classifier is.

classification.py  `evaluate` and `compare`: run a classifier over labelled images
comparison.py      two classifiers on the same images: what flipped, and the verdict
metrics.py         numbers from the logits: accuracy, confusion, calibration error
"""

from resnext.evaluation.classification import compare, evaluate

__all__ = ["compare", "evaluate"]
