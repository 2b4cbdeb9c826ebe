"""What a user may write: typed sections, read from YAML and checked before anything starts."""
