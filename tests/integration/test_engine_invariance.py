"""A request's answer does not depend on what else the engine has to do: not on arrivals and aborts beside it, not on a
pool too small for all, not on pages that others have left, not on passes that are launched ahead.

All comparisons with answers made alone are exact, in float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmax import LLM, BlockDiffusionLM, EngineConfig, GenerationParams, LLMEngine, ModelConfig
from dmax.engine import GenerationError, GenerationOutput
from dmax.models.transformer import initialize

VOCAB, MASK, EOS, PAD = 48, 1, 2, 0
BLOCK = 8


def tiny_model() -> BlockDiffusionLM:
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, partial_rotary_factor=0.5, mask_token_id=MASK, eos_token_id=EOS,
        pad_token_id=PAD, initializer_range=0.2, num_experts=4, num_experts_per_tok=2, num_shared_experts=1,
        moe_intermediate_size=16, first_k_dense_replace=1, n_group=2, topk_group=1, max_position_embeddings=512,
    )  # fmt: skip
    model = initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(5))
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 2  # so that a fair share of the answers ends early
    return model


MODEL = tiny_model()
DECODERS: list[dict[str, Any]] = [
    {},
    {"threshold": 0.1},
    {"temperature": 0.7},
    {"decoder": "threshold", "threshold": 0.3},
    {"decoder": "joint-threshold", "threshold": 0.3, "editing_threshold": 0.2},
    {
        "decoder": "joint-threshold-indel",
        "threshold": 0.3,
        "decoder_options": {"delete_token_id": 7, "insert_token_id": 9, "max_post_steps": 3},
    },
    {"decoder": "entropy-bounded", "threshold": 0.5},
    {"decoder": "remask", "threshold": 0.3, "decoder_options": {"remask_threshold": 0.5}},
    {"decoder": "hierarchical", "threshold": 0.5, "low_threshold": 0.1, "block_length": 4},
    {"decoder": "fixed-steps", "block_length": 16},
    {"threshold": 0.1, "buffer_size": 3, "semi_threshold": 0.5},
    {"decoder": "threshold", "threshold": 0.2, "buffer_size": 2},
]


def essence(output: GenerationOutput) -> tuple[Any, ...]:
    return output.token_ids, output.num_tokens, output.passes, output.nfe, output.revisions, output.finish_reason


def pool_bytes(engine_pages: int) -> int:
    return engine_pages * 2 * 2 * 2 * 16 * BLOCK * 4


prompts = st.tuples(st.integers(0, 3), st.integers(0, 40)).map(
    # Prompts of a family begin alike, so that they meet each other's pages.
    lambda drawn: [(7 * drawn[0] + 3 * i) % (VOCAB - 3) + 3 for i in range(drawn[1])]
)
requests = st.tuples(prompts, st.sampled_from(DECODERS), st.integers(1, 40), st.integers(0, 9), st.integers(0, 12))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(requests, min_size=2, max_size=8),
    st.integers(12, 40),
    st.sampled_from([2, 3, 8]),
    st.sampled_from([8, 24]),
    st.sets(st.integers(0, 7), max_size=2),
    st.booleans(),
)
def test_answers_are_those_given_alone(
    drawn: list[tuple[list[int], dict[str, Any], int, int, int]],
    pages: int,
    max_batch_size: int,
    prefill_tokens: int,
    aborted: set[int],
    launch_ahead: bool,
) -> None:
    asked = []
    for prompt, decoder, gen_length, seed, arrival in drawn:
        params = GenerationParams(**{"block_length": BLOCK, **decoder}, gen_length=gen_length, seed=seed)
        asked.append((arrival, prompt, params))
    engine = LLMEngine(
        MODEL,
        config=EngineConfig(
            page_length=BLOCK, kv_memory=pool_bytes(pages), max_batch_size=max_batch_size, prefill_tokens=prefill_tokens
        ),
    )
    engine._launches_ahead = launch_ahead
    answers: dict[str, GenerationOutput] = {}
    streamed: dict[str, list[int]] = {}
    for clock in range(2000):
        for index, (arrival, prompt, params) in enumerate(asked):
            if arrival == clock:
                engine.add_request(prompt, params, str(index))
            if arrival + 5 == clock and index in aborted:
                engine.abort(str(index))
        for update in engine.step():
            streamed.setdefault(update.request_id, []).extend(update.final_ids)
            if update.output is not None:
                answers[update.request_id] = update.output
        if clock > 12 + 5 and not engine.has_requests():
            break
    llm = LLM(MODEL)
    for index, (_, prompt, params) in enumerate(asked):
        if str(index) not in answers:
            assert index in aborted
            continue
        [alone] = llm.generate([prompt], params)
        assert essence(answers[str(index)]) == essence(alone)
        assert streamed[str(index)] == alone.token_ids
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.pages_held) == (0, 0, 0)


def test_a_pool_too_small_for_all_interrupts_and_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    batch = [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in (3, 9, 17, 5, 12, 30)]
    params = GenerationParams(block_length=BLOCK, gen_length=64, threshold=0.9)
    engine = LLMEngine(MODEL, config=EngineConfig(page_length=BLOCK, kv_memory=pool_bytes(16), prefill_tokens=BLOCK))
    for index, prompt in enumerate(batch):
        engine.add_request(prompt, replace(params, seed=index), str(index))
    answers = {}
    while engine.has_requests():
        answers |= {update.request_id: update.output for update in engine.step() if update.output is not None}
    assert engine.stats().preemptions > 0, "or the test is about nothing"
    for index, alone in enumerate(LLM(MODEL).generate(batch, params)):
        assert essence(answers[str(index)]) == essence(alone)


NUCLEI: list[dict[str, Any]] = [
    {},
    {"top_p": 0.6},
    {"draw_top_k": 2},
    {"min_p": 0.4},
    {"top_p": 0.9, "draw_top_k": 4, "min_p": 0.05},
]


def test_every_decoder_draws_as_it_does_alone_whatever_its_neighbours_draw_from() -> None:
    llm, prompts = LLM(MODEL), [[5, 6, 7]] * len(NUCLEI)
    for decoder in DECODERS:
        drawn = {"gen_length": 24, "block_length": BLOCK, "ignore_eos": True, **decoder, "temperature": 2.0, "seed": 3}
        params = [GenerationParams(**drawn, **nucleus) for nucleus in NUCLEI]
        alone = [essence(llm.generate([prompt], one)[0]) for prompt, one in zip(prompts, params, strict=True)]
        assert [essence(output) for output in llm.generate(prompts, params)] == alone, decoder
        assert len({tuple(answer[0]) for answer in alone}) > 1, f"{decoder}: what may be drawn makes a difference"


def test_a_prompt_that_was_there_is_not_computed_again() -> None:
    engine = LLMEngine(MODEL, config=EngineConfig(page_length=BLOCK, kv_memory=pool_bytes(64)))
    prompt = [5, 6, 7] * 11
    params = GenerationParams(block_length=BLOCK, gen_length=16)
    outputs = []
    for _ in range(2):
        engine.add_request(prompt, params)
        while engine.has_requests():
            outputs += [update.output for update in engine.step() if update.output is not None]
    stats = engine.stats()
    assert (stats.prefilled, stats.prefix_queries, stats.prefix_hits) == (32, 8, 4)
    assert essence(outputs[0]) == essence(outputs[1])
    engine = LLMEngine(MODEL, config=EngineConfig(page_length=BLOCK, kv_memory=pool_bytes(64), reuse_prefixes=False))
    for _ in range(2):
        engine.add_request(prompt, params)
        while engine.has_requests():
            engine.step()
    assert engine.stats().prefilled == 64


def test_what_cannot_be_run_is_refused_at_once() -> None:
    engine = LLMEngine(MODEL, config=EngineConfig(page_length=BLOCK, kv_memory=pool_bytes(4)))
    with pytest.raises(GenerationError, match="takes 6 pages of the KV cache, and it has 4"):
        engine.add_request([5] * 10, GenerationParams(block_length=BLOCK, gen_length=32))
    with pytest.raises(GenerationError, match="use_cache"):
        engine.add_request([5], GenerationParams(use_cache=False))
    engine.add_request([5], GenerationParams(block_length=BLOCK, gen_length=8), "mine")
    with pytest.raises(GenerationError, match="'mine' is not finished"):
        engine.add_request([5], GenerationParams(block_length=BLOCK, gen_length=8), "mine")
    assert engine.abort("mine")
    assert not engine.abort("mine")
    with pytest.raises(GenerationError, match="one page of this model takes"):
        LLMEngine(MODEL, config=EngineConfig(kv_memory=100))
    with pytest.raises(GenerationError, match="max_batch_size is 0"):
        LLMEngine(MODEL, config=EngineConfig(max_batch_size=0))
