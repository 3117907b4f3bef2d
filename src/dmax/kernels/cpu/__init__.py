"""Kernels for a CPU, in C++, compiled ahead of time for the machine at hand (``dmax compile``)."""
