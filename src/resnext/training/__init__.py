"""Training: recipes, the loop, and what is shown meanwhile."""

from resnext.training.loop import train
from resnext.training.recipe import RECIPES, Recipe

__all__ = ["RECIPES", "Recipe", "train"]
