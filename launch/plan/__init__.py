"""Everything that is checked, measured and predicted before a run."""
