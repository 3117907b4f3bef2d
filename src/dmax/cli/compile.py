"""``dmax compile``: make the passes of a model on this machine's CPU quicker, once and for all."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from dmax.cli._common.errors import CommandError, note, user_errors
from dmax.cli._common.session import AUTO, status

_DTYPES = ("float32", "bfloat16")


def compile_model(
    model: Annotated[str, typer.Option(help="A folder, a Hugging Face id, nano or nano-base.")] = "nano",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; auto: float32, as everywhere on a CPU.")] = AUTO,
) -> None:
    """Compile the small steps of a pass for this machine's CPU; every later command uses them."""
    if dtype == AUTO:
        dtype = _DTYPES[0]
    if dtype not in _DTYPES:
        raise CommandError(f"--dtype is {dtype!r}; the steps can be compiled for {' or '.join(_DTYPES)}.")
    with status("Starting"), user_errors():
        import torch

        from dmax.engine.compiled import compile_steps, steps_folder
        from dmax.models import load_config

        config, weights_dtype = load_config(model), getattr(torch, dtype)
    made = steps_folder(config, weights_dtype).is_dir()
    started = time.perf_counter()
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress, user_errors():
        task = progress.add_task("Compiling")
        folder = compile_steps(config, weights_dtype, lambda done, of: progress.update(task, completed=done, total=of))
    took = "were there already" if made else f"took {time.perf_counter() - started:.0f} s"
    note(f"Steps for {model} in {dtype} {took}; they lie in {folder} (delete it to go without).")
