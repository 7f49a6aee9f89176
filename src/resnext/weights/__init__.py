"""Model files: our own, with everything needed to use them, and those of other libraries.

catalog.py       public checkpoints
aliases.py       other names of public checkpoints
header.py        config and card in a safetensors header
classifier.py    the last layer of our files, read without torch
match.py         from tensors to the network that they fit
resolve.py       from a name, address or file to a checkpoint with its config
description.py   `describe`: config and card of a model, without its weights where possible
recognise.py     chooses the weights in a file, and finds their dialect and the network
structure.py     a network from the structure of its layers, whatever their names
layer_groups.py  tensors as layers: convolutions, norms, linear layers
block_roles.py   the roles of a block's layers
stem_roles.py    the stem's convolutions and norms
heads.py         which layer beside a trunk is its classifier
causes.py        why a file is not a ResNeXt
normalizer.py    mean and deviation of a layer that normalizes images
infer_config.py  rebuilds the config from names and shapes
lookalikes.py    known networks whose names and shapes are equal
config_source.py the architecture in a config file: ours, OpenMMLab's, or a model file's
adapt.py         changes the number of classes or channels
load.py          `load`, `load_backbone`
in_memory.py     state dicts and networks that are in memory, and wrappers around them
save.py          `save`
conversion.py    `convert`
diagnosis.py     `diagnose`
hub.py           the Hugging Face Hub
formats/         bytes to tensors and back
labels/          class names of public data sets
"""
