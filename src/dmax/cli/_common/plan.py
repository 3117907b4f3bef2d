"""What ``dmax train --dry-run`` and ``--show-rows`` print."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:  # needs the train extra, which not every command has
    from dmax.training.requirements import Requirements


def plan_table(plan: Requirements, available: int) -> Table:
    """Write a run's shapes and the memory of one device as a table."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(justify="right")
    shape = plan.shape
    trained = "" if plan.trained == plan.parameters else f", {plan.trained:,} trained"
    table.add_row("parameters", f"{plan.parameters:,}{trained}")
    table.add_row("steps", f"{plan.steps:,}")
    table.add_row("largest batch", f"{shape.rows} rows of {shape.length:,} positions, {shape.supervised:,} with logits")
    table.add_row("processes", str(plan.processes), end_section=True)
    for name in ("weights", "gradients", "optimizer", "copies", "activations", "update"):
        table.add_row(name, _gib(getattr(plan.memory, name)))
    table.add_row("needed of a device", _gib(plan.memory.total), style="bold")
    table.add_row("there", _gib(available))
    return table


def row_text(number: int, row: Sequence[tuple[str, bool]]) -> str:
    """Return a training example as lines: how long it is, then its tokens, those that carry loss on lines of their own.

    Args:
        number: of the example, counted from 1.
        row: the text of each token, and whether it is supervised.
    """
    lines = [f"row {number}: {len(row)} tokens, {sum(flag for _, flag in row)} supervised"]
    for supervised, tokens in groupby(row, lambda token: token[1]):
        shown = "·".join(repr(text)[1:-1] for text, _ in tokens)
        lines.append(f"  {'supervised' if supervised else 'context':10} {shown}")
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
