"""Checkpoints: ours, which carry everything needed to use them, and those of other libraries."""

from resnext.weights.files import save
from resnext.weights.loading import load, load_backbone

__all__ = ["load", "load_backbone", "save"]
