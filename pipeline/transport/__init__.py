"""How messages and tensors cross from one process to the next."""
