"""How other libraries name things: one file per library.

dialect.py   the type
metadata.py  what their files say about labels, preprocessing and architecture
"""
