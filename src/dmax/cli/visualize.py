"""``dmax visualize``: answers as one HTML file that replays how they were decoded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmax.cli._common.decoding import DecodingOptions
from dmax.cli._common.errors import CommandError, note, user_errors
from dmax.cli._common.options import InputOptions, ModelOptions

if TYPE_CHECKING:
    from dmax.cli._common.session import Rule
    from dmax.models import Tokenizer

_IO = "Input and output"


def visualize(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.html", help="What to write.", rich_help_panel=_IO)
    ],
    model: ModelOptions,
    decoding: DecodingOptions,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; read from stdin where it is left out.", show_default=False)
    ] = None,
    prompt_ids: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='Token ids in place of text, as "[1, 2, 3]".', rich_help_panel=_IO),
    ] = None,
    traces: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="TRACE.jsonl",
            help="Replay what dmax generate --trace wrote, in place of a prompt. Repeatable.",
            rich_help_panel=_IO,
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DECODER[=THRESHOLD]",
            help="Answer with this decoder too, and show both side by side. Repeatable.",
            rich_help_panel="Decoding",
        ),
    ] = None,
) -> None:
    """Write a replay of an answer: one HTML file that needs no network and no server."""
    from dmax.cli._common.files import check_writable, write_text

    check_writable(output)
    if traces:
        given = {"PROMPT": prompt, "--prompt-ids": prompt_ids, "--compare": compare}
        _check_traces(traces, output, [name for name, value in given.items() if value is not None], decoding)
        is_default = context.get_parameter_source("model").name == "DEFAULT"  # type: ignore[union-attr]
        runs = [run for path in traces for run in _recorded(path, None if is_default else model.model)]
    else:
        if prompt is not None and prompt_ids is not None:
            raise CommandError("PROMPT and --prompt-ids each give a prompt; give one of them.")
        from dmax.cli._common.session import decoding_rule

        settings = [decoding, *(_other(decoding, text) for text in compare or ())]
        rules = [decoding_rule(each, trace=True) for each in settings]
        runs = _decoded(InputOptions(prompt=prompt, prompt_ids=prompt_ids), model, rules)
    from dmax.serving.replay import replay_html

    with user_errors():
        page = replay_html(runs)
    write_text(output, page)
    note(f"Wrote {output}: {len(runs)} answer{'s' if len(runs) > 1 else ''}, {len(page.encode()) / 1e3:.0f} kB.")


def _other(decoding: DecodingOptions, text: str) -> DecodingOptions:
    """Return the options of a decoder to compare with: what is its own is as given here, or its default."""
    name, equals, value = text.partition("=")
    try:
        threshold = float(value) if equals else None
    except ValueError as error:
        raise CommandError(
            f"--compare {text!r} must have the form DECODER or DECODER=THRESHOLD, such as threshold=0.95."
        ) from error
    return decoding.but(keep_decoders=False, decoder=name, threshold=threshold)


def _decoded(source: InputOptions, model: ModelOptions, rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """Answer the prompt once by each rule, one after the other, so that each has the machine to itself."""
    from dmax.cli._common.prompts import encode_in_room, single_prompt
    from dmax.cli._common.session import decode, load_llm
    from dmax.serving.replay import pieces_of

    prompt = single_prompt(source)
    llm = load_llm(model)
    token_ids, fitting = encode_in_room(llm, prompt, rules[0])
    head = {
        "model": model.model,
        "prompt": prompt if isinstance(prompt, str) else _text_of(llm.tokenizer, token_ids),
        "prompt_ids": token_ids,
        "mask_token_id": llm.model.config.mask_token_id,
        "eos_token_ids": llm.model.config.eos_token_ids,
    }
    runs = []
    for rule in rules:
        [output] = decode(llm, [token_ids], [replace(rule.params, gen_length=fitting.gen_length)])
        blocks = [record.tokens for record in output.trace or ()]
        runs.append({**head, **output.to_dict(), "pieces": pieces_of(llm.tokenizer, blocks)})
    return runs


def _check_traces(traces: Sequence[Path], output: Path, given: Sequence[str], decoding: DecodingOptions) -> None:
    if given:
        raise CommandError(f"--from replays what was recorded; leave out {' and '.join(given)}.")
    if decoding.given or decoding.further:
        raise CommandError("--from replays what was recorded; leave out the decoding options.")
    for path in traces:
        if path.resolve() == output.resolve():
            raise CommandError(f"--from and --output are the same file, {path}; give two.")


def _recorded(path: Path, model: str | None) -> Iterator[dict[str, Any]]:
    """Read the runs in a file of traces.

    Args:
        path: what ``dmax generate --trace`` wrote.
        model: whose tokenizer tells the text of tokens; None takes the one that each record names.
    """
    from dmax.serving.replay import ReplayError, checked_run

    with user_errors():
        lines = path.read_bytes().split(b"\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise CommandError(f"{path} is empty; give a file that dmax generate --trace wrote.")
    for number, line in numbered:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or "trace" not in record:
            raise CommandError(f"{path} line {number} is no trace; give a file that dmax generate --trace wrote.")
        try:
            yield _with_texts(checked_run(record), model)
        except ReplayError as error:
            raise CommandError(f"{path} line {number} is no trace: {error}") from error


def _with_texts(run: dict[str, Any], model: str | None) -> dict[str, Any]:
    """Return a run as it was recorded, with the text of its tokens."""
    from dmax.serving.replay import pieces_of

    name = model or run.get("model")
    if not isinstance(name, str):
        raise CommandError("the trace does not name its model; give it with --model.")
    try:
        tokenizer = _tokenizer(name)
    except CommandError as error:
        raise CommandError(f"the model of the trace cannot be read; give it with --model. {error.message}") from error
    prompt_ids = run.get("prompt_ids", [])
    if tokenizer is not None:
        run["pieces"] = pieces_of(tokenizer, [record["tokens"] for record in run["trace"]])
        run["mask_token_id"] = tokenizer.special_id("mask_token")
        run["eos_token_ids"] = _ends(name)
    return {"prompt": _text_of(tokenizer, prompt_ids), **run}


@cache
def _tokenizer(model: str) -> Tokenizer | None:
    from dmax.models import load_tokenizer

    with user_errors():
        return load_tokenizer(model)


@cache
def _ends(model: str) -> tuple[int, ...]:
    from dmax.models.checkpoint import load_config

    with user_errors():
        return load_config(model).eos_token_ids


def _text_of(tokenizer: Tokenizer | None, token_ids: list[int]) -> str:
    return " ".join(map(str, token_ids)) if tokenizer is None else tokenizer.decode(token_ids)
