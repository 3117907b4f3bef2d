"""One sentence on stderr and exit code 2 for everything a user can get wrong; tracebacks are for bugs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from dmax.engine.params import PARAMS

USAGE_ERROR = 2
"""Exit code of everything that bad input ends."""


class CommandError(typer.TyperException):
    """Bad input: one sentence that says what was wrong, what is allowed and how to mend it."""

    exit_code = USAGE_ERROR


class OneLineErrors(TyperGroup):
    """A command group that answers bad input with one line instead of a usage panel."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **extra: Any) -> NoReturn:
        words = sys.argv[1:] if args is None else list(args)
        extra["standalone_mode"] = False
        try:
            code = super().main(words, *others, **extra)
        except typer.TyperException as error:
            report(error.format_message() + _hint_at_quotes(error, words))
            sys.exit(error.exit_code)
        except typer.Abort:
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


def _hint_at_quotes(error: typer.TyperException, words: Sequence[str]) -> str:
    """Say what helps where the words of a question came without quotes: as arguments or commands of their own.

    One word that nearly is a command is a slip; where several others follow, it begins a question.
    """
    message = error.format_message()
    command = getattr(getattr(error, "ctx", None), "command", None)
    takes_prompt = any(parameter.name == "prompt" for parameter in getattr(command, "params", ()))
    if command is not None and takes_prompt and "unexpected extra argument" in message:
        return f'; put the prompt into quotes: dmax {command.name} "…".'
    if getattr(command, "name", None) == "chat" and "unexpected extra argument" in message:
        return '; type the question once the conversation has begun, or ask it alone: dmax generate "…".'
    is_slip = "Did you mean" in message and len(list(takewhile(lambda word: word[:1] != "-", words))) < 3
    if message.startswith("No such command") and not is_slip:
        return ' A prompt goes into quotes behind a command: dmax generate "…".'
    return ""


_OF_SERVE = ("kv_memory", "max_positions_in_flight")


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors that this package raises for bad input into a :class:`CommandError`.

    A ``ValueError`` of a class defined elsewhere is a bug of ours and keeps its traceback.
    """
    try:
        yield
    except ValueError as error:
        if not type(error).__module__.startswith("dmax."):
            raise
        raise CommandError(_with_flags(str(error))) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise CommandError(f"{where}{error.strerror or error}.") from error


def _with_flags(message: str) -> str:
    """Name options in a message as the command line has them: ``--gen-length``, not ``gen_length``.

    A name of one word is an option only where the sentence begins with it; elsewhere it may be a word like any other.
    """
    for name in (*PARAMS, *_OF_SERVE):
        place = rf"(?<![\w'./-]){name}(?![\w'/-])" if "_" in name else rf"^{name}(?= is )"
        message = re.sub(place, f"--{name.replace('_', '-')}", message)
    return message


@contextmanager
def needs_extra(extra: str, work: str) -> Iterator[None]:
    """Say in one sentence which extra a command lacks, where an import fails."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "dmax":
            raise
        raise CommandError(
            f"{work} needs the {extra} extra ({error.name or error} is not installed): pip install 'dmax-llm[{extra}]'."
        ) from error


def report(message: str) -> None:
    """Print one error line on stderr."""
    line = Text.assemble(("Error: ", "bold red"), " ".join(message.split()))
    Console(stderr=True).print(line, soft_wrap=True)


def note(message: str) -> None:
    """Print one line that is neither output nor error on stderr."""
    Console(stderr=True).print(Text(message, style="dim"), soft_wrap=True)


def choose(what: str, value: str, choices: Sequence[str]) -> str:
    """Return ``value`` where it is one of ``choices``.

    Raises:
        CommandError: it is not; the message names the nearest choice and all of them.
    """
    if value in choices:
        return value
    nearest = get_close_matches(value.lower(), choices, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise CommandError(f"{what} {value!r} is unknown; choose from {', '.join(choices)}.{hint}")


def at_least(options: object, **least: int) -> None:
    """Check options of a group by their least values; None is let through.

    Raises:
        CommandError: one is below.
    """
    for name, lowest in least.items():
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise CommandError(f"--{name.replace('_', '-')} is {value}; it must be at least {lowest}.")


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Say after Ctrl-C that the same command goes on with what is in the folder, and end with exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"Stopped; the same command goes on with what is in {folder}.")
        raise typer.Exit(130) from None
