"""The fault matrix: one thing of the cluster broken during every stage, and what came of it.

`python -m tests.faults` runs it, row by row, each from an empty lake, on a cluster of processes (tests/stack/cluster.py).
docs/reliability.md has its table.
"""
