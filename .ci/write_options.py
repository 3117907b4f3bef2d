"""Write docs/reference/options.md from the declarations of params and decoders: ``python .ci/write_options.py``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dmax.decoding.options import Option
from dmax.decoding.registry import BUILT_IN, about, described_options
from dmax.engine.params import PARAMS

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "options.md"
_HEAD = """# Options of a decode

Made by `python .ci/write_options.py` from the declarations in the code; a test fails where the two differ.

Each is a field of `GenerationParams`, an option of the command line (`--gen-length`), a field of a request
(`max_tokens` for `gen_length`), a control of the page, and an argument of the evaluation harness. A server takes no
more than the last column says.
"""
_DECODERS = """
## Options of the decoders

On the command line they have flags of their own (`--max-post-steps 4`, `--no-soft`), which
`dmax generate --decoder NAME --help` lists, beside `--decoder-option NAME=VALUE`. In Python those that are no field of
`GenerationParams` go into `decoder_options`. A request takes them as fields, or in `decoder_options`. Every decoder has
`temperature` too.
"""


def page() -> str:
    """Return the page as the code has it."""
    parts = [_HEAD, _table(PARAMS.values()), _DECODERS]
    for name in BUILT_IN:
        own = [option for option in described_options(name) if option.name != "temperature"]
        parts += [f"\n### `{name}`\n\n{about(name)}\n", _table(own)]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _table(options: Iterable[Option]) -> str:
    rows = ["| option | default | takes | | most in a request |", "|---|---|---|---|---|"]
    for option in options:
        most = "" if option.served_maximum is None else f"{option.served_maximum:,}"
        rows.append(f"| `{option.name}` | {_default(option)} | {_takes(option)} | {option.help} | {most} |")
    return "\n".join(rows) + "\n"


def _default(option: Option) -> str:
    if option.of_decoder:
        return "the model's, else the decoder's"
    return "none" if option.default in (None, ()) else f"`{option.default}`"


def _takes(option: Option) -> str:
    kinds = {"number": "number", "whole": "whole number", "switch": "true or false", "text": "text", "texts": "texts"}
    return f"{kinds.get(option.kind, 'anything')}{', ' if option.bounds else ''}{option.bounds}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
