"""Other ways to train, and the bound of the hardware: what the trainer is measured against."""
