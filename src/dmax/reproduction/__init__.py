"""The paper's table, sweeps and ablations at the scale of the embedded model: trained, measured and written up."""

from dmax.reproduction.results import Results
from dmax.reproduction.run import ReproductionError, reproduce
from dmax.reproduction.study import NANO, Scale

__all__ = ["NANO", "ReproductionError", "Results", "Scale", "reproduce"]
