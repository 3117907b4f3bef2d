"""``dmax chat`` with its input piped in; the terminal's side is in test_live."""

from __future__ import annotations

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
