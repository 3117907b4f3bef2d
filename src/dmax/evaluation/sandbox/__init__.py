"""Running a program that a model wrote against tests, without trusting the program (``docs/concepts/sandbox.md``)."""

from dmax.evaluation.sandbox.host import SandboxResult, run_program
from dmax.evaluation.sandbox.isolation import Isolation, available_isolation, require_protection
from dmax.evaluation.sandbox.launch import Limits, SandboxError

__all__ = [
    "Isolation",
    "Limits",
    "SandboxError",
    "SandboxResult",
    "available_isolation",
    "require_protection",
    "run_program",
]
