"""Servers that stand in for the real ones where only what is asked of them matters."""
