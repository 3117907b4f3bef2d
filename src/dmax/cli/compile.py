"""``dmax compile``: make the passes of a model on this machine's CPU quicker, once and for all."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dmax.cli.errors import CommandError, note, user_errors
from dmax.cli.session import AUTO, status

_DTYPES = ("float32", "bfloat16")


def compile_model(
    model: Annotated[str, typer.Option(help="A folder, a Hugging Face id, nano or nano-base.")] = "nano",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; auto: float32, as everywhere on a CPU.")] = AUTO,
) -> None:
    """Compile the kernels of a pass for this machine's CPU, for all models and both dtypes; later commands use them."""
    if dtype == AUTO:
        dtype = _DTYPES[0]
    if dtype not in _DTYPES:
        raise CommandError(f"--dtype is {dtype!r}; the kernels can be compiled for {' or '.join(_DTYPES)}.")
    with status("Starting"), user_errors():
        from dmax.kernels.cpu.library import compile_kernels, kernels_folder
        from dmax.models import load_config

        load_config(model)
        made = kernels_folder().is_dir()
    started = time.perf_counter()
    with status("Compiling"), user_errors():
        folder = compile_kernels()
    took = "were there already" if made else f"took {time.perf_counter() - started:.0f} s"
    note(f"Kernels for {model} in {dtype} {took}; they lie in {folder} (delete it to go without).")
