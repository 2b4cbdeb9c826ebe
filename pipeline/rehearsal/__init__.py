"""Whether a user's own network trains the same in every process."""
