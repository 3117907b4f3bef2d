"""Options shared by several commands, each group a frozen dataclass that typer fills."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from dmax.cli._common.decoding import DecodingOptions

_CONTEXT = "_context"


def in_panel(title: str) -> Callable[..., Any]:
    """Return ``typer.Option`` for options that the help shows under a title."""
    return partial(typer.Option, rich_help_panel=title)


_of_model = in_panel("Model")
_of_input = in_panel("Input and output")


@dataclass(frozen=True)
class ModelOptions:
    """Which weights, where, and in which precision."""

    model: Annotated[
        str,
        _of_model(help="A folder, a Hugging Face id, nano or nano-base."),
    ] = "nano"
    dtype: Annotated[
        str,
        _of_model(help="float32, bfloat16, float16, or auto: float32 on a CPU, as stored elsewhere."),
    ] = "auto"
    device: Annotated[str, _of_model(help="cpu, cuda, cuda:1, mps, or auto: a GPU if there is one.")] = "auto"
    expert_capacity: Annotated[
        int | None,
        _of_model(metavar="N", help="The most experts of a layer that a block may use; fewer are quicker to read."),
    ] = None
    ignore_memory: Annotated[
        bool,
        _of_model("--ignore-memory", help="Load a model that needs more memory than there is."),
    ] = False


@dataclass(frozen=True)
class InputOptions:
    """Where prompts come from."""

    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; read from stdin where it is left out.", show_default=False)
    ] = None
    prompt_ids: Annotated[
        str | None,
        _of_input(metavar="JSON", help='Token ids in place of text, as "[1, 2, 3]".'),
    ] = None
    input: Annotated[
        Path | None,
        _of_input(metavar="FILE.jsonl", help="A batch: each line has a prompt, messages or prompt_ids."),
    ] = None


@dataclass(frozen=True)
class OutputOptions:
    """Where answers go."""

    output: Annotated[
        Path | None,
        _of_input(
            metavar="FILE.jsonl", help="Answers of a batch; lines already there are kept and only the rest is run."
        ),
    ] = None
    json: Annotated[bool, _of_input("--json", help="Print one JSON object.")] = False
    trace: Annotated[
        Path | None,
        _of_input(metavar="FILE", help="Write every pass as JSON, one line a prompt."),
    ] = None
    batch_size: Annotated[
        int | None,
        _of_input(help="Prompts of a batch decoded together; 8 if not given."),
    ] = None


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let ``command`` take option dataclasses; typer sees their fields as the command's own options.

    Parameters that are no dataclass stay as they are. What ``DecodingOptions`` take, they say themselves.
    """
    groups: dict[str, type[Any]] = {}
    flat: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if hasattr(kind, "__dataclass_fields__"):
            groups[parameter.name] = kind
            flat.extend(_parameters(kind))
        else:
            flat.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
    context_name = next((name for name, kind in hints.items() if kind is typer.Context), None)
    if context_name is None:
        flat.append(inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

    @wraps(command)
    def flattened(**values: Any) -> None:
        context = values[context_name] if context_name else values.pop(_CONTEXT)
        grouped = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
            if not issubclass(kind, DecodingOptions)
        }
        for name, kind in groups.items():
            if issubclass(kind, DecodingOptions):
                taken = {each.name: values.pop(each.name) for each in kind.parameters()}
                grouped[name] = kind.taken(taken, context)
        command(**grouped, **values)

    flattened.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    flattened.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return flattened


def takes_decoding(command: Callable[..., None]) -> bool:
    """Return whether a command has the options of a decoder."""
    hints = get_type_hints(command).values()
    return any(isinstance(kind, type) and issubclass(kind, DecodingOptions) for kind in hints)


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    if issubclass(group, DecodingOptions):
        return group.parameters()
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
