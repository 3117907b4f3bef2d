"""Generation parameters are checked where they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dmax.engine import GenerationError, GenerationParams
from dmax.models import ModelConfig


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"gen_length": 0}, "gen_length is 0; it must be a whole number of at least 1"),
        ({"gen_length": 2.0}, "gen_length is 2.0"),
        ({"block_length": True}, "block_length is True"),
        ({"block_length": -4}, "block_length is -4"),
        ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
        ({"threshold": 1.5}, "threshold is 1.5; it must be a number from 0 to 1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": "0.5"}, "threshold is '0.5'"),
        ({"low_threshold": -0.1}, "low_threshold is -0.1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"stop": ("end", "")}, "every stop string must be a string that is not empty"),
        ({"stop": [3]}, "every stop string must be a string"),
        ({"stop": "\ud800"}, "half of a surrogate pair; every stop string must be valid Unicode"),
        ({"decoder_options": {"threshold": 0.5}}, "decoder_options holds threshold; give it as the field"),
    ],
)
def test_refuses_values_out_of_range(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(GenerationError, match=complaint.replace("(", r"\(")):
        GenerationParams(**values)


def test_takes_the_ends_of_every_range() -> None:
    params = GenerationParams(gen_length=1, block_length=1, threshold=0, acceptance_threshold=1, seed=0, temperature=0)
    assert (params.threshold, params.acceptance_threshold) == (0, 1)


def test_numbers_of_numpy_become_plain_ones() -> None:
    params = GenerationParams(gen_length=np.int64(8), threshold=np.float32(0.5), temperature=1, seed=np.uint8(3))  # type: ignore[arg-type]
    kept = (params.gen_length, params.threshold, params.temperature, params.seed)
    assert [(type(value), value) for value in kept] == [(int, 8), (float, 0.5), (float, 1.0), (int, 3)]


@pytest.mark.parametrize(("given", "kept"), [("end", ("end",)), (["a", "b"], ("a", "b")), ((), ())])
def test_stop_strings_become_a_tuple(given: Any, kept: tuple[str, ...]) -> None:
    assert GenerationParams(stop=given).stop == kept


def test_only_what_was_given_reaches_the_decoder() -> None:
    assert GenerationParams().decoder_arguments() == {}
    params = GenerationParams(threshold=0.0, temperature=0.5, decoder_options={"soft": False})
    assert params.decoder_arguments() == {"threshold": 0.0, "temperature": 0.5, "soft": False}


def test_a_checkpoints_defaults_fill_in_what_a_request_leaves_open(tiny_config: Callable[..., ModelConfig]) -> None:
    by_decoder = {"soft-parallel": {"threshold": 0.9, "acceptance_threshold": 0.8, "soft": False, "top_k": 2}}
    config = tiny_config(moe=False, decoder_defaults=by_decoder)
    params = GenerationParams(threshold=0.3, decoder_options={"top_k": 4}).with_defaults(config)
    assert params.decoder == "soft-parallel"
    assert params.decoder_arguments() == {
        "threshold": 0.3, "acceptance_threshold": 0.8, "soft": False, "top_k": 4
    }  # fmt: skip
    other = GenerationParams(decoder="threshold", block_length=4)
    assert other.with_defaults(config) == other
    assert GenerationParams().with_defaults(replace(config, default_decoder="threshold")).decoder == "threshold"
    config = replace(config, decoder_defaults={"soft-parallel": {"threshold": 2}})
    with pytest.raises(GenerationError, match=r"decoder_defaults.soft-parallel in .* threshold is 2; it must"):
        GenerationParams().with_defaults(config)


def test_blocks_are_as_long_as_in_training_unless_a_request_says(tiny_config: Callable[..., ModelConfig]) -> None:
    config = tiny_config(moe=False)
    assert GenerationParams().with_defaults(config).block_length == 32
    assert GenerationParams().with_defaults(replace(config, block_length=8)).block_length == 8
    assert GenerationParams(block_length=4).with_defaults(replace(config, block_length=8)).block_length == 4
