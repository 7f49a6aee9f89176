"""The fastest way to run a network on this machine, found by measuring.

folding.py     batch norms into convolutions; wider groups
sessions.py    engines, loaded and ready: pixels or images in, logits and embeddings out
plan.py        what was chosen, for which model and machine, and where it is remembered
…
"""
