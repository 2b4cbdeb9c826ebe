"""The paper's tables: configs, runs and results."""
