"""``dmax chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from dmax.cli._common.decoding import DecodingOptions
from dmax.cli._common.errors import CommandError, choose, report
from dmax.cli._common.options import ModelOptions

if TYPE_CHECKING:
    from dmax.cli._common.session import Rule
    from dmax.engine import LLM

_COMMANDS = {"/reset": "forgets the conversation", "/exit": "ends it, as Ctrl-D does", "/help": "shows this"}
# The marks around the colours tell readline that they take no room on the line.
_PROMPT = "\001\033[1;36m\002› \001\033[0m\002"


def chat(
    model: ModelOptions,
    decoding: DecodingOptions,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message to begin with.")] = None,
) -> None:
    """Talk with a model over several turns.

    /reset begins anew, /exit or Ctrl-D ends; Ctrl-C stops the answer being given.
    """
    from dmax.cli._common.session import decoding_rule, load_llm

    rule = decoding_rule(decoding)
    llm = load_llm(model)
    if llm.tokenizer is None or llm.tokenizer.chat_template is None:
        lacks = "tokenizer" if llm.tokenizer is None else "chat template"
        raise CommandError(f"{model.model} has no {lacks}, so it cannot chat; use dmax generate.")
    _Conversation(llm, rule, system).run()


class _Conversation:
    """The turns so far, and the loop that adds to them."""

    def __init__(self, llm: LLM, rule: Rule, system: str | None) -> None:
        from dmax.cli._common.session import at_terminal

        self._llm = llm
        self._rule = rule
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._opening)
        self._turns = 0
        self._console = Console()
        self._live = at_terminal(self._console)
        self._interactive = self._live and sys.stdin.isatty()

    def run(self) -> None:
        """Take turns until the input ends."""
        if self._interactive:
            import readline  # noqa: F401  gives input() its line editing and history

            self._console.print(Text("/help lists the commands, Ctrl-D ends.", style="dim"))
        while (line := self._read()) is not None:
            if line.startswith("/") and " " not in line:
                if not self._command(line):
                    return
            elif line:
                self._turn(line)

    def _read(self) -> str | None:
        """The next line of the user's; None at the end."""
        try:
            return input(_PROMPT if self._interactive else "").strip()
        except EOFError:
            if self._interactive:
                print()
            return None
        except KeyboardInterrupt:
            print()
            return None

    def _command(self, line: str) -> bool:
        """Obey a command; False ends the conversation."""
        try:
            choose("command", line, tuple(_COMMANDS))
        except CommandError as error:
            report(error.message)
        if line == "/help":
            for name, effect in _COMMANDS.items():
                self._console.print(Text(f"{name}  {effect}", style="dim"))
        elif line == "/reset":
            self._messages = list(self._opening)
            if self._interactive:
                self._console.print(Text("The conversation begins anew.", style="dim"))
        return line != "/exit"

    def _turn(self, line: str) -> None:
        """Answer one line; where that fails, the conversation is as it was before."""
        messages = [*self._messages, {"role": "user", "content": line}]
        try:
            answer = self._answer(messages)
        except CommandError as error:
            report(f"{error.message} (/reset begins anew)")
        except KeyboardInterrupt:
            self._console.print(Text("Stopped; this turn is forgotten.", style="dim"))
        else:
            self._messages = [*messages, {"role": "assistant", "content": answer}]
            self._turns += 1

    def _answer(self, messages: list[dict[str, str]]) -> str:
        from dmax.cli._common.live import answer_text, decode_in_view
        from dmax.cli._common.prompts import encode
        from dmax.cli._common.session import decode

        params = replace(self._rule.params, seed=self._rule.params.seed + self._turns)
        token_ids = encode(self._llm, messages, params.gen_length)
        if self._live:
            output = decode_in_view(self._console, self._llm, token_ids, params)
            self._console.print()
        else:
            [output] = decode(self._llm, [token_ids], [params])
            print(answer_text(output), flush=True)
        return answer_text(output)
