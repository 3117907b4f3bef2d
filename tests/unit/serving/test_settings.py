"""Settings of a server: sizes are read, and lengths fit the model."""

from __future__ import annotations

import pytest

from dmax.serving.settings import ServerSettings, SettingsError, gen_lengths, parse_keys, parse_kv_memory


@pytest.mark.parametrize(
    ("text", "size"), [("512M", 2**29), ("1g", 2**30), ("1.5 GiB", 3 * 2**29), ("100", 100), ("2TB", 2**41)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_kv_memory(text) == size


@pytest.mark.parametrize("text", ["", "lots", "0", "0M", "-1G", "1X", "1 2M"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SettingsError, match="such as 512M"):
        parse_kv_memory(text)


@pytest.mark.parametrize(
    ("asked", "positions", "longest", "default"),
    [(2048, 32768, 2048, 512), (2048, 600, 600, 300), (100, 2048, 100, 100)],
)
def test_answers_fit_the_model(asked: int, positions: int, longest: int, default: int) -> None:
    assert gen_lengths(asked, positions) == {"max_gen_length": longest, "default_gen_length": default}


@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel"])
def test_a_key_that_lets_everybody_in_or_nobody_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="printable ASCII"):
        parse_keys(["good", key])
    assert parse_keys(["good", "sk-2_x"]) == ("good", "sk-2_x")


def test_a_servers_own_blocks_fit_its_limit() -> None:
    assert ServerSettings("tiny", block_length=256, max_positions_in_flight=256).block_length == 256
    with pytest.raises(
        SettingsError, match="block_length is 256, and a request may have 128 positions in flight; raise"
    ):
        ServerSettings("tiny", block_length=256)
