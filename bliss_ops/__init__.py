"""BLISS Ops: learn which pretraining sequences help, score a corpus, keep the best, train on them."""

__version__ = "0.1.0"
