"""Prompts of every kind go in, bad ones are refused in one sentence, outputs keep the conventions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmax.decoding import DecoderError
from dmax.engine import LLM, GenerationError, GenerationParams
from dmax.models import BlockDiffusionLM, Tokenizer, save_model
from dmax.models.memory import DoesNotFit

TEMPLATE = (
    "{% for message in messages %}w40 {{ message.content }} {% endfor %}{% if add_generation_prompt %}w41{% endif %}"
)
MASK = 1
SHORT = GenerationParams(gen_length=8, block_length=4, trace=True)


@pytest.fixture
def llm(tiny_model: BlockDiffusionLM, word_tokenizer: Callable[[str | None], Tokenizer]) -> LLM:
    return LLM(tiny_model, word_tokenizer(TEMPLATE))


@pytest.mark.parametrize(
    ("prompt", "prompt_ids"),
    [
        ("w5 w6 w7", [5, 6, 7]),
        ("", []),
        ([5, 6, 7], [5, 6, 7]),
        ((5, 6, 7), [5, 6, 7]),
        ([], []),
        ([{"role": "user", "content": "w5 w6"}], [40, 5, 6, 41]),
        (LLM.chat_prompt("w5"), [40, 5, 41]),
    ],
)
def test_a_single_prompt_of_any_kind_gives_a_list_of_one(llm: LLM, prompt: Any, prompt_ids: list[int]) -> None:
    outputs = llm.generate(prompt, SHORT)
    assert len(outputs) == 1
    trace = outputs[0].trace
    assert trace is not None
    assert trace[0].tokens[: trace[0].active[0]] == prompt_ids[trace[0].start :]
    assert outputs[0].token_ids == llm.generate([prompt_ids], SHORT)[0].token_ids


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (torch.tensor([5, 6, 7]), [[5, 6, 7]]),
        (np.array([5, 6, 7]), [[5, 6, 7]]),
        ([torch.tensor(5), torch.tensor(6)], [[5, 6]]),
        (list(np.array([5, 6])), [[5, 6]]),
        (torch.tensor([[5, 6], [7, 8]]), [[5, 6], [7, 8]]),
        (np.array([[5, 6]]), [[5, 6]]),
        ([torch.tensor([5, 6]), np.array([7]), [8], "w9"], [[5, 6], [7], [8], [9]]),
        (torch.tensor([], dtype=torch.int64), [[]]),
        ({"input_ids": torch.tensor([[0, 5], [6, 7]]), "attention_mask": [[0, 1], [1, 1]]}, [[5], [6, 7]]),
        ({"input_ids": [5, 6], "attention_mask": [1, 1]}, [[5, 6]]),
        ([{"input_ids": np.array([5, 6])}, {"input_ids": [7]}], [[5, 6], [7]]),
        ([{"role": "user", "content": [{"type": "text", "text": "w5 "}, {"type": "text", "text": "w6"}]}],
         [[40, 5, 6, 41]]),
    ],
)  # fmt: skip
def test_arrays_and_text_parts_are_prompts(llm: LLM, prompts: Any, expected: list[list[int]]) -> None:
    found = llm.generate(prompts, SHORT)
    assert [o.token_ids for o in found] == [o.token_ids for o in llm.generate(expected, SHORT)]


def test_prompts_of_different_kinds_go_together(llm: LLM) -> None:
    outputs = llm.generate(["w5 w6", [5, 6], [{"role": "user", "content": "w5"}], []], SHORT)
    alone = [llm.generate(prompt, SHORT)[0] for prompt in ("w5 w6", "w5 w6", LLM.chat_prompt("w5"), [])]
    assert [output.token_ids for output in outputs] == [output.token_ids for output in alone]


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ([5, 48], "prompt 0 has token id 48; this model's ids are 0 to 47"),
        ([[5], [-1]], "prompt 1 has token id -1"),
        ([[5], [6, "w7"]], "prompt 1 is a list of mixed parts; a prompt is a string"),
        ([5.0], "prompt 0 is a list of mixed parts"),
        (
            [9] * 249,
            "256 tokens, and prompt 0 is too long for the answer: it has 249, which leaves 7; gen_length asks for 8",
        ),
        ([9] * 256, "256 tokens, and prompt 0 is too long: it has 256; shorten it"),
        (torch.tensor([5.0]), "prompt 0 is a list of mixed parts"),
        (torch.tensor([True, True]), "prompt 0 is a list of mixed parts"),
        (b"\x05\x06", "prompt 0 is a bytes; a prompt is a string"),
        (torch.tensor(5), "a prompt is a string"),
        (5, "a prompt is a string"),
        ([5, MASK], "prompt 0 holds the mask token \\(id 1\\), which stands for what is to be decoded; leave it out"),
        ("w5 <mask>", "prompt 0 holds the mask token"),
        ({"role": "user", "content": "w5"}, "a prompt is a dict without input_ids; put a message in a list"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "prompt 0: part 1 of a turn's content is image_url"),
    ],
)
def test_refuses_prompts_that_cannot_be_used(llm: LLM, prompt: Any, complaint: str) -> None:
    with pytest.raises(GenerationError, match=complaint):
        llm.generate(prompt, SHORT)


def test_the_longest_prompt_is_answered(llm: LLM) -> None:
    assert llm.generate([9] * 248, SHORT)[0].num_tokens <= 8


@pytest.mark.parametrize(
    ("prompt", "params", "complaint"),
    [
        ("w5", SHORT, "prompt 0 is text, and this model has no tokenizer; use token ids instead"),
        (LLM.chat_prompt("w5"), SHORT, "prompt 0 is a list of messages, and this model has no tokenizer"),
        ([5], GenerationParams(gen_length=8, stop=("w6",)), "stop strings are given, and this model has no tokenizer"),
    ],
)
def test_text_needs_a_tokenizer(
    tiny_model: BlockDiffusionLM, prompt: Any, params: GenerationParams, complaint: str
) -> None:
    with pytest.raises(GenerationError, match=complaint):
        LLM(tiny_model).generate(prompt, params)


def test_messages_need_a_chat_template(
    tiny_model: BlockDiffusionLM, word_tokenizer: Callable[[str | None], Tokenizer]
) -> None:
    with pytest.raises(GenerationError, match="prompt 0: This model has no chat template"):
        LLM(tiny_model, word_tokenizer(None)).generate(LLM.chat_prompt("w5"), SHORT)


def test_blocks_longer_than_in_training_are_warned_of_once(
    tiny_model: BlockDiffusionLM, caplog: pytest.LogCaptureFixture
) -> None:
    model = BlockDiffusionLM(replace(tiny_model.config, block_length=4))
    model.load_state_dict(tiny_model.state_dict())
    outputs = [LLM(model).generate([5], GenerationParams(gen_length=8, block_length=n))[0] for n in (None, 2, 16, 16)]
    assert [output.params["block_length"] for output in outputs] == [4, 2, 16, 16]
    assert [record.getMessage() for record in caplog.records] == [
        "block_length is 16, and this model was trained with 4: expect poor answers and many passes."
    ]


def test_without_a_tokenizer_there_is_no_text(tiny_model: BlockDiffusionLM) -> None:
    assert LLM(tiny_model).generate([5], SHORT)[0].text is None


def test_text_is_that_of_the_tokens(llm: LLM) -> None:
    output = llm.generate("w5", SHORT)[0]
    assert output.num_tokens > 0
    assert output.text == llm.tokenizer.decode(output.token_ids[: output.num_tokens]) if llm.tokenizer else False


def test_params_may_be_given_row_by_row(llm: LLM) -> None:
    rows = [
        GenerationParams(gen_length=8, block_length=4),
        GenerationParams(gen_length=5, block_length=8, decoder="threshold", threshold=0.1),
        GenerationParams(gen_length=3, block_length=4, use_cache=False),
        GenerationParams(gen_length=6, block_length=4),
    ]
    outputs = llm.generate([[5, 6]] * 4, rows)
    assert [output.decoder for output in outputs] == ["soft-parallel", "threshold", "soft-parallel", "soft-parallel"]
    alone = [llm.generate([5, 6], row)[0] for row in rows]
    assert [output.token_ids for output in outputs] == [output.token_ids for output in alone]
    assert [output.params for output in outputs] == [output.params for output in alone]


def test_the_number_of_params_must_be_that_of_the_prompts(llm: LLM) -> None:
    with pytest.raises(GenerationError, match="there are 2 params for 3 prompts; give one for all, or one for each"):
        llm.generate([[5], [6], [7]], [SHORT, SHORT])


@pytest.mark.parametrize(
    "params",
    [
        GenerationParams(gen_length=8, decoder="soft-paralel"),
        GenerationParams(gen_length=8, low_threshold=0.4),
        GenerationParams(gen_length=8, decoder_options={"sofd": True}),
    ],
)
def test_unknown_decoders_and_options_are_refused_before_anything_runs(llm: LLM, params: GenerationParams) -> None:
    passes: list[int] = []
    with pytest.raises(DecoderError):
        llm.generate([[5], [6]], [SHORT, params], on_pass=lambda index, _: passes.append(index))
    assert passes == []


def test_outputs_keep_the_conventions(llm: LLM) -> None:
    outputs = llm.generate([[5, 6, 7], [5] * 9], GenerationParams(gen_length=12, block_length=4, trace=True, seed=3))
    for index, (output, prefill) in enumerate(zip(outputs, (0, 1), strict=True)):
        assert output.trace is not None
        assert output.passes == len(output.trace)
        assert output.blocks == sum(record.final for record in output.trace)
        assert output.revisions == sum(len(record.revised) for record in output.trace)
        assert output.nfe == output.passes + prefill
        assert output.tpf == output.num_tokens / output.nfe
        assert output.tps == output.num_tokens / output.seconds
        assert output.params["seed"] == 3 + index
        assert output.finish_reason in ("stop", "length")
        json.dumps(output.to_dict())
    assert outputs[0].params["threshold"] == 0.5  # the decoder's own default
    assert outputs[0].params["block_length"] == 4


def test_a_row_is_timed_to_its_own_end(llm: LLM) -> None:
    short, long = llm.generate([[5], [5]], [GenerationParams(gen_length=n, block_length=4) for n in (1, 40)])
    assert 0 < short.seconds < long.seconds


def test_stop_strings_end_an_answer(llm: LLM) -> None:
    whole = llm.generate([5, 6], GenerationParams(gen_length=12, block_length=4))[0]
    words = (whole.text or "").split()
    stop = next(word for place, word in enumerate(words) if place >= 5 and word not in words[:place])
    cut = llm.generate([5, 6], GenerationParams(gen_length=12, block_length=4, stop=(f" {stop}",)))[0]
    count = words.index(stop)
    assert (cut.text or "").split() == words[:count]
    assert cut.token_ids == whole.token_ids[:count]
    assert (cut.num_tokens, cut.finish_reason) == (count, "stop")
    assert cut.passes <= whole.passes


def test_a_loaded_model_is_used_as_it_is(tiny_model: BlockDiffusionLM) -> None:
    with pytest.raises(GenerationError, match="device and dtype are for checkpoints that are loaded here"):
        LLM(tiny_model, dtype=torch.bfloat16)
    with pytest.raises(GenerationError, match="max_batch_size is 0; it must be at least 1"):
        LLM(tiny_model, max_batch_size=0)
    assert LLM(tiny_model.train()).model.training is False


def test_a_checkpoint_brings_its_tokenizer(tiny_model: BlockDiffusionLM, llm: LLM, tmp_path: Any) -> None:
    from dmax.models import save_model

    save_model(tiny_model, tmp_path / "model", tokenizer=llm.tokenizer)
    loaded = LLM(tmp_path / "model")
    assert loaded.model.dtype == torch.float32
    assert loaded.generate("w5 w6", SHORT)[0].token_ids == llm.generate("w5 w6", SHORT)[0].token_ids
    assert LLM(str(tmp_path / "model"), dtype=torch.bfloat16).model.dtype == torch.bfloat16


@pytest.mark.parametrize(("multiplies", "fits", "expected"), [
    (True, True, torch.bfloat16), (False, True, torch.float32), (False, False, torch.bfloat16),
])  # fmt: skip
def test_float32_takes_the_place_of_bfloat16_where_products_in_it_are_slow(
    multiplies: bool, fits: bool, expected: torch.dtype, tiny_model: BlockDiffusionLM, tmp_path: Path, monkeypatch: Any
) -> None:
    def check(model: BlockDiffusionLM, dtype: torch.dtype, *_: object, **__: object) -> None:
        if dtype == torch.float32 and not fits:
            raise DoesNotFit("not in float32")

    save_model(tiny_model, tmp_path / "model")
    monkeypatch.setattr("dmax.engine.llm.multiplies_bfloat16", lambda: multiplies)
    monkeypatch.setattr("dmax.engine.llm.check_memory", check)
    assert LLM(tmp_path / "model", dtype=torch.bfloat16).model.dtype == expected
