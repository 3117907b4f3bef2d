"""The live view: what a picture shows of the passes, and what is left on a terminal in the end."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from rich.style import Style
from rich.text import Text

from dmax import LLM, GenerationOutput, GenerationParams, PassRecord
from dmax.cli._common.canvas import END, FLASH_SECONDS, MASK, Canvas, pieces, printable
from dmax.cli._common.live import LiveView
from dmax.models import Tokenizer, load_tokenizer

M, E = 1, 2


class Letters:
    """A tokenizer of one character a token; special tokens give no text."""

    def decode(self, token_ids: list[int]) -> str:
        return "".join(chr(token_id) for token_id in token_ids if token_id > E)


def ids(text: str) -> list[int]:
    """``_`` is a mask and ``$`` the EOS; any other character is itself."""
    return [{"_": M, "$": E}.get(character, ord(character)) for character in text]


def record(text: str, block: int = 0, **changes: Any) -> PassRecord:
    values: dict[str, Any] = {
        "pass_number": 1,
        "block": block,
        "start": block * len(text),
        "tokens": ids(text),
        "confidence": [0.5] * len(text),
        "promoted": [],
        "revised": [],
        "active": list(range(len(text))),
        "final": False,
    }
    return PassRecord(**{**values, **changes})


def canvas(gen_length: int = 64) -> Canvas:
    return Canvas(Letters(), M, [E], gen_length)


def style_of(picture: Text, part: str) -> Style:
    """The style of the first place where ``part`` stands."""
    offset = picture.plain.index(part)
    styles = [span.style for span in picture.spans if span.start <= offset < span.end]
    assert len(styles) <= 1
    return Style.null() if not styles else styles[0] if isinstance(styles[0], Style) else Style.parse(styles[0])


def test_masks_stand_apart_from_words() -> None:
    shown = canvas()
    shown.apply(record("ab__c_"), now=0.0)
    assert shown.text(0.0).plain == f"ab {MASK} {MASK} c {MASK}"
    assert style_of(shown.text(0.0), MASK).dim
    assert shown.tokens == 3


def test_soft_tokens_are_shaded_by_confidence() -> None:
    shown = canvas()
    shown.apply(record("abc_", confidence=[0.1, 0.6, 0.99, 0.2]), now=0.0)
    colours = [style_of(shown.text(0.0), letter).color for letter in "abc"]
    assert all(colour is not None and colour.triplet is not None for colour in colours)
    greens = [colour.triplet.green for colour in colours if colour is not None and colour.triplet is not None]
    assert greens == sorted(greens)
    assert len(set(greens)) == 3


def test_a_revision_flashes_and_calms_down() -> None:
    shown = canvas()
    shown.apply(record("ab__"), now=0.0)
    shown.apply(record("xb__", revised=[0]), now=1.0)
    assert style_of(shown.text(1.0), "x").bgcolor is not None
    assert style_of(shown.text(1.0), "b").bgcolor is None
    glow = style_of(shown.text(1.0 + FLASH_SECONDS * 0.75), "x")
    assert glow.bgcolor is None
    calm = style_of(shown.text(1.0 + FLASH_SECONDS), "x")
    assert calm == style_of(shown.text(1.0), "b") != glow


def test_a_flash_outlasts_the_pass_that_caused_it_and_its_block() -> None:
    shown = canvas()
    shown.apply(record("xb__", revised=[0]), now=0.0)
    shown.apply(record("xbyd", revised=[2], final=True), now=0.2)
    shown.apply(record("ef__", block=1), now=0.3)
    assert style_of(shown.text(0.3), "y").bgcolor is not None
    assert style_of(shown.text(0.3), "e").bgcolor is None
    assert style_of(shown.text(1.0), "y") == Style.null()


def test_final_blocks_are_settled_text() -> None:
    shown = canvas()
    shown.apply(record("abcd", final=True), now=0.0)
    shown.apply(record("e___", block=1), now=0.0)
    picture = shown.text(0.0)
    assert picture.plain.startswith("abcde")
    assert style_of(picture, "a") == Style.null() != style_of(picture, "e")
    shown.apply(record("efgh", block=1, final=True), now=0.0)
    shown.apply(record("i___", block=2), now=0.0)
    assert shown.text(0.0).plain.startswith("abcdefghi")


def test_prompt_positions_are_not_shown() -> None:
    shown = canvas()
    shown.apply(record("pqa_", active=[2, 3]), now=0.0)
    assert shown.text(0.0).plain == f"a {MASK}"


def test_the_end_is_marked_while_it_may_still_change() -> None:
    shown = canvas()
    shown.apply(record("a$$_"), now=0.0)
    assert shown.text(0.0).plain == f"a{END}{END} {MASK}"
    shown.apply(record("a$bc", final=True), now=0.0)
    assert shown.text(0.0).plain == "a"
    assert shown.tokens == 1


def test_nothing_is_shown_beyond_the_length_limit() -> None:
    shown = canvas(gen_length=6)
    shown.apply(record("abcd", final=True), now=0.0)
    shown.apply(record("efg_", block=1), now=0.0)
    assert shown.text(0.0).plain == "abcdef"
    assert shown.tokens == 6
    shown.apply(record("efgh", block=1, final=True), now=0.0)
    assert shown.text(0.0).plain == "abcdef"


def test_without_a_tokenizer_ids_are_shown() -> None:
    shown = Canvas(None, M, [E], 64)
    shown.apply(record("____", tokens=[7, 8, 9, 10], final=True), now=0.0)
    shown.apply(record("____", tokens=[11, M, M, M], block=1), now=0.0)
    assert shown.text(0.0).plain.startswith("7 8 9 10 11 ")


def test_pieces_of_a_split_character_come_with_its_last_token(golden_tokenizer: Tokenizer) -> None:
    token_ids = golden_tokenizer.encode("£5 – 日本")
    texts = pieces(golden_tokenizer, token_ids)
    assert "".join(texts) == golden_tokenizer.decode(token_ids)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(texts)
    assert "" in texts


@pytest.fixture
def golden_tokenizer(pytestconfig: pytest.Config) -> Tokenizer:
    tokenizer = load_tokenizer(pytestconfig.rootpath / "tests" / "golden" / "data" / "trained-dense")
    assert tokenizer is not None
    return tokenizer


def test_words_keep_the_space_before_them_across_blocks_and_masks(checkpoints: Any) -> None:
    tokenizer = load_tokenizer(checkpoints.raw)  # puts a space between two tokens, and none before the first
    shown = Canvas(tokenizer, M, [E], 64)
    shown.apply(record("__", tokens=[7, 8], final=True), now=0.0)
    shown.apply(record("___", tokens=[9, M, 10], block=1), now=0.0)
    assert shown.text(0.0).plain == f"w7 w8 w9 {MASK} w10"


@pytest.mark.parametrize("text", ["\x1b[2J", "\x07", "\r", "\x9b2J"])
def test_no_text_steers_the_terminal(text: str) -> None:
    assert printable(text)[0] == "\N{REPLACEMENT CHARACTER}"
    assert printable("a\tb\nc é") == "a\tb\nc é"
    shown = canvas()
    shown.apply(record(f"{text}_"), now=0.0)
    assert not set(text[:1]) & set(shown.text(0.0).plain)


@pytest.mark.parametrize("width", [7, 20])
def test_wrapping_by_parts_gives_the_lines_of_the_whole(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    text = "one two three\n\nfour five six seven\neight nine ten eleven twelve\n"
    shown = canvas(gen_length=1000)
    for block, character in enumerate(text):
        shown.apply(record(character, block=block, final=True), now=0.0)
        lines, fixed = shown.lines(console, width, 0.0)
        assert [line.plain for line in lines] == [line.plain for line in Text(text[: block + 1]).wrap(console, width)]
        # The last two blocks are not settled yet.
        assert fixed == len(Text(text[: max(block - 1, 0)]).wrap(console, width)) - 1


def output(text: str) -> GenerationOutput:
    count = len(text)
    return GenerationOutput(
        text=text, token_ids=ids(text), num_tokens=count, passes=9, nfe=10, blocks=3, revisions=4, tpf=count / 10,
        tps=count / 2, seconds=2.0, finish_reason="length", decoder="d", params={},
    )  # fmt: skip


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Console, io.StringIO]]:
    """Width and height -> a console that believes it is a terminal, and what it was sent."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def build(width: int, height: int) -> tuple[Console, io.StringIO]:
        file = io.StringIO()
        console = Console(
            file=file, width=width, height=height, force_terminal=True, color_system="truecolor", _environ={}
        )
        return console, file

    return build


