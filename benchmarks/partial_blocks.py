"""Fewer positions a pass: freeze the settled beginning of a block, and compute only what is behind it.

Under `soft-parallel` every pass computes all positions of the block, although most of those at its left have had the
same token for several passes. Here the leading positions whose tokens have stayed, with a confidence of at least
`--confidence`, for some number of passes (the *patience*) are frozen until the block converges: their keys and values
stay as they are in the cache, their logits as they were last. The block is stored from its final tokens as ever.

For every patience: the share of answers that differ from those of full passes, accuracy, forwards and computed
positions a token, and tokens per second at batch 1. Full passes are checked against the engine's own answers.

    python benchmarks/partial_blocks.py [--model M] [--problems N] [--seed N] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from run_record import compile_first, describe_model, describe_run, parse_arguments, report
from torch import Tensor

from dmax import LLM, BlockDiffusionLM, GenerationParams
from dmax.decoding import BlockState, Decoder, input_embeddings
from dmax.engine.backends.cpu import CpuBackend
from dmax.engine.requests import RequestReader
from dmax.engine.span import Span
from dmax.evaluation.grading import same_number
from dmax.evaluation.tasks.numeric import GsmSymbolic
from dmax.evaluation.word_problems import fresh_problems

LENGTH = 32
PATIENCES = (None, 1, 2, 3, 4, 6)
"""Passes that a token has to stay before it is frozen; None freezes nothing."""


TURNS = 3
"""In which every patience answers all problems, so that all of them see the same machine."""


@dataclass(frozen=True)
class Answer:
    """One answer and what it took."""

    token_ids: list[int]
    nfe: int
    positions: int


class PartialDecoding:
    """Decodes one prompt at a time.

    Args:
        model: in eval mode.
        decoder: the rule; it sees whole blocks.
        patience: passes that a token has to stay before its position is frozen; None freezes nothing.
        confidence: that it needs in each of them.
        step: positions are frozen so many at a time.
    """

    def __init__(
        self, model: BlockDiffusionLM, decoder: Decoder, patience: int | None, confidence: float, step: int
    ) -> None:
        self.model, self.decoder = model, decoder
        self.patience, self.confidence, self.step = patience, confidence, step
        pages = model.config.max_position_embeddings // LENGTH
        self.pages = list(range(pages))
        self.backend = CpuBackend(model)
        self.backend.open(pages, LENGTH, 1)
        self.sequence = RequestReader(model.config, None).read("0", [], GenerationParams(), 0.0)

    @torch.inference_mode()
    def answer(self, prompt: list[int], gen_length: int) -> Answer:
        """Decode one prompt to its EOS, or to ``gen_length`` tokens."""
        tokens, stored, nfe, positions = list(prompt), 0, 0, 0
        begin = len(prompt) // LENGTH * LENGTH
        if begin:
            self._forward(self.model.embed(torch.tensor(tokens[:begin]))[None], 0, begin)
            stored, nfe, positions = begin, 1, begin
        eos = self.model.config.eos_token_id
        while len(tokens) < len(prompt) + gen_length and eos not in tokens[len(prompt) :]:
            final, passes, computed = self._block(tokens, stored)
            stored, tokens = len(tokens) // LENGTH * LENGTH, final
            nfe, positions = nfe + passes, positions + computed
        answer = tokens[len(prompt) : len(prompt) + gen_length]
        return Answer(answer[: answer.index(eos)] if eos in answer else answer, nfe, positions)

    def _block(self, tokens: list[int], stored: int) -> tuple[list[int], int, int]:
        """Decode the next block: all tokens with it, passes and computed positions."""
        begin = len(tokens) // LENGTH * LENGTH
        given = len(tokens) - begin
        state = BlockState.start(
            torch.tensor([tokens[begin:] + [0] * (LENGTH - given)]),
            torch.arange(LENGTH)[None] >= given,
            self.model.config.mask_token_id,
        )
        frozen = passes = computed = 0
        logits_1LV: Tensor | None = None
        steady_L = torch.zeros(LENGTH, dtype=torch.int64)
        while True:
            embeds_1ND = input_embeddings(state, self.model.model.word_embeddings.weight)[:, frozen:]
            start = begin + frozen
            if stored < begin:  # the block before is stored by the first pass of this one
                before_1ND = self.model.embed(torch.tensor(tokens[stored:begin]))[None]
                embeds_1ND, start, stored = torch.cat([before_1ND, embeds_1ND], 1), stored, begin
            hidden_1ND = self._forward(embeds_1ND, start, begin + LENGTH)
            passes, computed = passes + 1, computed + embeds_1ND.shape[1]
            fresh_1NV = self.backend.modules.head(hidden_1ND[:, frozen - LENGTH :])
            logits_1LV = fresh_1NV if logits_1LV is None else torch.cat([logits_1LV[:, :frozen], fresh_1NV], 1)
            result = self.decoder.step(logits_1LV, state)
            if result.converged.item():
                return tokens[:begin] + result.state.tokens[0].tolist(), passes, computed
            stays_L = (result.state.tokens == state.tokens)[0] & (result.confidence[0] >= self.confidence)
            stays_L = (stays_L & ~result.state.masked[0]) | ~state.active[0]
            steady_L = torch.where(stays_L, steady_L + 1, 0)
            state = result.state
            if self.patience is not None:
                settled = int((steady_L >= self.patience).long().cumprod(0).sum())
                frozen = min(max(frozen, settled // self.step * self.step), LENGTH - self.step)

    def _forward(self, embeds_1ND: Tensor, start: int, end: int) -> Tensor:
        span = Span(self.sequence, tuple(self.pages[: end // LENGTH]), start, start, end, LENGTH)
        return self.backend.over([span])(embeds_1ND[0])[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--step", type=int, default=4, help="positions that are frozen at a time")
    parser.add_argument("--plain", action="store_true", help="do not compile first what `dmax compile` does")
    arguments = parse_arguments(parser)
    llm = LLM(arguments.model)
    if not arguments.plain:
        compile_first(llm.model)
    rows = fresh_problems("test", arguments.problems, arguments.seed)
    prompts = [llm.tokenizer.apply_chat_template(LLM.chat_prompt(row["question"])) for row in rows]
    params = GenerationParams(gen_length=GsmSymbolic.gen_length)
    eos = llm.model.config.eos_token_id
    engine = [[token for token in output.token_ids if token != eos] for output in llm.generate(prompts, params)]
    decoder = params.with_defaults(llm.model.config).build_decoder()
    decodings = {
        patience: PartialDecoding(llm.model, decoder, patience, arguments.confidence, arguments.step)
        for patience in PATIENCES
    }
    answers: dict[int | None, list[Answer]] = {}
    seconds: dict[int | None, list[float]] = {patience: [] for patience in PATIENCES}
    for _ in range(TURNS):
        for patience, decoding in decodings.items():
            decoding.answer(prompts[0], params.gen_length)  # warm-up
            started = time.perf_counter()
            answers[patience] = [decoding.answer(prompt, params.gen_length) for prompt in prompts]
            seconds[patience].append(time.perf_counter() - started)
    whole = [answer.token_ids for answer in answers[None]]
    records: list[dict[str, Any]] = []
    for patience, found in answers.items():
        ids = [answer.token_ids for answer in found]
        count = sum(map(len, ids))
        right = [same_number(llm.tokenizer.decode(i), row["answer"]) for i, row in zip(ids, rows, strict=True)]
        records.append({
            "patience": patience,
            "changed_answers": sum(a != b for a, b in zip(ids, whole, strict=True)) / len(ids),
            "differ_from_engine": sum(a != b for a, b in zip(ids, engine, strict=True)) / len(ids),
            "accuracy": sum(right) / len(right),
            "tokens_per_forward": count / sum(answer.nfe for answer in found),
            "positions_per_token": sum(answer.positions for answer in found) / count,
            "tokens_per_second": count / statistics.median(seconds[patience]),
            "tokens_per_second_turns": [count / taken for taken in seconds[patience]],
        })  # fmt: skip
        print(records[-1])
    result = {
        "settings": records, "confidence": arguments.confidence, "step": arguments.step, "problems": len(rows),
        "seed": arguments.seed, "split": "test", **describe_run(), "model": describe_model(arguments.model, llm.model),
    }  # fmt: skip
    report(result, arguments.json)


if __name__ == "__main__":
    main()
