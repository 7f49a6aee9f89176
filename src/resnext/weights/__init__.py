"""Model files: ours, which carry everything needed to use them, and those of other libraries.

catalog.py       public checkpoints
header.py        config and card in a safetensors header
resolve.py       from a name, address or file to a checkpoint with its config
recognise.py     which dialect a state dict is in, and where in it the network is
infer_config.py  the config, from names and shapes
adapt.py         other numbers of classes or channels
load.py          `load`, `load_backbone`
save.py          `save`
conversion.py    `convert`
diagnosis.py     `diagnose`
hub.py           the Hugging Face Hub
formats/         bytes to tensors and back
labels/          class names of public data sets
"""