def scrollback(sent: str) -> list[str]:
    """The lines that a terminal of endless height ends up with; knows the few controls that rich uses here."""
    lines, row, column = [""], 0, 0
    for control, character in re.findall(r"\x1b\[([?0-9;]*[A-Za-z])|(.)", sent, re.DOTALL):
        if control.endswith("A"):
            row -= int(control[:-1] or 1)
        elif control == "2K":
            lines[row] = ""
        elif character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            lines.extend([""] * (row + 1 - len(lines)))
        elif character:
            lines[row] = lines[row].ljust(column)[:column] + character + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_a_terminal_is_left_with_the_answer_and_its_cost(
    terminal: Callable[..., tuple[Console, io.StringIO]],
) -> None:
    console, file = terminal(80, 20)
    with LiveView(console, canvas()) as view:
        view.on_pass(0, record("ab__"))
        view.on_pass(0, record("xbc_", revised=[0]))
        view.on_pass(0, record("xbcd", final=True))
        view.finish(output("xbcd"))
    sent = file.getvalue()
    assert MASK in sent
    assert re.search(r"\x1b\[[0-9;]*43m", sent), "the revision never flashed"
    cost = "4 tokens · 10 NFE · 0.40 TPF · 2 TPS · 2.00 s · cut at the length limit"
    assert [line for line in scrollback(sent) if line] == ["xbcd", cost]


