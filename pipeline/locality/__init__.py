"""Proof that each block learns from nothing but what arrives at it."""
