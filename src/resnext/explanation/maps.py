"""Exact class maps: what each place of the last feature map adds to a logit.

The network averages its last feature map over its places and applies one linear layer, so

    logit of a class = mean over places of (weights of the class · features of the place) + bias

which needs neither gradients nor torch. It equals Grad-CAM at the last stage (arXiv:1610.02391).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from resnext.explanation.classes import Target
from resnext.inference.runner import Classifier


def class_map(
    features: Float32[np.ndarray, "d h w"], classifier: Classifier, target: Target
) -> tuple[Float32[np.ndarray, "h w"], float]:
    """The share of the explained number that comes from each place, and from the bias.

    Args:
        features: The last feature map.
        classifier: The last layer.
        target: The explained number.
    """
    weights = target.weights(len(classifier.bias))
    chosen = np.flatnonzero(weights)  # a product with all classes would take longer
    weight = weights[chosen] @ classifier.weight[chosen].astype(np.float64)
    _, h, w = features.shape
    values = np.tensordot(weight, features.astype(np.float64), 1) / (h * w)
    bias = weights[chosen] @ classifier.bias[chosen].astype(np.float64)
    return values.astype(np.float32), float(bias)
