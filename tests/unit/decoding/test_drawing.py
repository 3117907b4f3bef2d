"""Which tokens may be drawn: at most what the settings leave, at least the likeliest."""

from __future__ import annotations

import math

import pytest
import torch

from dmax import LLM, GenerationParams
from dmax.decoding import BlockState, get_decoder
from dmax.decoding.drawing import Nucleus
from dmax.decoding.registry import BUILT_IN

MASK = 1
PROBABILITIES = torch.tensor([0.4, 0.9, 0.3, 0.2, 0.1])  # of the others, without the mask's


def allowed(nucleus: Nucleus, temperature: float = 1.0, probabilities: torch.Tensor = PROBABILITIES) -> list[int]:
    noise = torch.zeros(1, len(probabilities))
    nucleus.shut_out(noise, probabilities.log()[None], temperature, MASK)
    return (noise[0] == 0).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("nucleus", "left"),
    [
        (Nucleus(top_k=2), [0, 2]),
        (Nucleus(top_k=99), [0, 1, 2, 3, 4]),
        (Nucleus(top_p=0.0), [0]),
        (Nucleus(top_p=0.4), [0]),
        (Nucleus(top_p=0.45), [0, 2]),
        (Nucleus(top_p=0.75), [0, 2, 3]),
        (Nucleus(min_p=0.45), [0, 2, 3]),
        (Nucleus(min_p=1.0), [0]),
        (Nucleus(top_k=3, min_p=0.6), [0, 2]),
    ],
)
def test_what_may_be_drawn(nucleus: Nucleus, left: list[int]) -> None:
    assert [token for token in allowed(nucleus) if token != MASK] == [token for token in left if token != MASK]


def test_probabilities_are_those_at_the_temperature() -> None:
    assert allowed(Nucleus(top_p=0.75), temperature=0.1) == [0]
    assert len(allowed(Nucleus(top_p=0.75), temperature=100.0)) > 2
    assert allowed(Nucleus(top_p=0.9), temperature=1e-38) == [0]


def test_of_equals_the_lowest_ids_are_left() -> None:
    assert allowed(Nucleus(top_k=2), probabilities=torch.full((5,), 0.2)) == [0, 2]


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_decoder_draws_what_is_shut_out(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 6, 16, generator=generator)
    best = logits.clone()
    best[..., MASK] = -math.inf
    likely = best.topk(3, -1).indices
    decoder = get_decoder(name, temperature=3.0)
    for _ in range(20):
        noise = -torch.empty(1, 6, 16).exponential_(generator=generator).log()
        Nucleus(top_k=3).shut_out(noise[0], logits[0], 3.0, MASK)
        state = BlockState.start(torch.zeros(1, 6, dtype=torch.int64), torch.ones(1, 6, dtype=torch.bool), MASK)
        result = decoder.step(logits, state, noise)
        drawn = result.state.tokens[..., None]
        assert ((drawn == likely).any(-1) | result.state.masked).all()


def test_rows_draw_as_they_do_alone_whatever_their_neighbours_ask(nano: LLM) -> None:
    prompts = ["Sam has 3 bags of 14 marbles.", "A box holds 12 eggs.", "Tea has 3 calories."]
    shared = {"temperature": 1.5, "gen_length": 32, "decoder": "threshold"}
    params = [
        GenerationParams(**shared, seed=1),
        GenerationParams(**shared, seed=2, top_p=0.6),
        GenerationParams(**shared, seed=3, draw_top_k=1),
    ]
    together = [output.token_ids for output in nano.generate(prompts, params)]
    alone = [nano.generate([prompt], [each])[0].token_ids for prompt, each in zip(prompts, params, strict=True)]
    assert together == alone
    [greedy] = nano.generate([prompts[2]], GenerationParams(gen_length=32, decoder="threshold"))
    assert together[2] == greedy.token_ids


@pytest.fixture(scope="module")
def nano() -> LLM:
    return LLM("nano", device="cpu", dtype=torch.float32)
