"""The fault matrix: one thing of the cluster broken during every stage, and what came of it.

`python -m tests.faults` runs it, row by row, each on a fresh cluster (tests/stack/cluster.py); docs/reliability.md has its table.
"""
