"""The images: facts of each data set, and batches that depend on seed and position alone."""
