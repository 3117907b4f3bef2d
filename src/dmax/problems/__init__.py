"""Endless, seeded problems that need no download: grade-school word problems and a stress test of parallel decoding."""

from dmax.problems.parallel_stress import KINDS, keeps_to_the_rule, stress_problem
from dmax.problems.splits import SPLIT_SEEDS, Split
from dmax.problems.word_problems import equations, problem
from dmax.problems.wording import reword

__all__ = ["KINDS", "SPLIT_SEEDS", "Split", "equations", "keeps_to_the_rule", "problem", "reword", "stress_problem"]
