"""Why a classifier answered as it did. Importing this package loads no torch.

images.py       `explain`: one image, by any method
explanation.py  `Explanation`: the map, its numbers and whether it can be relied on
classes.py      which class is explained, and against which other one
maps.py         exact class maps from the last feature map
occlusion.py    maps from hiding parts of the image, for any runner
gradients.py    LayerCAM and integrated gradients, in torch
deletion.py     self-check: hides what a map points at
sanity.py       randomizes the network's layers: a map that stays the same explains nothing
overlay.py      a map drawn over its image
sheet.py        explanations as one picture
page.py         explanations as an HTML page
"""

from resnext.explanation.explanation import Explanation
from resnext.explanation.images import explain

__all__ = ["Explanation", "explain"]
