"""How good a classifier is.

classification.py  `evaluate` and `compare`: run a classifier over images with known classes
metrics.py         what comes of its logits: accuracy, confusion, calibration error
calibration.py     how far confidences can be trusted; intervals and tests
"""

from resnext.evaluation.classification import compare, evaluate

__all__ = ["compare", "evaluate"]
