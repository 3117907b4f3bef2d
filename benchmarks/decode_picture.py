"""A picture of one decoding: a row for every pass, a cell for every token of the block in work.

python benchmarks/decode_picture.py [--model M] [--decoder D] [--output docs/assets/decode.svg] [PROMPT]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from dmax import LLM, GenerationOutput, GenerationParams
from dmax.engine import PassRecord

QUESTION = (
    "Jordan went to their orchard to pick some cherries and found half as many beetles as wasps in the garden. "
    "If there were 116 wasps, calculate the total number of insects in the garden."
)
CHARACTER, ROW, MARGIN, LABEL = 6.6, 19, 12, 30
COLOURS = {"mask": "#e4e7ec", "promoted": "#bfdbfe", "revised": "#fdba74", "final": "#bbf7d0", "decoded": "#dbeafe"}
LEGEND = (
    ("promoted", "mask became a token"), ("decoded", "decoded, still soft"), ("revised", "token revised"),
    ("final", "block converged"), ("mask", "mask"),
)  # fmt: skip


def kind(record: PassRecord, offset: int, mask_token_id: int) -> str:
    """Tell which colour a cell has."""
    if record.tokens[offset] == mask_token_id:
        return "mask"
    if offset in record.revised:
        return "revised"
    if offset in record.promoted:
        return "promoted"
    return "final" if record.final else "decoded"


def draw(output: GenerationOutput, text_of: Callable[[int], str], mask_token_id: int, eos_token_id: int) -> str:
    """Draw the SVG; a cell is as wide as the widest token its position ever showed."""
    assert output.trace is not None
    parts: list[str] = []
    y, width = MARGIN, 0.0
    for block in sorted({record.block for record in output.trace}):
        passes = [record for record in output.trace if record.block == block]
        shown = [o for o in passes[0].active if not _is_padding(passes[-1], o, eos_token_id)]
        cells = {
            o: max(len(_label(r.tokens[o], text_of, mask_token_id)) for r in passes) * CHARACTER + 4 for o in shown
        }
        for number, record in enumerate(passes, 1):
            parts.append(text(MARGIN, y + 13, "n", str(number)))
            x: float = MARGIN + LABEL
            for offset in shown:
                colour = COLOURS[kind(record, offset, mask_token_id)]
                parts.append(box(x, y, cells[offset] - 1.5, ROW - 3, colour))
                parts.append(text(x + 1.5, y + 13, "t", _label(record.tokens[offset], text_of, mask_token_id)))
                x += cells[offset]
            width = max(width, x)
            y += ROW
        y += ROW // 2
    x = MARGIN + LABEL
    for name, meaning in LEGEND:
        parts += [box(x, y, 12, 12, COLOURS[name]), text(x + 17, y + 11, "l", meaning)]
        x += 30 + 7 * len(meaning)
    summary = f"{output.num_tokens} tokens in {output.nfe} forwards: {output.tpf:.1f} tokens per forward"
    parts.append(text(MARGIN + LABEL, y + 34, "l", summary))
    width, height = max(width, x) + MARGIN, y + 34 + MARGIN
    return svg(parts, width, height)


def svg(parts: Sequence[str], width: float, height: float) -> str:
    """Write a whole picture."""
    style = (
        "text{fill:#111827;white-space:pre}.t{font:11px ui-monospace,monospace}"
        ".n{font:11px ui-monospace,monospace;fill:#6b7280}.l{font:12px sans-serif;fill:#374151}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    """Draw a cell."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" fill="{colour}"/>'


def text(x: float, y: float, style: str, content: str) -> str:
    """Draw a label; styles are t (token), n (number) and l (legend)."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(content)}</text>'


def _is_padding(final: PassRecord, offset: int, eos_token_id: int) -> bool:
    """Tell whether a position lies behind the block's first EOS, where nothing is answer."""
    return eos_token_id in [final.tokens[o] for o in final.active if o < offset]


def _label(token: int, text_of: Callable[[int], str], mask_token_id: int) -> str:
    return "·" if token == mask_token_id else text_of(token).replace("\n", "⏎").strip(" ") or "␣"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default=QUESTION)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--decoder", default="soft-parallel")
    parser.add_argument("--output", type=Path, default=Path("docs/assets/decode.svg"))
    arguments = parser.parse_args()
    llm = LLM(arguments.model)
    tokenizer, config = llm.tokenizer, llm.model.config
    if tokenizer is None:
        parser.error(f"{arguments.model} has no tokenizer; the picture shows text.")
    params = GenerationParams(decoder=arguments.decoder, trace=True)
    prompt = llm.chat_prompt(arguments.prompt) if tokenizer.chat_template else arguments.prompt
    [output] = llm.generate(prompt, params)

    def text_of(token: int) -> str:
        return "<eos>" if token == config.eos_token_id else tokenizer.decode([token])

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(draw(output, text_of, config.mask_token_id, config.eos_token_id), encoding="utf-8")
    print(f"{arguments.output}: {output.text!r}")


if __name__ == "__main__":
    main()
