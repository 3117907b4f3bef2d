"""Options shared by several commands, each group a frozen dataclass that typer fills."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

_MODEL = "Model"
_DECODING = "Decoding"
_INPUT = "Input and output"


@dataclass(frozen=True)
class ModelOptions:
    """Which weights, where, and in which precision."""

    model: Annotated[
        str,
        typer.Option(help="A folder, a Hugging Face id, nano or nano-base.", rich_help_panel=_MODEL),
    ] = "nano"
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16, float16, or auto: float32 on a CPU, as stored elsewhere.", rich_help_panel=_MODEL
        ),
    ] = "auto"
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto: a GPU if there is one.", rich_help_panel=_MODEL)
    ] = "auto"


@dataclass(frozen=True)
class DecodingOptions:
    """How an answer is decoded; None leaves a setting at the model's or the decoder's own default."""

    decoder: Annotated[
        str,
        typer.Option(
            help="soft-parallel, threshold, hierarchical, fixed-steps, joint-threshold, or a decoder of your own.",
            rich_help_panel=_DECODING,
        ),
    ] = "soft-parallel"
    threshold: Annotated[
        float | None,
        typer.Option(help="Confidence from which a mask becomes a token, 0 to 1.", rich_help_panel=_DECODING),
    ] = None
    acceptance_threshold: Annotated[
        float | None,
        typer.Option(help="Confidence from which a decoded block is settled, 0 to 1.", rich_help_panel=_DECODING),
    ] = None
    low_threshold: Annotated[
        float | None, typer.Option(help="Lower bar of hierarchical, 0 to 1.", rich_help_panel=_DECODING)
    ] = None
    editing_threshold: Annotated[
        float | None,
        typer.Option(help="Confidence from which joint-threshold edits a token, 0 to 1.", rich_help_panel=_DECODING),
    ] = None
    buffer_size: Annotated[
        int, typer.Option(help="Most blocks in flight; 1 decodes one after another.", rich_help_panel=_DECODING)
    ] = 1
    add_threshold: Annotated[
        float,
        typer.Option(help="Share of the last block that is decoded before the next joins.", rich_help_panel=_DECODING),
    ] = 0.1
    stable_threshold: Annotated[
        float, typer.Option(help="Share of its tokens that have stayed as they were.", rich_help_panel=_DECODING)
    ] = 0.5
    semi_threshold: Annotated[
        float,
        typer.Option(
            help="Share of a block from which the one behind it promotes in every pass.", rich_help_panel=_DECODING
        ),
    ] = 0.9
    decoder_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Any further option of the decoder; repeatable.", rich_help_panel=_DECODING
        ),
    ] = None
    gen_length: Annotated[
        int | None, typer.Option(help="Most tokens of the answer; 512 if not given.", rich_help_panel=_DECODING)
    ] = None
    block_length: Annotated[int, typer.Option(help="Tokens denoised together.", rich_help_panel=_DECODING)] = 32
    temperature: Annotated[
        float, typer.Option(help="0 decodes greedily, above 0 tokens are drawn.", rich_help_panel=_DECODING)
    ] = 0.0
    seed: Annotated[int, typer.Option(help="Seed of the draws.", rich_help_panel=_DECODING)] = 0
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End the answer where this begins; repeatable.", rich_help_panel=_DECODING),
    ] = None


@dataclass(frozen=True)
class InputOptions:
    """Where prompts come from."""

    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; read from stdin where it is left out.", show_default=False)
    ] = None
    prompt_ids: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='Token ids in place of text, as "[1, 2, 3]".', rich_help_panel=_INPUT),
    ] = None
    input: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="A batch: each line has a prompt, messages or prompt_ids.",
            rich_help_panel=_INPUT,
        ),
    ] = None


@dataclass(frozen=True)
class OutputOptions:
    """Where answers go."""

    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Answers of a batch; lines already there are kept and only the rest is run.",
            rich_help_panel=_INPUT,
        ),
    ] = None
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_INPUT)] = False
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every pass as JSON, one line a prompt.", rich_help_panel=_INPUT),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(help="Prompts of a batch decoded together; 8 if not given.", rich_help_panel=_INPUT),
    ] = None


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let ``command`` take option dataclasses; typer sees their fields as the command's own options.

    Parameters that are no dataclass stay as they are.
    """
    groups: dict[str, type[Any]] = {}
    flat: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if hasattr(kind, "__dataclass_fields__"):
            groups[parameter.name] = kind
            flat.extend(_field_parameters(kind))
        else:
            flat.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def flattened(**values: Any) -> None:
        grouped = {name: kind(**{f.name: values.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**grouped, **values)

    flattened.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    flattened.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return flattened


def _field_parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
