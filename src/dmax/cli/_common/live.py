"""The live view: a terminal picture of the block being refined, drawn beside the decode loop.

The decode loop only puts its pass records into a queue; a thread draws them at a fixed frame rate. A fast model makes
more passes than there are frames, and a small one is done before an eye could follow, so the thread may run up to
``MAX_LAG_FRAMES`` frames behind: every pass is shown where that suffices, and the surplus is folded into one frame
where it does not. The times reported are the engine's own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from dmax.cli._common.canvas import FLASH_SECONDS, Canvas, printable
from dmax.cli._common.errors import note
from dmax.cli._common.keys import no_echo
from dmax.cli._common.session import decode
from dmax.engine import GenerationOutput, GenerationParams, PassRecord

if TYPE_CHECKING:
    from dmax.engine import LLM

FRAMES_PER_SECOND = 20
MAX_LAG_FRAMES = 30
NO_TEXT = "The answer is empty: the model ended it at once."


def decode_in_view(console: Console, llm: LLM, token_ids: list[int], params: GenerationParams) -> GenerationOutput:
    """Answer one prompt and show it while it is decoded; raises as :func:`dmax.cli._common.session.decode` does."""
    config = llm.model.config
    canvas = Canvas(llm.tokenizer, config.mask_token_id, config.eos_token_ids, params.gen_length)
    with no_echo(), LiveView(console, canvas) as view:
        [output] = decode(llm, [token_ids], [params], on_pass=view.on_pass)
        view.finish(output)
    return output


def answer_text(output: GenerationOutput) -> str:
    """Return an answer as text, or as its token ids where the model has no tokenizer."""
    return " ".join(map(str, output.token_ids)) if output.text is None else output.text


def print_answer(output: GenerationOutput) -> None:
    """Print an answer on stdout; where there is nothing to read, say so on stderr."""
    text = answer_text(output)
    print(text, flush=True)
    if not text.strip():
        note(NO_TEXT)


def summary(output: GenerationOutput) -> Text:
    """Write the closing line: what the answer cost."""
    cells = [
        f"{output.num_tokens} tokens",
        f"{output.nfe} NFE",
        f"{output.tpf:.2f} TPF",
        f"{output.tps:.0f} TPS",
        f"{output.seconds:.2f} s",
    ]
    if output.finish_reason == "length":
        cells.append("cut at the length limit")
    return Text(" · ".join(cells), style="dim")


class LiveView:
    """Shows one answer while it is decoded. Use as a context manager, and end with :meth:`finish`."""

    def __init__(self, console: Console, canvas: Canvas) -> None:
        self._console = console
        self._canvas = canvas
        self._pending: deque[PassRecord] = deque()
        self._flushed = 0
        self._done = threading.Event()
        self._last_revision = float("-inf")
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._thread = threading.Thread(target=self._run, name="dmax-live-view", daemon=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        self._draw(time.monotonic())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._pending.clear()
            self._last_revision = float("-inf")
        self._stop()

    def on_pass(self, row: int, record: PassRecord) -> None:
        """Take a pass from ``LLM.generate``; costs the decode loop one append."""
        self._pending.append(record)

    def finish(self, output: GenerationOutput) -> None:
        """Show what is left of the passes, then the settled answer and its cost."""
        self._stop()
        lines = Text(printable(answer_text(output))).wrap(self._console, self._console.width)
        for line in lines[self._flushed :]:
            self._console.print(line, no_wrap=True)
        if not answer_text(output).strip():
            self._console.print(Text(NO_TEXT, style="dim"))
        self._console.print(summary(output))

    def _stop(self) -> None:
        self._done.set()
        try:
            if self._thread.is_alive():
                self._thread.join()
        finally:  # also where Ctrl-C is pressed again
            self._live.stop()

    def _run(self) -> None:
        while not (self._done.is_set() and self._settled(time.monotonic())):
            now = time.monotonic()
            # At least one pass a frame, more when the queue outgrows the lag allowed.
            for _ in range(max(1, len(self._pending) - MAX_LAG_FRAMES)):
                if self._pending:
                    self._apply(self._pending.popleft(), now)
            self._draw(now)
            time.sleep(max(0.0, 1 / FRAMES_PER_SECOND - (time.monotonic() - now)))

    def _apply(self, record: PassRecord, now: float) -> None:
        self._canvas.apply(record, now)
        if record.revised:
            self._last_revision = now

    def _settled(self, now: float) -> bool:
        return not self._pending and now - self._last_revision >= FLASH_SECONDS

    def _draw(self, now: float) -> None:
        lines, fixed = self._canvas.lines(self._console, self._console.width, now)
        room = max(self._console.height - 2, 1)
        # Settled lines that no longer fit scroll away for good; what is on the screen can still be replaced.
        upto = max(self._flushed, min(fixed, len(lines) - room))
        for line in lines[self._flushed : upto]:
            self._live.console.print(line, no_wrap=True)
        self._flushed = upto
        self._live.update(self._picture(lines[self._flushed :][-room:]), refresh=True)

    def _picture(self, lines: list[Text]) -> RenderableType:
        canvas = self._canvas
        if not canvas.passes:
            return Text("reading the prompt", style="dim")
        return Group(*lines, Text(f"{canvas.tokens} tokens · pass {canvas.passes}", style="dim"))
