"""Endless, seeded problems that need no download: grade-school word problems and a stress test of parallel decoding."""

from dmax.problems.parallel_stress import KINDS, keeps_to_the_rule, stress_problem
from dmax.problems.splits import MOST_SEEDS, SPLIT_SEEDS, SeedError, Split, first_number
from dmax.problems.word_problems import Equation, equations, problem, show_working
from dmax.problems.working import working

__all__ = [
    "KINDS",
    "MOST_SEEDS",
    "SPLIT_SEEDS",
    "Equation",
    "SeedError",
    "Split",
    "equations",
    "first_number",
    "keeps_to_the_rule",
    "problem",
    "show_working",
    "stress_problem",
    "working",
]
