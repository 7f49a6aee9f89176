"""Formats of files with weights: which one a file is in, and what is in it."""
