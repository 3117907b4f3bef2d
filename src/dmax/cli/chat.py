"""``dmax chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from dmax.cli._common.decoding import DecodingOptions
from dmax.cli._common.errors import CommandError, choose, note, report
from dmax.cli._common.options import ModelOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmax.cli._common.session import Rule
    from dmax.engine import LLM

_COMMANDS = {
    "/reset": "forgets the conversation",
    "/exit": "ends it, as Ctrl-D and Ctrl-C twice do",
    "/help": "shows this",
}


def chat(
    model: ModelOptions,
    decoding: DecodingOptions,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message to begin with.")] = None,
) -> None:
    """Talk with a model over several turns.

    /reset begins anew; /exit, Ctrl-D or Ctrl-C twice ends; Ctrl-C stops the answer being given. Pasted lines are one
    question.
    """
    from dmax.cli._common.keys import typed_ahead
    from dmax.cli._common.session import at_terminal, decoding_rule, load_llm

    console = Console()
    interactive = at_terminal(console) and sys.stdin.isatty()
    with typed_ahead() if interactive else nullcontext():
        rule = decoding_rule(decoding)
        llm = load_llm(model, gen_length=rule.params.gen_length)
        if llm.tokenizer is None or llm.tokenizer.chat_template is None:
            lacks = "tokenizer" if llm.tokenizer is None else "chat template"
            raise CommandError(f"{model.model} has no {lacks}, so it cannot chat; use dmax generate.")
        _Conversation(llm, rule, system, console, interactive=interactive).run()


class _Conversation:
    """The turns so far, and the loop that adds to them."""

    def __init__(self, llm: LLM, rule: Rule, system: str | None, console: Console, *, interactive: bool) -> None:
        from dmax.cli._common.session import at_terminal

        self._llm = llm
        self._rule = rule
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._opening)
        self._turns = 0
        self._console = console
        self._live = at_terminal(console)
        self._interactive = interactive
        self._read = _typed() if self._interactive else input

    def run(self) -> None:
        """Take turns until the input ends, or the user says so."""
        if self._interactive:
            self._say("/help lists the commands, Ctrl-D ends.")
        was_interrupted = False
        while True:
            try:
                if not self._take(self._read().strip()):
                    return
                was_interrupted = False
            except EOFError:
                return
            except KeyboardInterrupt:  # not while an answer was being given, which stops that answer
                if not self._interactive:
                    raise
                if was_interrupted:
                    return
                was_interrupted = True
                self._say("Ctrl-C again ends the conversation.")

    def _take(self, text: str) -> bool:
        """Obey a command, or answer a question; False ends the conversation."""
        if text.startswith("/") and len(text.split()) == 1:
            return self._command(text)
        if text:
            self._turn(text)
        return True

    def _command(self, line: str) -> bool:
        """Obey a command; False ends the conversation."""
        try:
            choose("command", line, tuple(_COMMANDS))
        except CommandError as error:
            report(error.message)
        if line == "/help":
            for name, effect in _COMMANDS.items():
                self._say(f"{name}  {effect}")
        elif line == "/reset":
            self._messages = list(self._opening)
            if self._interactive:
                self._say("The conversation begins anew.")
        return line != "/exit"

    def _turn(self, question: str) -> None:
        """Answer one question; where that fails, the conversation is as it was before."""
        messages = [*self._messages, {"role": "user", "content": question}]
        try:
            answer = self._answer(messages)
        except CommandError as error:
            report(f"{error.message} (/reset begins anew)")
        except KeyboardInterrupt:
            self._say("Stopped; this turn is forgotten.")
        else:
            self._turns += 1
            if answer.strip():
                self._messages = [*messages, {"role": "assistant", "content": answer}]
            elif len(messages) > len(self._opening) + 1:
                note("This turn is forgotten. Not every model can use earlier turns; /reset begins anew.")

    def _answer(self, messages: list[dict[str, str]]) -> str:
        from dmax.cli._common.live import answer_text, decode_in_view, print_answer
        from dmax.cli._common.prompts import encode_in_room
        from dmax.cli._common.session import decode

        token_ids, params = encode_in_room(self._llm, messages, self._rule)
        params = replace(params, seed=params.seed + self._turns)
        if self._live:
            output = decode_in_view(self._console, self._llm, token_ids, params)
            self._console.print()
        else:
            [output] = decode(self._llm, [token_ids], [params])
            print_answer(output)
        return answer_text(output)

    def _say(self, sentence: str) -> None:
        self._console.print(Text(sentence, style="dim"))


def _typed() -> Callable[[], str]:
    """Return what reads a question at the terminal; lines that are pasted together are one."""
    # readline is libedit in many Pythons, where every line of a paste is a question of its own.
    from prompt_toolkit import PromptSession

    from dmax.cli._common.keys import mark_pastes

    session: PromptSession[str] = PromptSession([("bold ansicyan", "› ")], prompt_continuation="  ")

    def read() -> str:
        try:
            return session.prompt()
        except KeyboardInterrupt:
            if not session.default_buffer.text:
                raise
            return ""  # as in a shell, what was typed is dropped, and no more
        finally:
            mark_pastes()

    return read
