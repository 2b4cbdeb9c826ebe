"""CUDA graphs and streams, the compiler, meters: what a step needs of its device."""
