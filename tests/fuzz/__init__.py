"""Bytes that nobody thought of, for what reads sockets and checkpoints; see `fuzz.py`."""
