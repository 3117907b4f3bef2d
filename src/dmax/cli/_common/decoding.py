"""The options of a decode on the command line, made from the declarations of params and decoders."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Self

import typer
from typer.core import TyperCommand

from dmax.cli._common.errors import CommandError
from dmax.decoding.options import DecoderError, Option
from dmax.engine import GenerationParams
from dmax.engine.params import DEFAULT_DECODER, PARAMS

_PANEL = "Decoding"
_FURTHER = "decoder_option"
_OWN, _VALUES = "dmax.own_options", "dmax.own_values"
_TYPES: dict[str, Any] = {
    "number": float, "whole": int, "switch": bool, "text": str, "texts": list[str], "any": str
}  # fmt: skip


@dataclass(frozen=True)
class DecodingOptions:
    """How an answer is decoded, as the command line has it."""

    values: Mapping[str, Any] = field(default_factory=lambda: {name: option.default for name, option in PARAMS.items()})
    """Fields of the params by name, given or at the command's default; ``gen_length`` None where it is not given."""
    further: Mapping[str, Any] = field(default_factory=dict)
    """Options that only the decoder has."""
    given: frozenset[str] = frozenset()
    """Fields that the user gave."""

    defaults: ClassVar[Mapping[str, Any]] = {"gen_length": None}
    """Where a command's default is not that of the params."""
    helps: ClassVar[Mapping[str, str]] = {
        "gen_length": f"{PARAMS['gen_length'].help.removesuffix('.')}; {GenerationParams.gen_length} if not given.",
        "block_length": f"{PARAMS['block_length'].help.removesuffix('.')}; as in the model's training if not given.",
    }
    """Where a command's help is not that of the params."""

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Return the options that every decoder may have, as typer takes them."""
        known = [_parameter(_of_command(option, cls.defaults, cls.helps)) for option in PARAMS.values()]
        further = typer.Option(
            metavar="NAME=VALUE", help="Any further option of the decoder; repeatable.", rich_help_panel=_PANEL
        )
        return [*known, _keyword(_FURTHER, Annotated[list[str] | None, further], None)]

    @classmethod
    def taken(cls, values: Mapping[str, Any], context: typer.Context) -> Self:
        """Return the options that a command was called with.

        Args:
            values: of :meth:`parameters`, by name.
            context: of the call, which tells what was given, and has the values of options that only the decoder has.

        Raises:
            CommandError: a ``--decoder-option`` has no name or no value.
        """
        fields = {name: value for name, value in values.items() if name in PARAMS}
        fields["stop"] = tuple(fields["stop"] or ())
        sources = {name: context.get_parameter_source(name) for name in fields}
        given = frozenset(name for name, source in sources.items() if source is not None and source.name != "DEFAULT")
        own = {name: _json(value) for name, value in context.meta[_VALUES].items() if value is not None}
        return cls(fields, {**own, **decoder_options(values[_FURTHER] or ())}, given)

    def but(self, *, keep_decoders: bool = True, **values: Any) -> Self:
        """Return the options with other values.

        Args:
            keep_decoders: False leaves what the decoder has of its own at its defaults, for another decoder.
            values: of fields of the params.
        """
        reset = {} if keep_decoders else {name: None for name, option in PARAMS.items() if option.of_decoder}
        further = self.further if keep_decoders else {}
        return replace(self, values={**self.values, **reset, **values}, further=further)

    @property
    def decoder(self) -> str | None:
        """The decoder's name, None where it is not given."""
        return self.values["decoder"]

    @property
    def gen_length(self) -> int | None:
        """Most tokens of an answer, None where it is not given."""
        return self.values["gen_length"]

    @property
    def seed(self) -> int:
        """Of the draws."""
        return int(self.values["seed"])

    @property
    def temperature(self) -> float:
        """Above 0 tokens are drawn."""
        return float(self.values["temperature"])

    @property
    def threshold(self) -> float | None:
        """The decoder's threshold, None where it is not given."""
        return self.values["threshold"]

    def params(self, *, trace: bool = False) -> GenerationParams:
        """Return what the engine takes.

        Raises:
            GenerationError: a value is out of range.
        """
        values = {name: value for name, value in self.values.items() if value is not None}
        return GenerationParams(**values, decoder_options=self.further, trace=trace)


def decoder_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read the values of ``--decoder-option``, as JSON where they are JSON and as text elsewhere.

    Raises:
        CommandError: one has no name or no value.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise CommandError(f"--decoder-option {pair!r} must have the form NAME=VALUE, such as soft=false.")
        options[name.replace("-", "_")] = _json(value)
    return options


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


class DecodingCommand(TyperCommand):
    """A command that also takes, and shows, what only the decoder on its own command line has.

    Decoders need torch, so they are looked at only where the command line asks for something else than :data:`PARAMS`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Find the decoder's own options, then parse."""
        known = {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        words = [word.partition("=")[0] for word in args if word.startswith("--") and word != "--"]
        decoder = _decoder_of(args)
        wants_help = decoder is not None and bool({"--help", "-h"} & set(args))
        if wants_help or any(word not in known and word != "--help" for word in words):
            ctx.meta[_OWN] = _own_parameters(decoder or DEFAULT_DECODER, known)
        rest = super().parse_args(ctx, args)
        # typer hands on no value whose parameter the command's function does not have.
        ctx.meta[_VALUES] = {each.name: ctx.params.pop(each.name) for each in ctx.meta.get(_OWN, ())}
        return rest

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the command's parameters, the decoder's own among them."""
        return [*super().get_params(ctx), *ctx.meta.get(_OWN, ())]


def _decoder_of(args: Sequence[str]) -> str | None:
    for index, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name == "--decoder":
            return value if equals else next(iter(args[index + 1 :]), None)
    return None


def _own_parameters(decoder: str, known: set[str]) -> list[Any]:
    from dmax.decoding.registry import described_options

    try:
        options = described_options(decoder)
    except DecoderError:  # the command will say so, once it is called
        return []
    own = [option for option in options if option.name not in PARAMS and _flag(option.name) not in known]

    def takes_them() -> None: ...

    panel = f"Options of {decoder}"
    shown = [_parameter(replace(option, default=None, help=_with_default(option)), panel) for option in own]
    takes_them.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    takes_them.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    app = typer.Typer(add_completion=False)
    app.command()(takes_them)
    return list(typer.main.get_command(app).params)


def _of_command(option: Option, defaults: Mapping[str, Any], helps: Mapping[str, str]) -> Option:
    default = None if option.kind == "texts" else option.default
    return replace(
        option, default=defaults.get(option.name, default), help=helps.get(option.name, _with_bounds(option))
    )


def _with_bounds(option: Option) -> str:
    """Return the help with the range, where the option is a probability that has no default to show it."""
    return f"{option.help.removesuffix('.')}, {option.bounds}." if option.of_decoder else option.help


def _with_default(option: Option) -> str:
    """Return the help with the decoder's default: on the command line, None stands for what is not given."""
    return option.help if option.default is None else f"{option.help.removesuffix('.')}; {option.default} if not given."


def _parameter(option: Option, panel: str = _PANEL) -> inspect.Parameter:
    kind = _TYPES[option.kind]
    info = typer.Option(
        *([f"{_flag(option.name)}/--no-{option.name.replace('_', '-')}"] if option.kind == "switch" else []),
        help=option.help,
        metavar="TEXT" if option.kind == "texts" else None,
        rich_help_panel=panel,
    )
    return _keyword(option.name, Annotated[kind | None if option.default is None else kind, info], option.default)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
