"""Model arguments of the lm-evaluation-harness, from what a user wrote to what the engine takes."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch

from dmax.decoding import decoder_options
from dmax.engine import GenerationParams
from dmax.engine.params import DEFAULT_DECODER, PARAMS, params_of

AUTO = "auto"
_AUTO_BATCH_SIZE = 32
_DTYPES = ("float32", "bfloat16", "float16")
_LOADING_ARGUMENTS = ("pretrained", "dtype", "device", "batch_size", "max_batch_size", "stats")
_GENERATION_ARGUMENTS = tuple(name for name in PARAMS if name != "stop")
"""A task of the harness brings its own stop strings."""


class HarnessError(ValueError):
    """A model argument or a request of the harness that this model cannot take."""


def generation_params(given: dict[str, Any]) -> GenerationParams:
    """Return the params that model arguments ask for.

    Args:
        given: fields of the params, ``max_gen_toks`` as another name of ``gen_length``, and options of the decoder.

    Raises:
        HarnessError: there is no such argument; the message names the nearest one.
        GenerationError: a value is out of range.
        DecoderError: there is no such decoder, or it refuses an option.
    """
    given = dict(given)
    if "max_gen_toks" in given:
        if "gen_length" in given:
            raise HarnessError("gen_length and max_gen_toks are two names of the same thing; give one of them.")
        given["gen_length"] = given.pop("max_gen_toks")
    options = decoder_options(str(given.get("decoder") or DEFAULT_DECODER))
    names = list(dict.fromkeys([*_LOADING_ARGUMENTS, *_GENERATION_ARGUMENTS, "max_gen_toks", *options]))
    for name in given:
        if name not in names:
            [near] = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            raise HarnessError(
                f"there is no model argument {name!r}; did you mean {near!r}? Choose from {', '.join(names)}."
            )
    params = params_of(given)
    # The engine would refuse what the decoder does not take only once everything is loaded.
    params.build_decoder()
    return params


def rows_together(batch_size: int | str, most: int | None) -> int:
    """Return how many prompts to decode together; HarnessError where ``batch_size`` is no count and not ``auto``."""
    if str(batch_size).startswith(AUTO):  # the harness also writes auto:4, how often to measure anew
        batch_size = most or _AUTO_BATCH_SIZE
    try:
        rows = int(batch_size)
    except ValueError:
        rows = 0
    if rows < 1:
        raise HarnessError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1, or auto.")
    return rows


def new_file(name: str) -> Path:
    """Return the path of a file that can be begun; HarnessError where there is one already, or no folder for it."""
    path = Path(name).expanduser()
    if path.exists():
        raise HarnessError(f"stats names {path}, which exists already; choose another file, or remove it.")
    if not path.parent.is_dir():
        raise HarnessError(f"stats names {path}, whose folder does not exist; create it first.")
    return path


def dtype_of(name: str) -> torch.dtype | None:
    """Return the dtype of that name, None for ``auto``; HarnessError where a model cannot run in it."""
    if name != AUTO and name not in _DTYPES:
        raise HarnessError(f"dtype is {name!r}; it must be one of {', '.join((AUTO, *_DTYPES))}.")
    return None if name == AUTO else getattr(torch, name)


def device_of(name: str) -> torch.device:
    """Find the device of that name, for ``auto`` a CUDA device if there is one; HarnessError where there is none."""
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise HarnessError(f"device is {name!r}; it must be one such as cpu, cuda or cuda:1, or auto.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise HarnessError(f"device is {name!r}, and there is no CUDA device; choose cpu or auto.")
    return device
