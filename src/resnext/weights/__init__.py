"""Model files: one safetensors file that carries everything needed to use it."""

from resnext.weights.files import load, save

__all__ = ["load", "save"]
