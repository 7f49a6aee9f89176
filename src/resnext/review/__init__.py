"""Clean the labels of a data set: a local page for decisions by keyboard.

cases.py     what to look at: doubts, near-duplicates, unsure and unknown images
decisions.py labels.csv, written after every decision
moves.py     files moved as decided, and moved back
session.py   the cases of one review, decided one by one
server.py    the page on loopback, behind a token
page.html    the page
"""
