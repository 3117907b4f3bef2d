"""``torchrun -m dmax.training RECIPE [--output DIR] [--resume]``: a recipe on several processes."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmax.models.memory import DoesNotFit
from dmax.training.checkpointing import CheckpointWriteError, ResumeError
from dmax.training.data import DataError
from dmax.training.divergence import TrainingDiverged
from dmax.training.run import run_recipe
from dmax.training.section import RecipeError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dmax.training", description="Run a training recipe.")
    parser.add_argument("recipe", type=Path, help="YAML file")
    parser.add_argument("--output", type=Path, help="folder of the run's files (default: runs/<recipe name>)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest complete checkpoint")
    arguments = parser.parse_args()
    try:
        run_recipe(arguments.recipe, arguments.output, arguments.resume)
    except (RecipeError, DataError, DoesNotFit, ResumeError, TrainingDiverged, CheckpointWriteError) as error:
        parser.exit(2, f"Error: {error}\n")


if __name__ == "__main__":
    main()
