"""Outputs go into JSON as they are."""

from __future__ import annotations

import json
from dataclasses import replace

from dmax.engine import GenerationOutput, PassRecord

RECORD = PassRecord(
    pass_number=3, block=1, start=4, tokens=[7, 8, 1, 1], confidence=[0.9, 0.8, 0.1, 0.1], promoted=[1], revised=[],
    active=[1, 2, 3], final=False,
)  # fmt: skip
OUTPUT = GenerationOutput(
    text=None, token_ids=[8, 2], num_tokens=1, passes=2, nfe=3, blocks=1, revisions=0, tpf=1 / 3, tps=10.0, seconds=0.1,
    finish_reason="stop", decoder="soft-parallel", params={"threshold": 0.5}, trace=[RECORD],
)  # fmt: skip


def test_an_output_survives_json() -> None:
    assert json.loads(json.dumps(OUTPUT.to_dict())) == OUTPUT.to_dict()
    assert OUTPUT.to_dict()["trace"] == [RECORD.to_dict()]


def test_an_output_without_a_trace_has_no_such_key() -> None:
    assert set(OUTPUT.to_dict()) - set(replace(OUTPUT, trace=None).to_dict()) == {"trace"}
