"""What is left behind when the loss stops being a number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from dmax.training.distributed import rank
from dmax.training.layout import Batch


class TrainingDiverged(ValueError):
    """The loss or its gradient stopped being finite."""


def diverged(
    output: Path, step: int, loss: float, norm: float, seen: Iterable[tuple[Batch, Tensor]]
) -> TrainingDiverged:
    """Save the batches to look at, and give the error to raise.

    Args:
        output: folder of the run; batches go to ``diverged/`` in it, each process's under its own name.
        step: the step that failed.
        loss: of the step.
        norm: of its gradient.
        seen: batches of this process's passes with their losses. Those whose loss is not finite are saved, or all of
            them where only the gradient is not.
    """
    only_gradient = math.isfinite(loss)
    suspects = [batch for batch, own_loss in seen if only_gradient or not math.isfinite(own_loss)]
    folder = output / "diverged"
    folder.mkdir(parents=True, exist_ok=True)
    for number, batch in enumerate(suspects):
        layout = batch.layout
        tensors = {
            "noisy_ids": layout.noisy_ids,
            "noisy_positions": layout.noisy_positions,
            "clean_ids": layout.clean_ids,
            "clean_positions": layout.clean_positions,
            "supervised": layout.supervised,
            "hidden": batch.hidden,
        }
        facts = {"step": step, "block_length": layout.block_length, "rows": list(batch.indices)}
        save_file(
            {name: tensor.cpu().clone() for name, tensor in tensors.items()},  # the format takes no shared memory
            folder / f"step-{step:07d}-process-{rank()}-batch-{number}.safetensors",
            metadata={name: json.dumps(value) for name, value in facts.items()},
        )
    return TrainingDiverged(
        f"step {step} is not finite (loss {loss:g}, gradient norm {norm:g}); its batches are in {folder}, and the "
        "newest checkpoint is from before it: lower the learning rate, or look at the data."
    )
