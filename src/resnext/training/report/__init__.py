"""The report of a training run.

html.py    the page
charts.py  its charts, as SVG
"""
