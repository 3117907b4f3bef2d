"""``dmax generate``: one prompt, or a file of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from dmax.cli._common.decoding import DecodingOptions
from dmax.cli._common.errors import CommandError
from dmax.cli._common.options import InputOptions, ModelOptions, OutputOptions

if TYPE_CHECKING:
    from dmax.cli._common.session import Rule


def generate(source: InputOptions, sink: OutputOptions, model: ModelOptions, decoding: DecodingOptions) -> None:
    """Answer a prompt, or every prompt of a file.

    In a terminal the answer is shown while it is refined; elsewhere it is printed as plain text.
    """
    _check_combination(source, sink)
    from dmax.cli._common.session import decoding_rule

    rule = decoding_rule(decoding, trace=sink.trace is not None)
    if source.input is not None:
        from dmax.cli._common.batch import run_batch

        run_batch(source.input, rule, model, sink)
    else:
        _generate_one(source, rule, model, sink)


def _generate_one(source: InputOptions, rule: Rule, model: ModelOptions, sink: OutputOptions) -> None:
    from dmax.cli._common.files import check_writable, to_json, write_text
    from dmax.cli._common.live import decode_in_view, print_answer
    from dmax.cli._common.prompts import encode_in_room, single_prompt
    from dmax.cli._common.session import at_terminal, decode, load_llm

    if sink.trace is not None:
        check_writable(sink.trace)
    prompt = single_prompt(source)
    llm = load_llm(model, gen_length=rule.params.gen_length)
    token_ids, params = encode_in_room(llm, prompt, rule)
    console = Console()
    if at_terminal(console) and not sink.json:
        output = decode_in_view(console, llm, token_ids, params)
    else:
        [output] = decode(llm, [token_ids], [params])
        record = {"model": model.model, **output.to_dict()}
        record.pop("trace", None)
        if sink.json:
            print(to_json(record), flush=True)
        else:
            print_answer(output)
    if sink.trace is not None:
        record = {"model": model.model, **output.to_dict(), "prompt_ids": token_ids}
        write_text(sink.trace, to_json(record) + "\n")


def _check_combination(source: InputOptions, sink: OutputOptions) -> None:
    given = {"PROMPT": source.prompt, "--prompt-ids": source.prompt_ids, "--input": source.input}
    prompts = [name for name, value in given.items() if value is not None]
    if len(prompts) > 1:
        raise CommandError(f"{' and '.join(prompts)} each give a prompt; give one of them.")
    if source.input is None:
        for name, value in (("--output", sink.output), ("--batch-size", sink.batch_size)):
            if value is not None:
                raise CommandError(f"{name} is for a file of prompts; add --input FILE.jsonl or leave it out.")
    if sink.batch_size is not None and sink.batch_size < 1:
        raise CommandError(f"--batch-size is {sink.batch_size}; it must be at least 1.")
    paths = {"--input": source.input, "--output": sink.output, "--trace": sink.trace}
    taken: dict[object, str] = {}
    for name, path in paths.items():
        if path is not None and taken.setdefault(path.resolve(), name) != name:
            raise CommandError(f"{taken[path.resolve()]} and {name} are the same file, {path}; give two.")
