"""Sums over the passes of a step and over processes, from which its metrics come."""

from __future__ import annotations

import torch
from torch import Tensor

from dmax.training.distributed import sum_over_processes
from dmax.training.objectives.base import LossPart

_LOSS = "loss"


class Tally:
    """Adds up what the passes of one step report.

    Every pass of a recipe reports the same names, so processes can add up theirs by place.
    """

    def __init__(self, passes: int) -> None:
        self._passes = passes
        self._sums: dict[str, Tensor] = {}

    def add(self, part: LossPart) -> None:
        """Take in one part of a pass; nothing is read back from a GPU."""
        mean_of_passes = torch.stack([part.loss.detach(), part.loss.new_zeros(())])
        for name, pair in {_LOSS: mean_of_passes, **part.tallies}.items():
            pair = pair.double()
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def totals(self, **counts: float) -> dict[str, float]:
        """Return the step's metrics over all processes: the mean loss of a pass, and the mean of everything else.

        Args:
            counts: numbers of this process, given back as sums over all of them.
        """
        device = self._sums[_LOSS].device
        extra = torch.tensor([[value, 0.0] for value in counts.values()], dtype=torch.float64, device=device)
        sums = sum_over_processes(torch.cat([torch.stack(list(self._sums.values())), extra.view(-1, 2)])).tolist()
        pairs = dict(zip([*self._sums, *counts], sums, strict=True))
        metrics = {_LOSS: pairs.pop(_LOSS)[0] / self._passes}
        metrics |= {name: pairs.pop(name)[0] for name in counts}
        return metrics | {name: total / count for name, (total, count) in pairs.items() if count}
