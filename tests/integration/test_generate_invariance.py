"""An answer depends on its own prompt, params and seed: not on the batch it is decoded in, and not on the cache.

All comparisons are exact, in float32.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmax import LLM, BlockDiffusionLM, GenerationOutput, GenerationParams, ModelConfig
from dmax.engine import GenerationError
from dmax.models.transformer import initialize

VOCAB, MASK, EOS, PAD = 48, 1, 2, 0
DECODERS: dict[str, dict[str, Any]] = {
    "soft-parallel": {},
    "soft-parallel top-k": {"decoder_options": {"top_k": 3, "renormalize": False}},
    "soft-parallel hard": {"decoder_options": {"soft": False, "contiguous": False}},
    "soft-parallel without revision": {"decoder_options": {"revise": False}},
    "threshold": {"threshold": 0.3},
    "hierarchical": {"threshold": 0.5, "low_threshold": 0.1},
    "fixed-steps": {"decoder_options": {"steps": 3}},
    "joint-threshold": {"threshold": 0.3, "editing_threshold": 0.2, "decoder_options": {"max_post_steps": 3}},
    "joint-threshold-indel": {
        "threshold": 0.3, "decoder_options": {"delete_token_id": 7, "insert_token_id": 9, "max_post_steps": 3}
    },
    "entropy-bounded": {"threshold": 0.5},
    "remask": {"threshold": 0.3, "decoder_options": {"remask_threshold": 0.5}},
}  # fmt: skip


@cache
def tiny_llm(kind: str, max_batch_size: int = 32) -> LLM:
    """Random weights, wide enough apart that predictions get revised and converge, and not so wide that soft feedback
    blows the last bit of a float up until it changes tokens."""
    experts: dict[str, Any] = {
        "num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1, "moe_intermediate_size": 16,
        "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
    }  # fmt: skip
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, partial_rotary_factor=0.5, mask_token_id=MASK, eos_token_id=EOS,
        pad_token_id=PAD, initializer_range=0.2, **(experts if kind == "moe" else {}),
    )  # fmt: skip
    model = initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(5))
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 2  # so that a fair share of the answers ends early
    return LLM(model, max_batch_size=max_batch_size)


def essence(output: GenerationOutput) -> tuple[Any, ...]:
    """All of an output but its times and its use of the cache."""
    tokens_of_passes = None if output.trace is None else [record.tokens for record in output.trace]
    return output.token_ids, output.num_tokens, output.passes, output.nfe, output.finish_reason, tokens_of_passes


def decoder_params(name: str, **values: Any) -> GenerationParams:
    return GenerationParams(decoder=name.split()[0], trace=True, **DECODERS[name], **values)


probabilities = st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0])
prompts = st.lists(st.sampled_from([i for i in range(VOCAB) if i != MASK]), max_size=40)
row_settings = st.fixed_dictionaries({"gen_length": st.integers(1, 40), "seed": st.integers(0, 99)})
rows_of_a_batch = st.lists(st.tuples(prompts, row_settings), min_size=2, max_size=5)
shared_settings = st.fixed_dictionaries(
    {"block_length": st.sampled_from([4, 8, 32]), "temperature": st.sampled_from([0.0, 0.0, 0.7])}
)
decoders = st.one_of(
    st.fixed_dictionaries(
        {
            "threshold": probabilities,
            "acceptance_threshold": probabilities,
            "decoder_options": st.sampled_from(
                [{}, {"soft": False}, {"top_k": 2}, {"contiguous": False}, {"revise": False}]
            ),
        }
    ),
    st.fixed_dictionaries({"decoder": st.just("threshold"), "threshold": probabilities}),
    st.fixed_dictionaries(
        {"decoder": st.just("hierarchical"), "threshold": probabilities, "low_threshold": probabilities}
    ),
    st.fixed_dictionaries(
        {"decoder": st.just("fixed-steps"), "decoder_options": st.sampled_from([{}, {"steps": 1}, {"steps": 3}])}
    ),
    st.fixed_dictionaries(
        {"decoder": st.just("joint-threshold"), "threshold": probabilities, "editing_threshold": probabilities}
    ),
)


MULTI_BLOCK: dict[str, dict[str, Any]] = {
    "soft-parallel": {"threshold": 0.1},
    "soft-parallel hard": {"threshold": 0.1, "decoder_options": {"soft": False}},
    "threshold": {"threshold": 0.2},
    "joint-threshold": {"threshold": 0.2, "editing_threshold": 0.2},
    "entropy-bounded": {"threshold": 0.5},
}


@pytest.mark.parametrize("buffer_size", [2, 4])
@pytest.mark.parametrize("name", MULTI_BLOCK)
def test_blocks_in_flight_need_no_cache_and_no_company(name: str, buffer_size: int) -> None:
    """Several blocks in flight: cached = uncached, batched = alone, in tokens and in every pass."""
    generator = torch.Generator().manual_seed(buffer_size)
    batch = [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in (0, 5, 8, 19)]
    settings: dict[str, Any] = {"block_length": 8, "gen_length": 44, "semi_threshold": 0.5, "buffer_size": buffer_size}
    params = GenerationParams(decoder=name.split()[0], trace=True, **MULTI_BLOCK[name], **settings)
    llm = tiny_llm("moe")
    cached = llm.generate(batch, params)
    assert max(len({r.block for r in o.trace or [] if r.pass_number == n}) for o in cached for n in range(40)) > 1
    recomputed = llm.generate(batch, replace(params, use_cache=False))
    assert [essence(output) for output in cached] == [essence(output) for output in recomputed]
    for index, prompt in enumerate(batch):
        [alone] = llm.generate([prompt], replace(params, seed=index))
        assert essence(alone) == essence(cached[index])


@pytest.mark.parametrize("buffer_size", [1, 2])
@pytest.mark.parametrize("name", DECODERS)
def test_every_end_token_ends_an_answer(name: str, buffer_size: int) -> None:
    """In every decoder, with and without a cache: what ends it is taken out of the answer that no such token ends."""
    if buffer_size > 1 and name not in MULTI_BLOCK:
        pytest.skip("decodes one block at a time")
    llm = tiny_llm("moe")
    params = replace(decoder_params(name, gen_length=44, block_length=8, ignore_eos=True), buffer_size=buffer_size)
    [endless] = llm.generate([[5, 6, 7]], params)
    further = next(token for token in endless.token_ids if token not in (EOS, MASK))
    model = BlockDiffusionLM(replace(llm.model.config, further_eos_token_ids=(further,)))
    model.load_state_dict(llm.model.state_dict())
    for use_cache in (True, False):
        ending = replace(params, ignore_eos=False, use_cache=use_cache)
        [output] = LLM(model).generate([[5, 6, 7]], ending)
        end = min(endless.token_ids.index(token) for token in (EOS, further) if token in endless.token_ids)
        assert output.token_ids == endless.token_ids[: end + 1]
        assert (output.num_tokens, output.finish_reason) == (end, "stop")


def test_a_decoder_of_one_block_refuses_several() -> None:
    with pytest.raises(GenerationError, match="hierarchical decodes one block at a time"):
        tiny_llm("dense").generate([5], GenerationParams(decoder="hierarchical", buffer_size=2))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    kind=st.sampled_from(["dense", "moe"]),
    rows=rows_of_a_batch,
    shared=shared_settings,
    decoder=decoders,
    max_batch_size=st.sampled_from([2, 32]),
)
def test_a_batch_gives_every_row_what_it_gets_alone(
    kind: str,
    rows: list[tuple[list[int], dict[str, Any]]],
    shared: dict[str, Any],
    decoder: dict[str, Any],
    max_batch_size: int,
) -> None:
    llm = tiny_llm(kind, max_batch_size)
    params = [GenerationParams(trace=True, **decoder, **shared, **row) for _, row in rows]
    together = llm.generate([prompt for prompt, _ in rows], params)
    alone = [llm.generate([prompt], [row])[0] for (prompt, _), row in zip(rows, params, strict=True)]
    assert [essence(output) for output in together] == [essence(output) for output in alone]


@pytest.mark.parametrize("block_length", [4, 8, 32])
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_cache_changes_nothing(name: str, block_length: int, temperature: float) -> None:
    """Prompts: none, inside the first block, on a block boundary, off one, many blocks; alone and in a batch."""
    lengths = [0, 3, block_length, block_length + 3, 3 * block_length - 1]
    generator = torch.Generator().manual_seed(block_length)
    batch = [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    settings = {"block_length": block_length, "gen_length": 2 * block_length + 1, "temperature": temperature}
    llm = tiny_llm("moe")
    cached = llm.generate(batch, decoder_params(name, **settings))
    recomputed = llm.generate(batch, decoder_params(name, use_cache=False, **settings))
    assert [essence(output) for output in cached] == [essence(output) for output in recomputed]
    first_alone = llm.generate(batch[-1], decoder_params(name, seed=len(batch) - 1, **settings))[0]
    assert essence(first_alone) == essence(recomputed[-1])


def test_the_models_of_these_tests_do_what_the_tests_are_about() -> None:
    """Comparing runs in which nothing is revised and nothing ends early would prove little."""
    generator = torch.Generator().manual_seed(1)
    batch = [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in range(24)]
    for kind in ("dense", "moe"):
        outputs = tiny_llm(kind).generate(batch, GenerationParams(gen_length=40, block_length=8, trace=True))
        records = [record for output in outputs for record in output.trace or []]
        assert {output.finish_reason for output in outputs} == {"stop", "length"}
        assert sum(bool(record.revised) for record in records) > len(records) / 8
        assert len({output.passes for output in outputs}) > 5


def test_seeds_make_the_draws() -> None:
    llm = tiny_llm("dense")
    params = GenerationParams(gen_length=24, block_length=8, temperature=1.0, seed=11)
    first = llm.generate([[5, 6, 7]] * 3, params)
    assert len({tuple(output.token_ids) for output in first}) == 3
    assert [output.params["seed"] for output in first] == [11, 12, 13]
    again = llm.generate([[5, 6, 7]] * 3, params)
    assert [essence(output) for output in again] == [essence(output) for output in first]
    third = llm.generate([5, 6, 7], GenerationParams(gen_length=24, block_length=8, temperature=1.0, seed=13))[0]
    assert essence(third) == essence(first[2])
