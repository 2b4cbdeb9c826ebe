"""Model-parallel pipelined training with local losses (see README.md beside this file)."""

__version__ = "0.1.0"
