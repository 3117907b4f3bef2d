"""``dmax adapt``: a block-diffusion checkpoint of an autoregressive one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmax.cli._common.errors import CommandError, choose, needs_extra, note, user_errors
from dmax.cli._common.progress import bytes_done


def adapt(
    source: Annotated[
        str,
        typer.Argument(help="A Qwen2, Qwen3 or Llama: a folder, a Hugging Face id or a GGUF file.", show_default=False),
    ],
    destination: Annotated[Path, typer.Argument(help="A folder that does not exist yet.", show_default=False)],
    shifted: Annotated[
        bool,
        typer.Option(
            "--shifted/--unshifted",
            help="Read tokens one position before their own, as the source does; or at their own.",
        ),
    ] = True,
    block_length: Annotated[int, typer.Option(metavar="N", help="Of a decode that names none, until training.")] = 1,
    mask_token: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A special token, or a new one; chosen if not given.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where the tokenizer is, if not in the source.")
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(help="float32, bfloat16, float16, or auto: as stored, float32 for a quantised GGUF."),
    ] = "auto",
) -> None:
    """Make a block-diffusion model of an autoregressive one, ready to be trained.

    With shifted logits and blocks of one it answers as before. The same command goes on where an interrupted one
    stopped.
    """
    choose("dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    if block_length < 1:
        raise CommandError(f"--block-length is {block_length}; it must be at least 1.")
    import torch

    from dmax.models.adapt import adapt_checkpoint
    from dmax.models.source import CheckpointError, resolve
    from dmax.models.tokenizer import Tokenizer

    try:
        with user_errors(), needs_extra("gguf", "Reading a GGUF file"), bytes_done("Adapting") as show:
            other = None if tokenizer is None else Tokenizer.from_folder(resolve(tokenizer, weights=False))
            if tokenizer is not None and other is None:
                raise CheckpointError(f"{tokenizer} has no tokenizer.json: name a folder that has.")
            adapted = adapt_checkpoint(
                source,
                destination,
                shifted=shifted,
                block_length=block_length,
                mask_token=mask_token,
                tokenizer=other,
                dtype=None if dtype == "auto" else getattr(torch, dtype),
                progress=show,
            )
    except KeyboardInterrupt:
        note("Stopped; the same command goes on from here.")
        raise typer.Exit(130) from None
    where = f"{adapted.new_rows} row more" if adapted.new_rows else "a row that was there"
    note(f"{adapted.config.family}, mask token {adapted.mask_token} ({adapted.config.mask_token_id}, {where})")
    typer.echo(destination)