def test_every_pass_is_shown_while_the_lag_allows_it(terminal: Callable[..., tuple[Console, io.StringIO]]) -> None:
    console, file = terminal(60, 20)
    with LiveView(console, canvas()) as view:
        for letter in "QWZXJVYU":
            view.on_pass(0, record(f"{letter}___"))
        view.finish(output("U"))
    assert all(letter in file.getvalue() for letter in "QWZXJVYU")


def test_a_flood_of_passes_does_not_delay_the_answer(terminal: Callable[..., tuple[Console, io.StringIO]]) -> None:
    console, _ = terminal(60, 20)
    shown = canvas(gen_length=100_000)
    started = time.monotonic()
    with LiveView(console, shown) as view:
        for block in range(2000):
            view.on_pass(0, record("abcd", block=block, final=True))
        view.finish(output("abcd"))
    assert shown.passes == 2000
    assert time.monotonic() - started < 50  # at one pass a frame it takes 100 s, as it is some 2 s


def test_a_long_answer_scrolls_and_is_not_repeated(terminal: Callable[..., tuple[Console, io.StringIO]]) -> None:
    console, file = terminal(20, 6)
    words = [f"line {number}" for number in range(20)]
    text = "\n".join(words)
    with LiveView(console, canvas(gen_length=1000)) as view:
        for block, word in enumerate(words):
            line = word if block == len(words) - 1 else f"{word}\n"
            view.on_pass(0, record("_" * len(line), block=block))
            view.on_pass(0, record(line, block=block, final=True))
        view.finish(output(text))
    lines = [line for line in scrollback(file.getvalue()) if line]
    assert lines[: len(words)] == words
    # No frame is taller than the screen: its top would scroll away and stay there.
    ups = [len(re.findall(r"\x1b\[1A", frame)) for frame in file.getvalue().split("\r")]
    assert max(ups) < 6


def test_of_a_block_taller_than_the_screen_the_end_is_shown(
    terminal: Callable[..., tuple[Console, io.StringIO]],
) -> None:
    console, file = terminal(20, 6)
    with LiveView(console, canvas()) as view:
        view.on_pass(0, record("\n".join("abcdefghijk")))
        view.finish(output("k"))
    sent = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).replace("\n", "\r\n")
    assert "j\r\nk\r\n" in sent
    assert "21 tokens · pass 1" in sent
    assert "a\r\nb" not in sent


def test_a_short_answer_cut_at_a_stop_string_replaces_what_was_shown(
    terminal: Callable[..., tuple[Console, io.StringIO]],
) -> None:
    console, file = terminal(80, 20)
    with LiveView(console, canvas()) as view:
        view.on_pass(0, record("abcd", final=True))
        view.finish(output("ab"))
    assert next(line for line in scrollback(file.getvalue()) if line) == "ab"


def test_a_terminal_is_told_of_an_answer_without_text(
    terminal: Callable[..., tuple[Console, io.StringIO]],
) -> None:
    console, file = terminal(80, 20)
    with LiveView(console, canvas()) as view:
        view.on_pass(0, record("$$$$", final=True))
        view.finish(output(" "))
    lines = [line for line in scrollback(file.getvalue()) if line]
    assert lines[0] == "The answer is empty: the model ended it at once."
    assert "NFE" in lines[1]


def test_an_error_takes_the_picture_away(terminal: Callable[..., tuple[Console, io.StringIO]]) -> None:
    console, file = terminal(80, 20)

    def fail() -> None:
        with LiveView(console, canvas()) as view:
            view.on_pass(0, record("abcd"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not any(scrollback(file.getvalue()))
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l"), "the cursor stays hidden"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_real_terminal(checkpoints: Any) -> None:
    llm = LLM(checkpoints.chat)
    [expected] = llm.generate(llm.chat_prompt("w7 w8"), GenerationParams(gen_length=16, block_length=8))
    short = ("--gen-length", "16", "--block-length", "8")
    sent = _in_pseudo_terminal(
        [sys.executable, "-m", "dmax", "generate", *short, "--model", str(checkpoints.chat), "w7 w8"]
    )
    assert MASK in sent
    lines = [line for line in scrollback(sent) if line]
    assert expected.text is not None
    assert " ".join(lines[:-1]) == expected.text
    assert f"{expected.num_tokens} tokens · {expected.nfe} NFE · {expected.tpf:.2f} TPF" in lines[-1]


def _in_pseudo_terminal(command: list[str]) -> str:
    """What a command sends to a terminal."""
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    sent = b""
    try:
        while chunk := os.read(ours, 65536):
            sent += chunk
    except OSError:  # the other side is closed
        pass
    assert process.wait(timeout=300) == 0, sent.decode("utf-8")
    return sent.decode("utf-8")


def test_ctrl_c_pressed_again_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=40)
    view = LiveView(console, canvas())

    def interrupted(_: object = None) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(view._thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt), view:
        raise KeyboardInterrupt
    assert not view._live.is_started
    with LiveView(console, canvas()) as another:  # the next answer has its own
        another.on_pass(0, record("abcd", final=True))
    shown = Text.from_ansi(console.file.getvalue()).plain  # type: ignore[attr-defined]
    assert "\x1b[?25h" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "abcd" in shown
