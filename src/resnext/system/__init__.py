"""The machine and its files, independent of networks.

allocator.py keep freed memory for the next batch
atomic.py    files that are written completely or not at all
cache.py     the cache folder
cpu.py       CPU name and core count
device.py    torch device and precision
digest.py    SHA-256 of files and texts
download.py  downloads of model files and shards, into the cache
forks.py     what a forked process inherits and cannot use
limits.py    limits of a container: CPU quota, memory, shared memory
main_guard.py one line for scripts that new processes run again
priority.py  threads that wait for a core behind the main one
progress.py  progress bars and log lines
signals.py   the signals that ask a process to end
terminal.py  text and tables as wide as the terminal
text.py      numbers and nouns in messages
"""
