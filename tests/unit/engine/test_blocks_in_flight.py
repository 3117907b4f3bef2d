"""Several self-revising blocks in flight, pass by pass, from hand-made predictions (algorithm.md#blocks-in-flight).

A script has one line a pass and one string a block in flight, such as ``"A9 B9 C2 $5"``: the most probable token of
every position (``$`` is EOS) and its probability, 9 for 0.95, 5 for 0.55 and 2 for 0.25.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from dmax.decoding import BlockState, StepResult
from dmax.decoding.soft_parallel import SoftParallelDecoder
from dmax.engine.config import EngineConfig
from dmax.engine.engine import LLMEngine
from dmax.engine.outputs import RequestUpdate
from dmax.engine.params import GenerationParams
from dmax.engine.sequence import Sequence
from dmax.engine.stopping import StopRule
from dmax.models import BlockDiffusionLM

EOS, LENGTH = 2, 4


@dataclass
class Scripted:
    """Soft Parallel Decoding on logits that a script gives instead of the model."""

    script: list[list[str]]
    name: ClassVar[str] = "scripted"
    multi_block: ClassVar[bool] = True
    temperature: ClassVar[float] = 0.0
    seen: list[int] = field(default_factory=list)
    """Blocks in flight, a pass."""

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        blocks = self.script[len(self.seen)]
        assert len(blocks) == logits.shape[0], f"pass {len(self.seen) + 1} carries {logits.shape[0]} blocks"
        self.seen.append(len(blocks))
        return SoftParallelDecoder().step(torch.stack([logits_of(b, logits.shape[-1]) for b in blocks]), state)


def token(letter: str) -> int:
    return EOS if letter == "$" else ord(letter) - ord("A") + 20


def ids(letters: str) -> list[int]:
    return [token(letter) for letter in letters]


def logits_of(block: str, vocab_size: int) -> Tensor:
    rows = []
    for letter, digit in block.split():
        probability = int(digit) / 10 + 0.05
        row = torch.full((vocab_size,), (1 - probability) / (vocab_size - 1))
        row[token(letter)] = probability
        rows.append(row.log())
    return torch.stack(rows)


def run(
    model: BlockDiffusionLM, script: list[list[str]], gen_length: int, **rule: Any
) -> tuple[Sequence, list[RequestUpdate]]:
    """Decode an answer without a prompt to its end, which must be the end of the script."""
    decoder = Scripted(script)
    settings = {"buffer_size": 2, "add_threshold": 0.5, **rule}
    params = GenerationParams(gen_length=gen_length, block_length=LENGTH, trace=True, **settings)
    row = Sequence("0", [], params, StopRule((EOS,), gen_length), decoder)
    engine = LLMEngine(model, config=EngineConfig(pages=16, page_length=LENGTH, max_batch_size=4, prefill_tokens=16))
    engine.add(row)
    updates: list[RequestUpdate] = []
    while engine.has_requests():
        updates += engine.step()
    assert row.failure is None, row.failure
    assert row.passes == len(script)
    return row, updates


def answer(row: Sequence) -> list[int]:
    assert row.ending is not None
    return row.ending.token_ids


def test_a_block_whose_tokens_change_holds_its_successor_back(tiny_model: BlockDiffusionLM) -> None:
    script = [
        ["A9 B2 C2 D2"],
        ["X9 B9 C2 D2"],  # half decoded, but the one token it had has changed
        ["X9 B9 C2 D2"],  # calm
        ["X9 B9 C9 D9", "$9 $9 $9 $9"],
    ]
    row, _ = run(tiny_model, script, 16)
    assert answer(row) == ids("XBCD$")


def test_an_unsure_follower_waits_until_its_predecessor_is_nearly_done(tiny_model: BlockDiffusionLM) -> None:
    script = [
        ["A9 B9 C2 D2"],
        ["A9 B9 C9 D2", "E2 F2 G2 H2"],
        ["A9 B9 C9 D5", "E2 F2 G2 H2"],  # before this pass, three of four were decoded
        ["A9 B9 C9 D9", "E2 F2 G2 H2"],  # and before this one, four
        ["E9 F9 G9 H9"],
    ]
    row, _ = run(tiny_model, script, 8)
    assert [record.promoted for record in row.trace if record.block == 1] == [[], [], [0], [1, 2, 3]]


def test_a_predecessor_may_change_after_its_successor_has_started(tiny_model: BlockDiffusionLM) -> None:
    script = [
        ["A9 B9 C2 D2"],
        ["X9 B9 C9 D5", "E9 F2 G2 H2"],
        ["X9 B9 C9 D9", "E9 F9 G9 H9"],
    ]
    row, updates = run(tiny_model, script, 8)
    assert [update.final_ids for update in updates] == [[], [], ids("XBCDEFGH")], "nothing is final before it settles"
    assert row.revisions == 1
    promoted = [record.promoted for record in row.trace if record.block == 1]
    assert promoted == [[0], [1, 2, 3]], "the successor goes on from the token it had"


@pytest.mark.parametrize("buffer_size", [2, 3])
def test_a_block_that_settles_before_its_predecessor_waits_and_may_still_change(
    tiny_model: BlockDiffusionLM, buffer_size: int
) -> None:
    third = [["M2 N2 O2 P2"]] * 3 if buffer_size == 3 else [[]] * 3
    script = [
        ["A9 B9 C2 D2"],
        ["A9 B9 C9 D5", "E9 F9 G9 H9"],  # the second block has converged
        ["A9 B9 C9 Y5", "E9 F9 G9 K9", *third[0]],
        ["A9 B9 C9 Y9", "E9 F9 G9 K9", *third[1]],
        ["$9 $9 $9 $9"],
    ]
    row, updates = run(tiny_model, script, 12, buffer_size=buffer_size)
    assert [update.final_ids for update in updates if update.final_ids] == [ids("ABCYEFGK"), ids("$")]
    finals = [(record.pass_number, record.block) for record in row.trace if record.final]
    assert finals == [(4, 0), (4, 1), (5, 2)]


def test_an_eos_in_an_earlier_block_drops_those_behind_it(tiny_model: BlockDiffusionLM) -> None:
    script = [
        ["A9 B9 C2 D2"],
        ["A9 B9 $9 D9", "E9 F9 G9 H9"],
    ]
    row, updates = run(tiny_model, script, 16)
    assert answer(row) == ids("AB$")
    assert [update.final_ids for update in updates] == [[], ids("AB$")]
    assert row.blocks == 1


def test_an_eos_in_a_later_block_holds_the_next_back_until_it_is_revised(tiny_model: BlockDiffusionLM) -> None:
    script = [
        ["A9 B9 C2 D2"],
        ["A9 B9 C9 D5", "E9 $9 G2 H2"],
        ["A9 B9 C9 Y5", "E9 $9 G2 H2"],  # there is room for a third block, but the answer may be over
        ["A9 B9 C9 Y9", "E9 F9 G9 H2"],
        ["E9 F9 G9 H9", "$9 $9 $9 $9"],
    ]
    row, _ = run(tiny_model, script, 16, buffer_size=3)
    assert answer(row) == ids("ABCYEFGH$")


def test_the_answer_may_end_inside_the_buffer(tiny_model: BlockDiffusionLM) -> None:
    script = [
        ["A9 B9 C2 D2"],
        ["A9 B9 C9 D5", "E9 F9 G9 H5"],  # nothing begins behind the sixth token's block
        ["A9 B9 C9 D9", "E9 F9 $9 H9"],
    ]
    row, _ = run(tiny_model, script, 6, buffer_size=3)
    assert row.ending is not None
    assert (row.ending.token_ids, row.ending.reason) == (ids("ABCDEF"), "length"), "an EOS behind the end is not its"
