"""Take a model elsewhere: files for other runtimes, each proven in that runtime.

export.py    `export`: checks arguments, writes the file, proves it
graph.py     what a file computes: normalization, network, probabilities
eight_bits.py    the 8-bit graph of a plan as a file
picture.py   pictures of any size in: resizing and cropping inside a file
targets.py   the file formats: ONNX, OpenVINO, torch.export, ExecuTorch, a page for browsers
page.py      the page: ONNX Runtime Web and everything else in one HTML file, or a folder
page.html    its template: style, markup, script
page_index.py    what a page takes of an index: embeddings, classes, small pictures
page_service.js  keeps the files of a folder for offline use
page_worker.js   its network: resizing as Pillow does, and ONNX Runtime Web
page_client.mjs  runs that worker in Node.js, for the gate
metadata.py  what a file says about itself, in the conventions of others too
gate.py      runs the file in a process of its own and compares it with the network
examine.py   what `doctor` says about such a file
client.py    that process: the target's runtime, NumPy and Pillow, nothing of this library
"""
