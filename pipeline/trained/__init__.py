"""What a run has trained: read from its folder, evaluated, asked."""
