"""``dmax bench``: a table or JSON, and one sentence for what cannot be timed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

QUICK = ("--device", "cpu", "--repeats", "3", "--context", "64")


def test_json_names_the_model_the_machine_and_what_was_timed(invoke: Callable[..., Result]) -> None:
    result = invoke("bench", "--shape", "nano", "--layers", "2", *QUICK, "--positions", "64", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["what"] == "random weights, time per pass"
    assert (record["model"]["name"], record["layers"], record["positions"]) == ("nano", 2, 64)
    assert record["hardware"]["threads"] == 1 and record["versions"]["torch"]
    assert record["pass_ms"]["median"] > 0


def test_weights_are_made_in_a_format_and_experts_limited(invoke: Callable[..., Result]) -> None:
    shape = ("--shape", "nano", "--layers", "2", "--weights", "int4", "--expert-capacity", "3")
    result = invoke("bench", *shape, *QUICK, "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["weights"], record["expert_capacity"], record["peak_is_of"]) == ("int4", 3, "int8")
    assert record["touched_experts"] <= 3
    whole = json.loads(invoke("bench", "--shape", "nano", "--layers", "2", *QUICK, "--json").stdout)
    assert record["model"]["parameters"] == whole["model"]["parameters"]
    assert record["bytes"]["attention"] < whole["bytes"]["attention"] / 2
    assert record["share_of_bound"] == pytest.approx(record["bound_ms"] / record["pass_ms"]["median"])


def test_the_table_says_that_weights_are_random(invoke: Callable[..., Result]) -> None:
    result = invoke("bench", "--shape", "nano", "--layers", "2", *QUICK)
    assert result.exit_code == 0, result.stderr
    assert "random weights, time per pass" in result.stdout
    assert "tokens/s at 6 tokens per forward" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--shape"),
        (("--shape", "nano", "--model", "nano"), "--shape"),
        (("--model", "nano", "--layers", "2"), "--layers"),
        (("--shape", "huge"), "llada2-mini"),
        (("--shape", "nano", "--weights", "int3"), "int8, int4"),
        (("--model", "nano", "--weights", "int8"), "--weights"),
        (("--shape", "nano", "--expert-capacity", "9"), "expert_capacity is 9"),
        (("--shape", "nano", "--layers", "9"), "from 1"),
        (("--shape", "nano", "--dtype", "float8"), "float32"),
        (("--shape", "nano", "--device", "abacus"), "choose from"),
        (("--shape", "nano", "--positions", "33"), "32 or 64"),
        (("--shape", "nano", "--context", "7"), "multiple of 32"),
        (("--shape", "nano", "--repeats", "1"), "at least 2"),
    ],
)
def test_what_cannot_be_timed_ends_with_one_sentence(
    invoke: Callable[..., Result], arguments: tuple[str, ...], message: str
) -> None:
    result = invoke("bench", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr and result.stdout == ""
