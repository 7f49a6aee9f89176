"""Clean the labels of a data set: a local page for decisions by keyboard.

cases.py     what to look at: doubts, near-duplicates, unsure and unknown images
copies.py    pairs of images that show the same picture
decisions.py labels.csv, written after every decision
moves.py     files moved as decided, and moved back
session.py   the cases of one review, decided one by one
server.py    the page on loopback, behind a token
page.html    the page
layout.py    embeddings as points in the plane
map.py       the map of a data set, as a part of a page
map.html     its style, markup and script
map_page.html  the page around it
"""
