"""The sentence that refuses what does not fit."""

from __future__ import annotations

import pytest
import torch

from dmax.models.memory import DoesNotFit, gib, refuse

MIB = 2**20


def test_a_refusal_is_one_sentence_with_what_it_needs_and_a_mend() -> None:
    needed = {"weights": 3 * 2**30, "KV cache": 300 * MIB, "nothing": 0}
    with pytest.raises(DoesNotFit) as caught:
        refuse("mini", needed, 2**30, torch.device("cpu"), "use another machine")
    assert str(caught.value) == (
        "mini needs 3.3 GiB of memory (weights 3.0 GiB, KV cache 0.3 GiB), and this machine has 1.0 GiB available: "
        "use another machine, or try all the same with --ignore-memory."
    )
    assert gib(50 * MIB) == "50 MiB"
