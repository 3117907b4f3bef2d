"""The paper's table, sweeps and ablations, and one step past its objective, on the embedded model: trained in full."""

from benchmarks.reproduction.gather import Study, gather
from benchmarks.reproduction.run import ROWS, read_recipe, reproduce
from benchmarks.reproduction.study import Scale
from benchmarks.reproduction.work import Plan, ReproductionError

__all__ = ["ROWS", "Plan", "ReproductionError", "Scale", "Study", "gather", "read_recipe", "reproduce"]
