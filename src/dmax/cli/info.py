"""``dmax info``: a model described in a table, or as JSON."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dmax.cli._common.errors import user_errors

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def info(
    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face id, or nano, nano-base.")] = "nano",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Describe a model: architecture, parameters, memory, special tokens, files.

    Works on a folder without weights too.
    """
    from dmax.cli._common.facts import describe

    with user_errors():
        facts = describe(model)
    if json:
        typer.echo(json_format.dumps(facts, ensure_ascii=False))
    else:
        Console().print(_table(model, facts))


def _table(name: str, facts: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title=name, title_justify="left")
    table.title_style = "bold"
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for label, value in _rows(facts):
        table.add_row(label, Text(value))
    return table


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    shape = facts["architecture"]
    yield "architecture", f"{shape['family']}, {shape['kind']}"
    sparse = shape["layers"] - shape["dense_layers"]
    split = f" ({shape['dense_layers']} dense, {sparse} with experts)" if sparse else ""
    yield "layers", f"{shape['layers']}{split} of width {shape['hidden_size']}"
    yield "attention", f"{shape['heads']} heads of {shape['head_dim']}, {shape['kv_heads']} for keys and values"
    stretched = f", stretched by {shape['rope_scaling']['rope_type']}" if shape["rope_scaling"] else ""
    yield "rotary", f"{shape['rotary_dim']} channels, base {shape['rope_theta']:,.0f}{stretched}"
    experts = shape.get("experts")
    if experts is None or shape["dense_layers"]:
        yield "feed-forward", f"width {shape['dense_width']}"
    if experts is not None:
        grouped = f", from {experts['groups_per_token']} of {experts['groups']} groups" if experts["groups"] > 1 else ""
        grouped = f", from {experts['per_block']} of its block" if experts["per_block"] else grouped
        yield "experts", f"{experts['count']} of width {experts['width']}, {experts['per_token']} a token{grouped}"
        yield "shared experts", str(experts["shared"])
    tied = ", input and output embeddings shared" if shape["tied_embeddings"] else ""
    yield "vocabulary", f"{shape['vocab_size']:,}{tied}"
    blocks = f", trained in blocks of {shape['block_length']}" if shape["block_length"] else ""
    yield "context", f"{shape['context']:,} positions{blocks}"
    shifted = ", tokens read one position before their own" if shape["shifted_logits"] else ""
    yield "decoder", f"{shape['decoder']}{shifted}"
    total, active = (_count_text(facts["parameters"][key]) for key in ("total", "active"))
    yield "parameters", total if total == active else f"{total}, {active} active for a token"
    yield "weights", _by_dtype(facts["weight_bytes"], 1)
    yield "cache", f"{_by_dtype(facts['cache_bytes_per_token'], 1024)}, for 1,024 positions"
    yield "special tokens", _special_tokens_text(facts["special_tokens"])
    yield "tokenizer", _tokenizer_text(facts["tokenizer"])
    if facts["decoder_defaults"]:
        yield "decoded best with", _defaults_text(facts["decoder_defaults"])
    needed = ", ".join(f"{_size_text(size)} in {name}" for name, size in facts["memory"]["needed"].items())
    yield "to run", f"{needed}; here are {_size_text(facts['memory']['available'])}"
    yield "backend", f"{facts['backend']} on this machine"
    yield "files", _files_text(facts["weights"])


def _by_dtype(sizes: dict[str, int], times: int) -> str:
    """Write sizes in every dtype; dtypes of one size share an entry."""
    by_size: dict[int, list[str]] = {}
    for dtype, size in sizes.items():
        by_size.setdefault(size * times, []).append(dtype)
    return ", ".join(f"{_size_text(size)} in {' or '.join(dtypes)}" for size, dtypes in by_size.items())


def _special_tokens_text(tokens: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{role} {t['id']} {t['text'] or ''}".rstrip() for role, t in tokens.items())


def _defaults_text(by_decoder: dict[str, dict[str, Any]]) -> str:
    return "; ".join(
        f"{decoder}: {', '.join(f'{name} {value}' for name, value in options.items())}"
        for decoder, options in by_decoder.items()
    )


def _tokenizer_text(tokenizer: dict[str, Any] | None) -> str:
    if tokenizer is None:
        return "none: takes token ids only"
    return f"{tokenizer['vocab_size']:,} tokens, {'with' if tokenizer['chat_template'] else 'no'} chat template"


def _files_text(weights: dict[str, Any] | None) -> str:
    if weights is None:
        return "no weights"
    plural = "" if weights["files"] == 1 else "s"
    parts = [f"{weights['files']} file{plural}", " and ".join(weights["dtypes"] or ()), weights["layout"]]
    parts += [_size_text(weights["bytes"])] if weights["bytes"] else []
    parts += [] if weights["here"] else ["not on this machine"]
    return ", ".join(part for part in parts if part)


def _count_text(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def _size_text(size: float) -> str:
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{size:.0f} B"
