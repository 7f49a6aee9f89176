"""The fastest way to run a network on this machine, found by measuring.

folding.py        batch norms become part of convolutions
exporting.py      the network as an ONNX graph; wider groups and 8-bit pixels as edits of it
quantization.py   the graph in 8 bits
sessions.py       engines, loaded and ready: pixels or images in, logits and embeddings out
torch_session.py  the same for torch
workshop.py       makes sessions of a network
optimizing.py     times them and proves that they agree: `resnext.optimize`
plan.py           what was chosen, for which model and machine, and where it is remembered
optimized.py      a classifier by a plan
opening.py        a model's file or name, by its plan if it has one
explaining.py     the table that was decided from
"""
