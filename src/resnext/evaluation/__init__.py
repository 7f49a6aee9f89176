"""How good a classifier is.

classification.py  `evaluate` and `compare`: run a classifier over labelled images
comparison.py      two classifiers on the same images: what flipped, and the verdict
label_doubts.py    labels that are probably wrong, by confident learning
metrics.py         numbers from the logits: accuracy, confusion, calibration error
"""

from resnext.evaluation.classification import compare, evaluate

__all__ = ["compare", "evaluate"]
