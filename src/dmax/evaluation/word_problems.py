"""Accuracy and cost of a decoder on fresh word problems from :mod:`dmax.problems`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dmax.engine import LLM, GenerationOutput, GenerationParams
from dmax.evaluation.grading import same_number
from dmax.evaluation.tasks.numeric import GsmSymbolic
from dmax.models.llada2 import LLaDA2
from dmax.models.tokenizer import Tokenizer
from dmax.problems import Split, problem


@dataclass(frozen=True)
class Score:
    """What a decoder did on a set of problems."""

    problems: int
    accuracy: float
    """Share of problems whose final number is right."""
    tpf: float
    """Mean over problems of tokens per forward, EOS not counted, prefill counted (the paper's convention)."""
    tpf_pooled: float
    """All tokens over all forwards."""
    tokens: int
    """Answer tokens over all problems, EOS not counted."""
    nfe: int
    """Forwards over all problems."""


def answer(llm: LLM, rows: Sequence[dict[str, str]], params: GenerationParams) -> list[GenerationOutput]:
    """Answers to problems as :func:`dmax.problems.problem` gives them, in their order."""
    return llm.generate([LLM.chat_prompt(row["question"]) for row in rows], params)


def grade(rows: Sequence[dict[str, str]], outputs: Sequence[GenerationOutput]) -> list[bool]:
    """Which problems' final numbers are right."""
    return [same_number(output.text or "", row["answer"]) for row, output in zip(rows, outputs, strict=True)]


def score(rows: Sequence[dict[str, str]], outputs: Sequence[GenerationOutput]) -> Score:
    """Grade and count answers."""
    right = grade(rows, outputs)
    tokens, nfe = sum(o.num_tokens for o in outputs), sum(o.nfe for o in outputs)
    mean_tpf = sum(o.tpf for o in outputs) / len(outputs)
    return Score(len(outputs), sum(right) / len(right), mean_tpf, tokens / nfe, tokens, nfe)


def fresh_problems(split: Split, count: int, seed: int = 0) -> list[dict[str, str]]:
    """The first ``count`` problems of a split."""
    return [problem(split, index, seed) for index in range(count)]


def validator(tokenizer: Tokenizer) -> Callable[[LLaDA2, int, int, str], dict[str, float]]:
    """For a trainer: generated accuracy and TPF on validation problems, with the weights as they are."""

    def validate(model: LLaDA2, count: int, block_length: int, decoder: str) -> dict[str, float]:
        rows = fresh_problems("validation", count)
        longest = max(len(tokenizer.apply_chat_template(LLM.chat_prompt(row["question"]))) for row in rows)
        room = (model.config.max_position_embeddings - longest) // block_length * block_length
        gen_length = min(GsmSymbolic.gen_length, room)
        params = GenerationParams(decoder=decoder, block_length=block_length, gen_length=gen_length)
        result = score(rows, answer(LLM(model, tokenizer), rows, params))
        return {"validation_accuracy": result.accuracy, "validation_tpf": result.tpf}

    return validate
