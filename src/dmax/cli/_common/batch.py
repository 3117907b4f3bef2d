"""A file of prompts answered into a file of answers, which can be interrupted and taken up again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dmax.cli._common.errors import USAGE_ERROR, CommandError, note, report, user_errors
from dmax.cli._common.files import LineFile, to_json
from dmax.cli._common.options import ModelOptions, OutputOptions
from dmax.cli._common.prompts import Prompt, encode, prompt_of_line
from dmax.cli._common.session import Rule, decode, load_llm
from dmax.engine import GenerationOutput, GenerationParams, NumericalError

if TYPE_CHECKING:
    from dmax.engine import LLM

DEFAULT_BATCH_SIZE = 8


@dataclass(frozen=True)
class Item:
    """One prompt of a batch."""

    line: int
    """Its line in the input, from 1."""
    prompt: Prompt

    def params(self, shared: GenerationParams) -> GenerationParams:
        """Return the batch's params with this line's seed, which is the same however the batch is cut or resumed."""
        return replace(shared, seed=shared.seed + self.line - 1)


class Batch:
    """The prompts of one input file and what became of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.items: list[Item] = []
        self.refused: list[int] = []
        with user_errors():
            data = path.read_bytes()
        for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
            if line.strip():
                try:
                    self.items.append(Item(number, prompt_of_line(line)))
                except CommandError as error:
                    self.refuse(number, error)
        if not self.items and not self.refused:
            raise CommandError(f"{path} is empty; it needs a JSON object with a prompt on each line.")

    def refuse(self, line: int, error: CommandError) -> None:
        """Report a line that cannot be answered; the others still are."""
        report(f"{self._path} line {line}: {error.message}")
        self.refused.append(line)

    def encoded(self, llm: LLM, items: Sequence[Item], gen_length: int) -> Iterator[tuple[Item, list[int]]]:
        """Encode every prompt that the model can take."""
        for item in items:
            try:
                yield item, encode(llm, item.prompt, gen_length)
            except CommandError as error:
                self.refuse(item.line, error)


def run_batch(source: Path, rule: Rule, model: ModelOptions, sink: OutputOptions) -> None:
    """Answer the prompts of ``source`` that ``sink.output`` does not answer yet.

    Raises:
        CommandError: nothing could be started.
        typer.Exit: with code 2 where some lines could not be answered, 130 where the user stopped.
    """
    answers = None if sink.output is None else LineFile(sink.output, ("model", "decoder", "params"))
    traces = None if sink.trace is None else LineFile(sink.trace, ("trace",))
    batch = Batch(source)
    done = set() if answers is None else _resumed(answers, traces, batch, rule, model, source)
    todo = [item for item in batch.items if item.line not in done]
    if done:
        note(f"{len(done)} of {len(batch.items)} answers are in {sink.output} already.")
    if todo:
        size = sink.batch_size or DEFAULT_BATCH_SIZE
        llm = load_llm(model, sequences=min(size, len(todo)), gen_length=rule.params.gen_length)
        ready = list(batch.encoded(llm, todo, rule.params.gen_length))
        with user_errors(), ExitStack() as stack:
            for file in (answers, traces):
                if file is not None and ready:
                    stack.enter_context(file)
            _Run(llm, rule, model.model, answers, traces, batch).run(ready, size)
    if batch.refused:
        lines = ", ".join(map(str, sorted(batch.refused)))
        note(f"Not answered: line{'s' if len(batch.refused) > 1 else ''} {lines}.")
        raise typer.Exit(USAGE_ERROR)


