"""Measuring decoders: problems, grading, and what the answers cost in forward passes."""
