"""Checkpoints: ours, which carry everything needed to use them, and those of other libraries."""
