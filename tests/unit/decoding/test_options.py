"""Settings of decoders, as they take effect."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from dmax.decoding import DecoderError, get_decoder
from dmax.engine import GenerationParams


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("soft-parallel", {"threshold": 1, "acceptance_threshold": 0, "temperature": 1}),
        ("threshold", {"threshold": 1}),
        ("hierarchical", {"threshold": 1, "low_threshold": 0}),
        ("joint-threshold", {"threshold": 1, "editing_threshold": 1}),
        ("fixed-steps", {"temperature": 2}),
        ("joint-threshold-indel", {"threshold": 1, "editing_threshold": 1}),
        ("entropy-bounded", {"threshold": 1}),
        ("remask", {"threshold": 1, "remask_threshold": 0}),
    ],
)
def test_numbers_given_as_whole_ones_become_floats(name: str, given: dict[str, Any]) -> None:
    decoder = get_decoder(name, **given)
    for option, value in given.items():
        assert type(getattr(decoder, option)) is float
        assert getattr(decoder, option) == value


def test_counts_and_switches_keep_their_kinds() -> None:
    decoder = get_decoder("soft-parallel", top_k=2, soft=True)
    assert {each.name: type(getattr(decoder, each.name)) for each in fields(decoder)} == {  # type: ignore[arg-type]
        "threshold": float,
        "acceptance_threshold": float,
        "top_k": int,
        "soft": bool,
        "renormalize": bool,
        "contiguous": bool,
        "revise": bool,
        "temperature": float,
    }
    with pytest.raises(DecoderError, match=r"top_k is 2\.0; it must be a whole number"):
        get_decoder("soft-parallel", top_k=2.0)


def test_params_become_floats_too() -> None:
    params = GenerationParams(threshold=1, temperature=1, add_threshold=0, seed=3)
    assert [type(value) for value in (params.threshold, params.temperature, params.add_threshold, params.seed)] == [
        float,
        float,
        float,
        int,
    ]
