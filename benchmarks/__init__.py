"""Measurements, one command a module: `python -m benchmarks.NAME`. `rivals/` are other ways to
train, `lib/` is what the commands share."""
