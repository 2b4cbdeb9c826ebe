"""Hand-written forward and backward passes, and how their tensors lie in memory."""
