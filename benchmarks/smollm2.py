"""SmolLM2-135M as an autoregressive model, by block diffusion and by DMax, beside llama.cpp on the same cores.

Asks GSM8K's test problems, the everyday development questions (`benchmarks/data`) and fresh problems of gsm-symbolic,
one at a time, greedily; the prompt is the question alone, in the model's chat template, as in training. The models are
those that `recipes/smollm2-135m/train.sh` leaves; llama.cpp (`pip install llama-cpp-python`) runs the source model
from GGUF files (`llama-quantize` makes one of another). Accuracy has a 95 % bootstrap interval; TPF is tokens before
EOS per forward, the prefill counted as one forward; tokens per second are over the whole time of all answers, prefill
included. Prints the table.

    python benchmarks/smollm2.py --runs runs --gguf Q8_0.gguf --gguf Q4_1.gguf [--problems N] [--gsm8k test.jsonl]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from answered import EVERYDAY_QUESTIONS, Problems
from run_record import compile_first, describe_model, describe_run, parse_arguments, report

from dmax import LLM, GenerationParams
from dmax.evaluation.grading import same_number
from dmax.evaluation.metrics import accuracy_interval
from dmax.evaluation.tasks import Row

GEN_LENGTH = 512
STAGES: dict[str, tuple[str, GenerationParams]] = {
    "autoregressive": (
        "smollm2-135m-1-autoregressive/model",
        GenerationParams(decoder="threshold", block_length=1, gen_length=GEN_LENGTH),
    ),
    "block diffusion, `threshold` 0.95": (
        "smollm2-135m-2-block-diffusion/model",
        GenerationParams(decoder="threshold", threshold=0.95, gen_length=GEN_LENGTH),
    ),
    "**DMax, `soft-parallel`**": (
        "smollm2-135m-3-oput/model",
        GenerationParams(decoder="soft-parallel", gen_length=GEN_LENGTH),
    ),
}


class Answer(NamedTuple):
    """An answer, and what it took."""

    text: str
    tokens: int
    """Before EOS."""
    forwards: int
    seconds: float


Ask = Callable[[str], Answer]


def ask_dmax(llm: LLM, params: GenerationParams) -> Ask:
    """Answer questions by dmax."""

    def ask(question: str) -> Answer:
        started = time.perf_counter()
        [output] = llm.generate(llm.chat_prompt(question), params)
        return Answer(output.text or "", output.num_tokens, output.nfe, time.perf_counter() - started)

    return ask


def ask_llama_cpp(path: Path, llm: LLM, threads: int | None) -> Ask:
    """Answer questions by llama.cpp, from the same prompt ids."""
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    tokenizer, ends = llm.tokenizer, llm.model.config.eos_token_ids
    assert tokenizer is not None

    def ask(question: str) -> Answer:
        ids = tokenizer.apply_chat_template(llm.chat_prompt(question))
        started, said = time.perf_counter(), []
        for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
            said.append(token)
            if token in ends or len(said) == GEN_LENGTH:
                break
        seconds = time.perf_counter() - started
        tokens = len(said) - (said[-1] in ends)
        return Answer(tokenizer.decode(said), tokens, len(said), seconds)

    return ask


def questions(problems: int, seed: int, gsm8k: Path | None) -> dict[str, list[Row]]:
    """Read or draw the problems of each set."""
    return {
        "gsm8k": Problems(problems, seed, "gsm8k", gsm8k).rows,
        "everyday": Problems(problems, seed, "everyday", EVERYDAY_QUESTIONS).rows,
        "gsm-symbolic": Problems(problems, seed).rows,
    }


def measure(name: str, ask: Ask, sets: Mapping[str, list[Row]], seed: int) -> dict[str, Any]:
    """Ask all questions; the first, which warms up, is asked twice."""
    ask(next(iter(sets.values()))[0]["question"])
    record: dict[str, Any] = {"name": name}
    for title, rows in sets.items():
        answers = [ask(row["question"]) for row in rows]
        right = [same_number(answer.text, row["answer"]) for row, answer in zip(rows, answers, strict=True)]
        tokens = sum(answer.tokens for answer in answers)
        record[title] = {
            "problems": len(rows), "accuracy": sum(right) / len(rows),
            "accuracy_95": accuracy_interval(right, seed),
            "tpf": sum(answer.tokens / answer.forwards for answer in answers) / len(rows),
            "tpf_pooled": tokens / sum(answer.forwards for answer in answers),
            "tokens_per_second": tokens / sum(answer.seconds for answer in answers),
            "mean_tokens": tokens / len(rows),
        }  # fmt: skip
        print(f"{name}, {title}: {record[title]}", flush=True)
    return record


def to_markdown(records: list[dict[str, Any]], sets: list[str]) -> str:
    """Write the table: of each set accuracy, TPF and tokens per second."""

    def cells(record: dict[str, Any]) -> Iterator[str]:
        yield record["name"]
        for point in (record[title] for title in sets):
            low, high = (100 * bound for bound in point["accuracy_95"])
            yield f"{100 * point['accuracy']:.1f} % [{low:.1f}, {high:.1f}]"
            yield f"{point['tpf']:.2f}"
            yield f"{point['tokens_per_second']:.1f}"

    head = ["", *(f"{title}: {what}" for title in sets for what in ("accuracy [95 %]", "TPF", "tokens/s"))]
    rows = [head, ["---"] * len(head), *(list(cells(record)) for record in records)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000, help="of each set, at most")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the chain's runs")
    parser.add_argument("--gguf", type=Path, action="append", default=[], help="a file for llama.cpp; may be repeated")
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's test problems, a local file; from the Hub if left out")
    arguments = parse_arguments(parser)
    if arguments.gguf and find_spec("llama_cpp") is None:
        parser.error("--gguf needs llama.cpp: pip install llama-cpp-python")
    sets = questions(arguments.problems, arguments.seed, arguments.gsm8k)
    records: list[dict[str, Any]] = []
    models = {}

    def add(name: str, ask: Ask) -> None:
        """Measure, and keep what there is: a run takes hours."""
        records.append(measure(name, ask, sets, arguments.seed))
        if arguments.json is not None:
            arguments.json.write_text(json.dumps({"rows": records}, indent=2), encoding="utf-8")

    for name, (folder, params) in STAGES.items():
        llm = LLM(str(arguments.runs / folder))
        compile_first(llm.model)
        models[name] = describe_model(Path(folder).parts[0], llm.model)
        add(name, ask_dmax(llm, params))
    for path in arguments.gguf:
        add(f"llama.cpp, {path.stem}", ask_llama_cpp(path, llm, arguments.threads))
    print(to_markdown(records, list(sets)))
    result = {"rows": records, "models": models, **describe_run(), "seed": arguments.seed, "gen_length": GEN_LENGTH}
    report(result, arguments.json)


if __name__ == "__main__":
    main()
