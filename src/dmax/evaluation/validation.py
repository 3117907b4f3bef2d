"""Generated answers of a model in training, graded: to fresh word problems, or to rows of the user's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dmax.engine import LLM, GenerationParams
from dmax.evaluation.grading import boxed, final_number, same_number
from dmax.evaluation.run_folder import write_whole
from dmax.evaluation.tasks.numeric import GsmSymbolic
from dmax.evaluation.word_problems import fresh_problems
from dmax.models.tokenizer import Tokenizer
from dmax.models.transformer import BlockDiffusionLM
from dmax.training.setup import HeldOut
from dmax.training.trainer import Validate


@dataclass(frozen=True)
class _Question:
    """A prompt and the answer that is expected."""

    prompt_ids: list[int]
    reference: str
    gen_length: int


def validator(tokenizer: Tokenizer, own: HeldOut | None, answers: Path) -> Validate:
    """Return what a trainer calls for generated accuracy and TPF, with the weights as they are.

    Args:
        tokenizer: of the model.
        own: rows to answer; None takes word problems.
        answers: file for prompts, references, answers and whether they are right, of the last call.
    """

    def validate(model: BlockDiffusionLM, count: int, block_length: int, decoder: str) -> dict[str, float]:
        asked = _word_problems(tokenizer, count) if own is None else _rows_of(own, tokenizer, count, block_length)
        limit = model.config.max_position_embeddings
        params = [
            GenerationParams(
                decoder=decoder,
                block_length=block_length,
                gen_length=max(1, min(one.gen_length, limit - len(one.prompt_ids))),
            )
            for one in asked
        ]
        outputs = LLM(model, tokenizer).generate([one.prompt_ids for one in asked], params)
        rows = [
            {
                "prompt": tokenizer.decode(one.prompt_ids),
                "reference": one.reference,
                "answer": output.text or "",
                "right": same_answer(output.text or "", one.reference),
            }
            for one, output in zip(asked, outputs, strict=True)
        ]
        write_whole(answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return {
            "validation_accuracy": sum(bool(row["right"]) for row in rows) / len(rows),
            "validation_tpf": sum(output.tpf for output in outputs) / len(rows),
        }

    return validate


def same_answer(text: str, reference: str) -> bool:
    """Return whether an answer is right: by its final number where the reference marks one (``####``, a box), else by
    its words."""
    marked = "####" in reference or boxed(reference)
    if marked and final_number(reference) is not None:
        return same_number(text, reference)
    return text.split() == reference.split()


def _word_problems(tokenizer: Tokenizer, count: int) -> list[_Question]:
    return [
        _Question(
            tokenizer.apply_chat_template(LLM.chat_prompt(row["question"])), row["answer"], GsmSymbolic.gen_length
        )
        for row in fresh_problems("validation", count)
    ]


def _rows_of(own: HeldOut, tokenizer: Tokenizer, count: int, block_length: int) -> list[_Question]:
    """List rows with room for an answer a block longer than theirs."""
    asked = []
    for index in range(min(count, len(own))):
        example = own.example(index)
        prompt = example.supervised.index(True)
        expected = example.token_ids[prompt:]
        asked.append(
            _Question(list(example.token_ids[:prompt]), tokenizer.decode(expected), len(expected) + block_length)
        )
    return asked
