"""The paper's table, sweeps and ablations at the scale of the embedded model: trained, measured and written up."""

from benchmarks.reproduction.results import Results
from benchmarks.reproduction.run import reproduce
from benchmarks.reproduction.study import NANO, Scale
from benchmarks.reproduction.work import Plan, ReproductionError

__all__ = ["NANO", "Plan", "ReproductionError", "Results", "Scale", "reproduce"]
