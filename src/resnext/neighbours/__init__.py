"""Images that a model sees as similar, and whether an image is like none that it knows.

    model_files   what an index belongs to: the weights of a model file
    file          the file of an index: written step by step, read in parts
    photos        the images of an index: all of a folder, or what the model was trained on
    build         from images to an index
    index         `open_index`: the nearest images of an image or an embedding
    unknown       a score of how unlike the training images an image is

Nothing here needs torch.
"""

from resnext.neighbours.build import build_index
from resnext.neighbours.index import Index, Neighbour, open_index

__all__ = ["Index", "Neighbour", "build_index", "open_index"]
