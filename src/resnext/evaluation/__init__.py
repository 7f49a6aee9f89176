"""How good a classifier is.

classification.py  `evaluate` and `compare`
calibration.py     how far confidences can be trusted; intervals and tests
"""

from resnext.evaluation.classification import compare, evaluate

__all__ = ["compare", "evaluate"]
