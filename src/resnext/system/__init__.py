"""The machine and its files; nothing here knows a network.

atomic.py    files that are written completely or not at all
cache.py     the cache folder
cpu.py       processor name and core count
device.py    choosing a torch device
download.py  downloads that resume and verify
progress.py  progress bars and log lines
"""
