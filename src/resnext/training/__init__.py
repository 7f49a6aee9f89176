"""Training: recipes, the loop, checkpoints, and the report at the end."""

from resnext.training.launch import train
from resnext.training.recipe import RECIPES, Recipe

__all__ = ["RECIPES", "Recipe", "train"]
