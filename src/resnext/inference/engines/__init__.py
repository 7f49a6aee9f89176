"""What computes a network.

torch.py         PyTorch, plain or compiled
onnx_export.py   the network as an ONNX graph; wider groups and 8-bit pixels as edits of it
quantization.py  the graph in 8 bits
builder.py       builds sessions of a network
"""
