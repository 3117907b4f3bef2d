"""Measuring decoders: problems, grading, and what the answers cost in forward passes."""

from dmax.evaluation.tasks import get_task

__all__ = ["get_task"]
