"""From options to what the engine takes: a loaded model and checked parameters."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dmax.cli._common.decoding import DecodingOptions
from dmax.cli._common.errors import CommandError, choose, note, user_errors
from dmax.cli._common.options import ModelOptions
from dmax.engine import GenerationOutput, GenerationParams

if TYPE_CHECKING:
    import torch

    from dmax.decoding import Decoder
    from dmax.engine import LLM

AUTO = "auto"
"""The device and dtype that suit the machine."""
_PROMPT = 1024
"""Positions of a prompt that memory has to suffice for, before any prompt is known."""
_DTYPES = ("float32", "bfloat16", "float16")
_DEVICES = ("cpu", "cuda", "mps", "xpu")


def own_command() -> list[str]:
    """Return the command line as results quote it, without the place where dmax is installed."""
    return ["dmax", *sys.argv[1:]]


@dataclass(frozen=True)
class Rule:
    """How answers are decoded: the parameters, and the decoder they name with its defaults filled in."""

    params: GenerationParams
    decoder: Decoder
    length_asked_for: bool = True
    """Whether ``--gen-length`` is given; elsewhere an answer has what room is left, up to the default."""

    def on(self, model: str) -> Rule:
        """Return the rule with what the checkpoint says of its decoder where nothing was asked for."""
        from dmax.models import load_config

        params = self.params.with_defaults(load_config(model))
        return replace(self, params=params, decoder=params.build_decoder())


def decoder_of(model: str, options: DecodingOptions) -> str:
    """Name the decoder that was asked for, or the model's own.

    Raises:
        CommandError: there is no such model.
    """
    from dmax.models import load_config

    with user_errors():
        return options.decoder or load_config(model).default_decoder


def decoding_rule(options: DecodingOptions, *, trace: bool = False) -> Rule:
    """Check the decoding options before anything is loaded.

    Raises:
        CommandError: a value is out of range, or the decoder or one of its options does not exist.
    """
    with user_errors():
        params = options.params(trace=trace)
        # What needs no torch is checked by now; importing it takes a moment.
        with status("Starting"):
            return Rule(params, params.build_decoder(), options.gen_length is not None)


def load_llm(
    options: ModelOptions, *, sequences: int = 1, gen_length: int = 1024, cache: int | None = None
) -> LLM:  # fmt: skip
    """Load the model; in a terminal, say so meanwhile.

    Args:
        options: what the user gave.
        sequences: answered at a time.
        gen_length: most tokens of an answer.
        cache: bytes of the KV cache, where it has to have a size.

    Raises:
        CommandError: there is no such model, device or dtype, the checkpoint is damaged or does not fit into memory.
    """
    device_name, dtype_name = check_placement(options.device, options.dtype)
    with status(f"Loading {options.model}"), user_errors():
        import torch

        from dmax.engine import LLM
        from dmax.engine.backends import backend_name
        from dmax.engine.requirements import Workload, widens

        device = pick_device(device_name)
        dtype: torch.dtype | None = None if dtype_name == AUTO else getattr(torch, dtype_name)
        try:
            llm = LLM(
                options.model,
                device=device,
                dtype=dtype,
                workload=Workload(sequences, _PROMPT + gen_length, cache),
                ignore_memory=options.ignore_memory,
            )
        except torch.OutOfMemoryError as error:
            raise CommandError(f"{options.model} does not fit into the memory of {device}.") from error
        if options.expert_capacity is not None:
            llm.model.limit_experts(options.expert_capacity)
    if widens(llm.model, llm.model.device):
        until = " until `dmax compile` is run" if backend_name(llm.model.device, llm.model.dtype) == "cpu" else ""
        note(f"{options.model} has weights that {device} has no kernel for{until}: every pass widens them, slowly.")
    return llm


def check_placement(device: str, dtype: str) -> tuple[str, str]:
    """Check the names of a device and a dtype before torch is imported, and return them.

    Raises:
        CommandError: there are not.
    """
    if device != AUTO:
        _check_device(device)
    return device, choose("dtype", dtype, (AUTO, *_DTYPES))


def pick_device(name: str) -> str:
    """Pick a device: ``auto`` is a CUDA GPU if there is one, to each process of a machine its own, else the CPU."""
    import torch

    if name != AUTO:
        return name
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))  # as torchrun tells it
    return f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def status(text: str) -> AbstractContextManager[object]:
    """Say on a terminal what is being waited for."""
    console = Console(stderr=True)
    return console.status(text) if console.is_terminal else nullcontext()


def _check_device(name: str) -> str:
    kind, colon, index = name.partition(":")
    choose("device", kind, (AUTO, *_DEVICES))
    if colon and not re.fullmatch(r"\d+", index):
        raise CommandError(f"device {name!r} is malformed; write {kind}, or {kind}:0 for one of several.")
    return kind


def decode(
    llm: LLM, prompts: Sequence[list[int]], params: Sequence[GenerationParams], **callbacks: Any
) -> list[GenerationOutput]:
    """Answer prompts given as token ids, each with its own params.

    Raises:
        CommandError: the engine refuses the request, the model gives no numbers, or memory does not suffice.
    """
    import torch

    from dmax.engine import NumericalError

    with user_errors():
        try:
            return llm.generate(list(prompts), list(params), **callbacks)
        except NumericalError as error:
            raise CommandError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise CommandError("memory does not suffice; lower --gen-length, or --batch-size in a batch.") from error


def at_terminal(console: Console) -> bool:
    """Tell whether a person watches ``console`` on stdout; an environment that forces colour makes none."""
    return sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal
