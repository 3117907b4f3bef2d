"""Sources of problems by name: a new one is its file and its class in this table."""

from __future__ import annotations

from dmax.training.problem_sources.arithmetic import Arithmetic
from dmax.training.problem_sources.base import ProblemSource
from dmax.training.problem_sources.conversations import ProblemConversations
from dmax.training.problem_sources.everyday import Everyday
from dmax.training.problem_sources.gsm8k import Gsm8kSource
from dmax.training.problem_sources.gsm_symbolic import GsmSymbolic
from dmax.training.problem_sources.other_requests import OtherRequests
from dmax.training.problem_sources.parallel_stress import ParallelStress

PROBLEM_SOURCES: dict[str, type[ProblemSource]] = {
    kind.name: kind
    for kind in (
        Everyday, GsmSymbolic, Arithmetic, ProblemConversations, OtherRequests, ParallelStress, Gsm8kSource
    )
}  # fmt: skip


def sources_with(key: str) -> list[str]:
    """Name the sources that read an option of most problems."""
    return [name for name, kind in PROBLEM_SOURCES.items() if key in kind.keys]
