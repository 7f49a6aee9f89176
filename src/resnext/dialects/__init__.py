"""Other libraries: one file and one row in the table for each.

dialect.py       the type: names, files, metadata, recogniser
table.py         the table of dialects
torchvision.py   torchvision
timm.py          timm
openmmlab.py     MMClassification, MMPretrain, MMDetection, MMSegmentation
openmmlab_images.py  their image pipelines
lucid.py         Lucid 2 and 3
detectron2.py    Detectron2
transformers.py  Transformers
torch7.py        the original release in Lua
"""
