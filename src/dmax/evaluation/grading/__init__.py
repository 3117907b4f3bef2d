r"""Reading what a worked solution ends with.

A solution states its answer in a ``\boxed{}`` after its last ``####``, else directly behind a ``####``, else in its
last box, else nowhere in particular, and then its last number counts. What a statement comes to is its whole value:
``10^6`` is a million and not 10, and a statement that leaves a choice (``12 or 13``, ``>12``) comes to nothing.
"""

from dmax.evaluation.grading.numbers import numbers
from dmax.evaluation.grading.statements import (
    Reading,
    boxed,
    final_number,
    final_statement,
    read_number,
    same_number,
)

__all__ = ["Reading", "boxed", "final_number", "final_statement", "numbers", "read_number", "same_number"]
