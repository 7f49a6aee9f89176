"""Take a model elsewhere: files for other runtimes, each proven in that runtime.

export.py    `export`: checks arguments, writes the file, proves it
graph.py     what a file computes: normalization, network, probabilities
targets.py   the file formats: ONNX, OpenVINO, torch.export
metadata.py  what a file says about itself, in the conventions of others too
gate.py      runs the file in a process of its own and compares it with the network
examine.py   what `doctor` says about such a file
client.py    that process: the target's runtime, NumPy and Pillow, nothing of this library
"""
