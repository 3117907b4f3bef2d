"""The paper's table, sweeps and ablations at the scale of the embedded model: trained, measured and written up."""

from dmax.reproduction.results import Results
from dmax.reproduction.run import reproduce
from dmax.reproduction.study import NANO, Scale
from dmax.reproduction.work import Plan, ReproductionError

__all__ = ["NANO", "Plan", "ReproductionError", "Results", "Scale", "reproduce"]
