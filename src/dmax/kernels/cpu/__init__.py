"""Kernels for a CPU, in C++: compiled ahead of time, with the steps, for the machine at hand (``dmax compile``)."""
