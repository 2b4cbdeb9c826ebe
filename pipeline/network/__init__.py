"""Networks as shapes, without tensors, and what is asked of a user's own."""
