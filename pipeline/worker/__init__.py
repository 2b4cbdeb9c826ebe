"""One stage's process."""
