"""``dmax chat``, with its input piped in and at a terminal; what a terminal shows of an answer is in test_live."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import Result

from dmax import LLM, GenerationParams

PARAMS = GenerationParams(gen_length=8, block_length=4)


@pytest.fixture
def chat(invoke: Callable[..., Result], checkpoints: Any) -> Callable[..., Result]:
    """Lines typed, and further options -> what was printed."""

    def run(*lines: str, options: tuple[str, ...] = ()) -> Result:
        typed = "".join(f"{line}\n" for line in lines)
        short = ("--gen-length", "8", "--block-length", "4")
        return invoke("chat", "--model", checkpoints.chat, *short, *options, stdin=typed)

    return run


def _answers(checkpoint: object, *turns: str, system: str | None = None, temperature: float = 0.0) -> list[str]:
    """What a conversation gives when every turn sees all before it, and draws with a seed of its own."""
    llm = LLM(checkpoint)  # type: ignore[arg-type]
    messages = [] if system is None else [{"role": "system", "content": system}]
    answers = []
    for index, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        [output] = llm.generate(messages, replace(PARAMS, seed=index, temperature=temperature))
        assert output.text is not None
        messages.append({"role": "assistant", "content": output.text})
        answers.append(output.text)
    return answers


def test_every_turn_sees_those_before_it(chat: Callable[..., Result], checkpoints: Any) -> None:
    expected = _answers(checkpoints.chat, "w7", "w8 w9")
    assert expected[1] != _answers(checkpoints.chat, "w8 w9")[0]
    result = chat("w7", "", "w8 w9")
    assert (result.exit_code, result.stdout.splitlines(), result.stderr) == (0, expected, "")


def test_every_turn_draws_with_a_seed_of_its_own(chat: Callable[..., Result], checkpoints: Any) -> None:
    expected = _answers(checkpoints.chat, "w7", "w8", temperature=2.0)
    assert chat("w7", "w8", options=("--temperature", "2")).stdout.splitlines() == expected


def test_reset_forgets_and_exit_ends(chat: Callable[..., Result], checkpoints: Any) -> None:
    [first] = _answers(checkpoints.chat, "w7")
    assert chat("w7", "/reset", "w7", "/exit", "w7").stdout.splitlines() == [first, first]


def test_a_system_message_stays_through_a_reset(chat: Callable[..., Result], checkpoints: Any) -> None:
    [expected] = _answers(checkpoints.chat, "w7", system="w30")
    assert [expected] != _answers(checkpoints.chat, "w7")
    result = chat("w7", "/reset", "w7", options=("--system", "w30"))
    assert result.stdout.splitlines() == [expected, expected]


def test_an_unknown_command_names_the_nearest(chat: Callable[..., Result]) -> None:
    result = chat("/rset")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "'/reset'" in result.stderr


def test_a_turn_without_room_is_forgotten(chat: Callable[..., Result], checkpoints: Any) -> None:
    [expected] = _answers(checkpoints.chat, "w7")
    result = chat(" ".join(["w8"] * 60), "w7")
    assert result.stdout.splitlines() == [expected]
    assert "context of 64" in result.stderr
    assert "/reset" in result.stderr


def test_an_answer_has_the_room_that_is_left_unless_its_length_is_asked_for(
    invoke: Callable[..., Result], checkpoints: Any
) -> None:
    room = {"--prompt-ids": "[5, 6, 7]", "--block-length": "4", "--model": checkpoints.chat}
    options = [part for pair in room.items() for part in pair]
    told = json.loads(invoke("generate", *options, "--ignore-eos", "--json").stdout)
    assert (told["num_tokens"], told["finish_reason"]) == (61, "length")
    refused = invoke("generate", *options, "--gen-length", "62")
    assert (refused.exit_code, "--gen-length 62 exceeds this model's context of 64" in refused.stderr) == (2, True)
    talk = invoke("chat", "--model", checkpoints.chat, "--block-length", "4", stdin="w7\n")
    assert (talk.exit_code, talk.stderr) == (0, "")
    assert talk.stdout.strip()
    full = invoke("chat", "--model", checkpoints.chat, stdin=" ".join(["w8"] * 64) + "\n")
    assert "leaves no room for an answer in this model's context of 64" in full.stderr


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    chat: Callable[..., Result], checkpoints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    [expected] = _answers(checkpoints.chat, "w7")
    answer, calls = LLM.generate, []

    def interrupted(self: LLM, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return answer(self, *args, **kwargs)

    monkeypatch.setattr(LLM, "generate", interrupted)
    result = chat("w8", "w7")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == expected


def test_an_empty_answer_says_so_and_is_forgotten(
    chat: Callable[..., Result], checkpoints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _answers(checkpoints.chat, "w7", "w9")
    answer, calls = LLM.generate, []

    def empty_at_second(self: LLM, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        outputs = answer(self, *args, **kwargs)
        return [replace(outputs[0], text="")] if len(calls) == 2 else outputs

    monkeypatch.setattr(LLM, "generate", empty_at_second)
    result = chat("w7", "w8", "w9")
    assert result.stdout.splitlines() == [expected[0], "", expected[1]]
    assert "The answer is empty: " in result.stderr
    assert "/reset begins anew" in result.stderr


def test_ctrl_c_where_nobody_types_ends_as_everywhere(
    chat: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: str = "") -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert chat("w7").exit_code == 130


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_at_a_terminal_a_paste_is_one_question_and_ctrl_c_asks_twice(checkpoints: Any) -> None:
    first, second = _answers(checkpoints.chat, "w7\nw8\nw9", "w10")
    with _Terminal("chat", "--model", str(checkpoints.chat), "--gen-length", "8", "--block-length", "4") as terminal:
        terminal.until("›")
        terminal.send("\x1b[200~w7\nw8\nw9\x1b[201~")
        terminal.until("w9")
        terminal.send("\r")
        terminal.until(f"{first}.*TPS.*›")
        terminal.send("\x03")
        terminal.until("Ctrl-C again ends.*›")
        terminal.send("w10\r")
        terminal.until(f"{second}.*TPS.*›")
        for keys, told in [
            ("\x03", "Ctrl-C again ends.*›"),
            ("w8", "w8"),
            ("\x03", "›"),
            ("\x03", "Ctrl-C again ends.*›"),
        ]:
            terminal.send(keys)  # what is typed is dropped by itself
            terminal.until(told)
        terminal.send("\x03")
        assert terminal.process.wait(timeout=60) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_what_is_pasted_during_an_answer_is_one_question_and_off_the_screen(checkpoints: Any) -> None:
    first, second, third = _answers(checkpoints.chat, "w7", "w10", "w8\nw9")
    with _Terminal("chat", "--model", str(checkpoints.chat), "--gen-length", "8", "--block-length", "4") as terminal:
        terminal.until("›")
        terminal.send("w7\r")
        during = terminal.until(f"{first}.*TPS").partition("TPS")[0]
        assert re.findall(r"\x1b\[\?2004([hl])", during)[-1] == "h", "the terminal marks pastes"
        terminal.until("›")
        terminal.send("w10\r\x1b[200~w8\nw9\x1b[201~\r")
        terminal.until(f"{second}.*TPS.*{third}.*TPS.*›")
        terminal.send("\x04")
        assert terminal.process.wait(timeout=60) == 0


class _Terminal:
    """``dmax`` at a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        import pty

        self._ours, theirs = pty.openpty()
        environment = {
            **os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", "PROMPT_TOOLKIT_NO_CPR": "1"
        }  # fmt: skip
        command = [sys.executable, "-m", "dmax", *arguments]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)

    def __enter__(self) -> _Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def send(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, pattern: str) -> str:
        """Read until what is new on the screen matches, without its colours; gives all that was new, with them."""
        seen, deadline = b"", time.monotonic() + 120
        while time.monotonic() < deadline:
            if select.select([self._ours], [], [], 1)[0]:
                seen += os.read(self._ours, 65536)
            text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))
            if re.search(pattern, text, re.DOTALL):
                return seen.decode(errors="replace")
        raise AssertionError(f"{pattern!r} did not come; there was {text!r}")
