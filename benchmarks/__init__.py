"""Measurements, each one command: `python -m benchmarks.<name>`; results in results/."""
