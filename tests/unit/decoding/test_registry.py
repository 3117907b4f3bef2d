from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from dmax.decoding import BlockState, DecoderError, decoder_names, decoder_options, get_decoder

BUILT_IN = [
    "soft-parallel",
    "threshold",
    "hierarchical",
    "fixed-steps",
    "joint-threshold",
    "joint-threshold-indel",
    "entropy-bounded",
    "remask",
]


class TestBuiltIn:
    def test_names(self) -> None:
        assert decoder_names()[: len(BUILT_IN)] == BUILT_IN

    @pytest.mark.parametrize("name", BUILT_IN)
    def test_builds_with_its_own_defaults(self, name: str) -> None:
        decoder = get_decoder(name)
        assert decoder.name == name
        assert {key: getattr(decoder, key) for key in decoder_options(name)} == decoder_options(name)

    def test_defaults(self) -> None:
        assert decoder_options("soft-parallel") == {
            "threshold": 0.5,
            "acceptance_threshold": 0.9,
            "top_k": 1,
            "soft": True,
            "renormalize": True,
            "contiguous": True,
            "revise": True,
            "temperature": 0.0,
        }
        assert decoder_options("threshold") == {"threshold": 0.95, "steps": None, "temperature": 0.0}
        assert decoder_options("hierarchical") == {"threshold": 0.9, "low_threshold": 0.4, "temperature": 0.0}
        assert decoder_options("fixed-steps") == {"steps": None, "temperature": 0.0}
        assert decoder_options("joint-threshold") == {
            "threshold": 0.95,
            "editing_threshold": 0.9,
            "max_post_steps": 16,
            "steps": None,
            "temperature": 0.0,
        }

        assert decoder_options("joint-threshold-indel") == {
            "threshold": 0.5,
            "editing_threshold": 0.0,
            "max_post_steps": 16,
            "delete_token_id": None,
            "insert_token_id": None,
            "temperature": 0.0,
        }
        assert decoder_options("entropy-bounded") == {"threshold": 0.1, "temperature": 0.0}
        assert decoder_options("remask") == {
            "threshold": 0.95,
            "remask_threshold": 0.3,
            "max_remasks": 1,
            "temperature": 0.0,
        }

    def test_options_reach_the_decoder(self) -> None:
        decoder = get_decoder("soft-parallel", threshold=0.65, top_k=4, soft=False)
        assert (decoder.threshold, decoder.top_k, decoder.soft) == (0.65, 4, False)

    def test_unknown_name_names_the_nearest(self) -> None:
        with pytest.raises(DecoderError, match=r"no decoder 'soft_parralel'; did you mean 'soft-parallel'\? choose"):
            get_decoder("soft_parralel")

    def test_unknown_name_far_from_any_lists_all(self) -> None:
        with pytest.raises(DecoderError, match=r"no decoder 'xyz'; choose from soft-parallel, threshold, .*"):
            decoder_options("xyz")

    def test_unknown_option_names_the_nearest(self) -> None:
        with pytest.raises(DecoderError, match=r"'hierarchical' has no option 'low_treshold'; did you mean 'low_thr"):
            get_decoder("hierarchical", low_treshold=0.3)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("soft-parallel", {"threshold": 1.5}, "threshold is 1.5; it must be a number from 0 to 1."),
            ("soft-parallel", {"threshold": float("nan")}, "threshold is nan; it must be a number from 0 to 1."),
            ("soft-parallel", {"acceptance_threshold": "0.9"}, "acceptance_threshold is '0.9'; it must be a number"),
            ("soft-parallel", {"top_k": 0}, "top_k is 0; it must be a whole number of at least 1."),
            ("soft-parallel", {"top_k": 1.5}, "top_k is 1.5; it must be a whole number"),
            ("soft-parallel", {"top_k": 65}, "top_k is 65; it must be a whole number of at most 64."),
            ("soft-parallel", {"soft": "false"}, "soft is 'false'; it must be True or False."),
            ("soft-parallel", {"renormalize": 1}, "renormalize is 1; it must be True or False."),
            ("soft-parallel", {"contiguous": None}, "contiguous is None; it must be True or False."),
            ("soft-parallel", {"revise": 0}, "revise is 0; it must be True or False."),
            ("soft-parallel", {"temperature": -1}, "temperature is -1; it must be a finite number of at least 0"),
            ("threshold", {"threshold": -0.1}, "threshold is -0.1; it must be a number from 0 to 1."),
            ("threshold", {"threshold": True}, "threshold is True; it must be a number from 0 to 1."),
            ("threshold", {"steps": 0}, "steps is 0; it must be a whole number of at least 1."),
            (
                "threshold",
                {"temperature": float("inf")},
                "temperature is inf; it must be a finite number",
            ),
            ("hierarchical", {"threshold": 2}, "threshold is 2; it must be a number from 0 to 1."),
            ("hierarchical", {"low_threshold": 2}, "low_threshold is 2; it must be a number from 0 to 1."),
            ("hierarchical", {"temperature": None}, "temperature is None; it must be a finite number of at least 0"),
            ("fixed-steps", {"steps": -3}, "steps is -3; it must be a whole number of at least 1."),
            ("fixed-steps", {"steps": 2**31}, "steps is 2147483648; it must be a whole number of at most 2147483647."),
            ("joint-threshold", {"max_post_steps": 10**30}, f"max_post_steps is {10**30}; it must be a whole number"),
            ("fixed-steps", {"name": "x"}, "decoder 'fixed-steps' has no option 'name'"),
            ("fixed-steps", {"self": 1}, "decoder 'fixed-steps' has no option 'self'"),
            ("fixed-steps", {"temperature": "hot"}, "temperature is 'hot'; it must be a finite number of at least 0"),
            ("joint-threshold", {"threshold": 9}, "threshold is 9; it must be a number from 0 to 1."),
            ("joint-threshold", {"editing_threshold": 9}, "editing_threshold is 9; it must be a number from 0 to 1."),
            (
                "joint-threshold",
                {"max_post_steps": -1},
                "max_post_steps is -1; it must be a whole number of",
            ),
            ("joint-threshold", {"steps": True}, "steps is True; it must be a whole number of at least 1."),
            ("joint-threshold", {"temperature": -0.5}, "temperature is -0.5; it must be a finite number"),
        ],
    )
    def test_values_out_of_range(self, name: str, options: dict, message: str) -> None:
        with pytest.raises(DecoderError) as error:
            get_decoder(name, **options)
        assert str(error.value).startswith(message)

    def test_an_error_is_a_value_error(self) -> None:
        assert issubclass(DecoderError, ValueError)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``install(package, source, entry_points)``: a distribution on the path, as pip would leave it."""
    monkeypatch.syspath_prepend(tmp_path)

    def build(package: str, source: str, entry_points: dict[str, str]) -> None:
        (tmp_path / f"{package}.py").write_text(dedent(source), encoding="utf-8")
        monkeypatch.delitem(sys.modules, package, raising=False)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
        lines = ["[dmax.decoders]", *(f"{name} = {value}" for name, value in entry_points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return build


DOCUMENTATION = (Path(__file__).parents[3] / "docs" / "reference" / "decoding.md").read_text(encoding="utf-8")
LEFT_TO_RIGHT = DOCUMENTATION.partition("```python\n# left_to_right.py\n")[2].partition("```")[0]
"""The documentation's example of a decoder of one's own."""


@pytest.mark.parametrize("name", BUILT_IN)
def test_documentation_gives_every_option_and_its_default(name: str) -> None:
    row = next(line for line in DOCUMENTATION.splitlines() if line.startswith(f"| `{name}` |"))  # of the first table
    switches = {"top_k", "soft", "renormalize", "contiguous", "revise"}
    for option, default in decoder_options(name).items():
        if option in switches:
            shown = default if option == "top_k" else f"`{default}`"
            assert f"\n| `{option}` | {shown} |" in DOCUMENTATION
        elif option != "temperature":
            assert f"`{option}` ({'none' if default is None else default})" in row


class TestThirdParty:
    def test_decoder_is_found_built_and_run(self, install) -> None:
        install("left_to_right", LEFT_TO_RIGHT, {"left-to-right": "left_to_right:LeftToRight"})
        assert decoder_names() == [*BUILT_IN, "left-to-right"]
        assert decoder_options("left-to-right") == {"width": 1, "temperature": 0.0}
        decoder = get_decoder("left-to-right", width=2)
        state = BlockState.start(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool), 1)
        logits = torch.zeros(1, 3, 8)
        logits[..., 5] = 1.0
        first = decoder.step(logits, state)
        assert first.state.tokens.tolist() == [[5, 5, 1]]
        assert not first.converged.item()
        assert decoder.step(logits, first.state).converged.item()

    def test_its_options_are_checked_like_any(self, install) -> None:
        install("left_to_right", LEFT_TO_RIGHT, {"left-to-right": "left_to_right:LeftToRight"})
        with pytest.raises(DecoderError, match="did you mean 'width'"):
            get_decoder("left-to-right", widht=2)
        with pytest.raises(DecoderError, match="width is 0"):
            get_decoder("left-to-right", width=0)

    def test_its_name_is_suggested(self, install) -> None:
        install("left_to_right", LEFT_TO_RIGHT, {"left-to-right": "left_to_right:LeftToRight"})
        with pytest.raises(DecoderError, match="did you mean 'left-to-right'"):
            get_decoder("left-to-rihgt")

    def test_built_in_names_cannot_be_taken(self, install) -> None:
        install("left_to_right", LEFT_TO_RIGHT, {"threshold": "left_to_right:LeftToRight"})
        assert type(get_decoder("threshold")).__name__ == "ThresholdDecoder"
        assert decoder_names().count("threshold") == 1

    def test_broken_package_spoils_only_its_own_decoder(self, install) -> None:
        install("broken_decoder", "raise RuntimeError('no such kernel')", {"broken": "broken_decoder:Broken"})
        assert get_decoder("threshold").name == "threshold"
        assert "broken" in decoder_names()
        with pytest.raises(DecoderError, match=r"'broken' could not be loaded from broken_decoder:Broken: no such ker"):
            get_decoder("broken")

    def test_two_packages_may_not_claim_one_name(self, install) -> None:
        install("left_to_right", LEFT_TO_RIGHT, {"mine": "left_to_right:LeftToRight"})
        install("other_one", LEFT_TO_RIGHT, {"mine": "other_one:LeftToRight"})
        with pytest.raises(DecoderError, match=r"'mine' is registered more than once \(left_to_right.* and other_one"):
            get_decoder("mine")

    def test_what_is_no_decoder_is_refused(self, install) -> None:
        install("no_decoder", "def build(): ...", {"nothing": "no_decoder:build"})
        with pytest.raises(DecoderError, match="must be a class with a step method"):
            get_decoder("nothing")

    def test_options_need_defaults(self, install) -> None:
        source = """
            class Needy:
                def __init__(self, width, *, temperature=0.0): ...
                def step(self, logits, state, noise=None): ...
        """
        install("needy", source, {"needy": "needy:Needy"})
        with pytest.raises(DecoderError, match=r"options without a default \(width\)"):
            decoder_options("needy")

    @pytest.mark.parametrize("missing", ["name", "temperature"])
    def test_what_the_engine_asks_of_it_must_be_there(self, install, missing: str) -> None:
        parts = "".join(f"{part} = 0\n    " for part in ("name", "temperature") if part != missing)
        install("partial", f"class Partial:\n    {parts}def step(self): ...", {"partial": "partial:Partial"})
        with pytest.raises(DecoderError, match=f"'partial' has no {missing}; its class must give it"):
            get_decoder("partial")
