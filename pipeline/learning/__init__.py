"""The method: blocks, heads, local losses and optimizers, grouped into stages."""
