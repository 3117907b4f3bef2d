"""Accuracy and cost of a decoder on fresh word problems from :mod:`dmax.problems`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmax.engine import LLM, GenerationOutput, GenerationParams
from dmax.evaluation.grading import same_number
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
    """Answer problems as :func:`dmax.problems.problem` gives them, in their order."""
    return llm.generate([LLM.chat_prompt(row["question"]) for row in rows], params)


def grade(rows: Sequence[dict[str, str]], outputs: Sequence[GenerationOutput]) -> list[bool]:
    """Tell which problems' final numbers are right."""
    return [same_number(output.text or "", row["answer"]) for row, output in zip(rows, outputs, strict=True)]


def score(rows: Sequence[dict[str, str]], outputs: Sequence[GenerationOutput]) -> Score:
    """Grade and count answers."""
    right = grade(rows, outputs)
    tokens, nfe = sum(o.num_tokens for o in outputs), sum(o.nfe for o in outputs)
    mean_tpf = sum(o.tpf for o in outputs) / len(outputs)
    return Score(len(outputs), sum(right) / len(right), mean_tpf, tokens / nfe, tokens, nfe)


def fresh_problems(split: Split, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Draw the first ``count`` problems of a split."""
    return [problem(split, index, seed) for index in range(count)]
