"""This process and its machine: paths, files, descriptors, limits, and which code runs."""
