"""A picture of blocks in flight: the same answer decoded one block after another and with several at a time.

A row is a forward, a column a position of the answer; a block that is final fades, one that has not begun is blank.

    python benchmarks/flight_picture.py [--model M] [--buffer-size N] [--output docs/assets/flight.svg] [PROMPT]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from decode_picture import COLOURS, LEGEND, QUESTION, box, kind, svg, text

from dmax import LLM, GenerationOutput, GenerationParams

CELL, ROW, MARGIN, TITLE, BETWEEN = 7.0, 8.0, 14, 24, 26
STORED = "#e6f7ec"
"""A final block, in the forwards after the one that made it final."""


def draw(output: GenerationOutput, left: float, top: float, mask_token_id: int) -> tuple[list[str], float, float]:
    """Draw the panel of one decoding; return its right and lower edge."""
    assert output.trace is not None
    first = min(record.start + record.active[0] for record in output.trace)
    blocks = sorted({record.block for record in output.trace})
    final: dict[int, int] = {}
    parts = []
    for record in output.trace:
        y = top + (record.pass_number - 1) * ROW
        for offset in record.active:
            x = left + (record.start + offset - first) * CELL
            parts.append(box(x, y, CELL - 1, ROW - 1, COLOURS[kind(record, offset, mask_token_id)]))
        if record.final:
            final[record.block] = record.pass_number
    passes = max(record.pass_number for record in output.trace)
    for block in blocks:
        record = next(record for record in output.trace if record.block == block)
        x = left + (record.start + record.active[0] - first) * CELL
        behind = final.get(block, passes)
        height = (passes - behind) * ROW
        if height:
            parts.append(box(x, top + behind * ROW, len(record.active) * CELL - 1, height - 1, STORED))
    last = max(output.trace, key=lambda record: record.start)
    return parts, left + (last.start + last.active[-1] + 1 - first) * CELL, top + passes * ROW


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default=QUESTION)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--buffer-size", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs/assets/flight.svg"))
    arguments = parser.parse_args()
    llm = LLM(arguments.model)
    assert llm.tokenizer is not None
    prompt = llm.chat_prompt(arguments.prompt) if llm.tokenizer.chat_template else arguments.prompt
    parts: list[str] = []
    right, y = 0.0, float(MARGIN)
    for size in (1, arguments.buffer_size):
        [output] = llm.generate(prompt, GenerationParams(buffer_size=size, trace=True))
        flight = "one block at a time" if size == 1 else f"{size} blocks in flight"
        title = f"{flight}: {output.num_tokens} tokens in {output.nfe} forwards, {output.tpf:.1f} tokens per forward"
        parts.append(text(MARGIN, y + 12, "l", title))
        panel, edge, bottom = draw(output, MARGIN, y + TITLE, llm.model.config.mask_token_id)
        parts += panel
        right, y = max(right, edge), bottom + BETWEEN
        print(f"{title}: {output.text!r}")
    x = float(MARGIN)
    for colour, meaning in [*((COLOURS[name], meaning) for name, meaning in LEGEND), (STORED, "final, stored")]:
        parts += [box(x, y, 12, 12, colour), text(x + 17, y + 11, "l", meaning)]
        x += 30 + 7 * len(meaning)
    arguments.output.write_text(svg(parts, max(right, x) + MARGIN, y + 12 + MARGIN), encoding="utf-8")


if __name__ == "__main__":
    main()