def _resumed(
    answers: LineFile, traces: LineFile | None, batch: Batch, rule: Rule, model: ModelOptions, source: Path
) -> set[int]:
    """Find input lines that are answered already, once it is sure that those answers belong to this run."""
    done = answers.records.keys()
    strangers = done - {item.line for item in batch.items}
    if strangers:
        raise CommandError(
            f"the output answers line {min(strangers)}, where {source} has no prompt; choose another --output."
        )
    with user_errors():
        effective = rule.on(model.model)
    for line, record in answers.records.items():
        difference = _difference(record, line, effective, model)
        if difference:
            raise CommandError(f"the output was made with {difference}; choose another --output, or the same settings.")
    if traces is not None:
        lacking = done - traces.records.keys()
        if lacking:
            raise CommandError(
                f"the trace lacks line {min(lacking)}, which the output answers already; choose another --output."
            )
        traces.drop(traces.records.keys() - done)
    return set(done)


def _difference(record: dict[str, Any], line: int, rule: Rule, model: ModelOptions) -> str | None:
    """Find the first setting in which an answer was made otherwise than this run would make it."""
    params = Item(line, "").params(rule.params)
    settings: dict[str, tuple[Any, Any]] = {
        "model": (record["model"], model.model),
        "decoder": (record["decoder"], params.decoder),
    }
    for name, was in record["params"].items():
        now = getattr(params, name, None)
        now = getattr(rule.decoder, name, was) if now is None else now
        settings[name] = (was, list(now) if isinstance(now, tuple) else now)
    return next((f"{name} {was}, not {now}" for name, (was, now) in settings.items() if was != now), None)


class _Run:
    """Decodes chunk by chunk and writes each answer as soon as its chunk is done."""

    def __init__(
        self,
        llm: LLM,
        rule: Rule,
        model_name: str,
        answers: LineFile | None,
        traces: LineFile | None,
        batch: Batch,
    ) -> None:
        self._llm = llm
        self._params = rule.params
        self._model_name = model_name
        self._answers = answers
        self._traces = traces
        self._batch = batch
        self._outputs: list[GenerationOutput] = []

    def run(self, ready: list[tuple[Item, list[int]]], batch_size: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[tpf]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        try:
            with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
                task = progress.add_task("Answering", total=len(ready), tpf="")
                for start in range(0, len(ready), batch_size):
                    chunk = ready[start : start + batch_size]
                    self._answer(chunk)
                    progress.update(task, advance=len(chunk), tpf=f"{self._mean_tpf():.2f} TPF")
        except KeyboardInterrupt:
            note(f"Stopped after {len(self._outputs)} answers; the same command goes on from there.")
            raise typer.Exit(130) from None
        if self._outputs:
            note(self._summary())

    def _answer(self, chunk: list[tuple[Item, list[int]]]) -> None:
        params = [item.params(self._params) for item, _ in chunk]
        try:
            outputs = decode(self._llm, [token_ids for _, token_ids in chunk], params)
        except CommandError as error:
            if not isinstance(error.__cause__, NumericalError):
                raise
            if len(chunk) == 1:
                self._batch.refuse(chunk[0][0].line, error)
            for one in chunk if len(chunk) > 1 else ():
                self._answer([one])
            return
        for (item, token_ids), output in zip(chunk, outputs, strict=True):
            record = {"model": self._model_name, **output.to_dict()}
            trace = record.pop("trace", None)
            # The trace goes first: then an answer that is there always has its trace, wherever the run broke off.
            if self._traces is not None:
                self._traces.append(item.line, {**record, "prompt_ids": token_ids, "trace": trace})
            if self._answers is not None:
                self._answers.append(item.line, record)
            else:
                print(to_json({"line": item.line, **record}), flush=True)
            self._outputs.append(output)

    def _mean_tpf(self) -> float:
        return sum(output.tpf for output in self._outputs) / len(self._outputs)

    def _summary(self) -> str:
        tokens, nfe = sum(o.num_tokens for o in self._outputs), sum(o.nfe for o in self._outputs)
        cost = f"{self._mean_tpf():.2f} TPF (mean of answers), {tokens / nfe:.2f} TPF (all tokens by all NFE)"
        return f"{len(self._outputs)} answers · {tokens} tokens · {nfe} NFE · {cost}"
