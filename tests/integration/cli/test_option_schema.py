"""A decoder declares an option in its own file, and every surface has it: nothing else of dmax is touched."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from dmax.decoding.options import options_of
from dmax.decoding.registry import all_options, decoder_names, described_options
from dmax.engine.params import PARAMS

DECODER = '''
from dataclasses import dataclass
from typing import ClassVar

from dmax.decoding import commit_masks, options, predict


@dataclass(frozen=True, kw_only=True)
class Wavy:
    """Commits the leftmost masks, more of them in every other pass."""

    name: ClassVar[str] = "wavy"
    ripple: float = options.probability(0.5, "Share of the masks that every other pass commits.")
    crests: int = options.whole(2, "Waves a block.", maximum=8)
    mirrored: bool = options.switch(False, "Begin at the right.")
    temperature: float = options.temperature()

    def __post_init__(self):
        options.check_options(self)

    def step(self, logits, state, noise=None):
        prediction = predict(logits, state.mask_token_id, temperature=self.temperature, noise=noise)
        return commit_masks(state, prediction, state.masked & (state.masked.cumsum(-1) <= self.crests))
'''
WRITER = Path(__file__).parents[3] / ".ci" / "write_options.py"
OWN = {"ripple": 0.25, "crests": 3, "mirrored": True}


@pytest.fixture(autouse=True)
def wavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The decoder, installed as pip would leave it."""
    (tmp_path / "wavy_decoder.py").write_text(DECODER, encoding="utf-8")
    info = tmp_path / "wavy_decoder-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wavy-decoder\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[dmax.decoders]\nwavy = wavy_decoder:Wavy\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("wavy_decoder", None)


def test_on_the_command_line(invoke: Callable[..., Result], checkpoints: Any) -> None:
    shown = invoke("generate", "--decoder", "wavy", "--help").stdout
    assert all(text in shown for text in ("Options of wavy", "--ripple", "--crests", "--no-mirrored", "Waves a block"))
    assert "--ripple" not in invoke("generate", "--help").stdout
    arguments = ["generate", "w7", "--model", checkpoints.raw, "--gen-length", 8, "--block-length", 8, "--json"]
    result = invoke(*arguments, "--decoder", "wavy", "--ripple", 0.25, "--crests", 3, "--mirrored")
    assert result.exit_code == 0, result.stderr
    assert {name: json.loads(result.stdout)["params"][name] for name in OWN} == OWN


def test_on_the_command_line_of_a_decoder_without_it(refusal: Callable[..., str], checkpoints: Any) -> None:
    arguments = ("generate", "w7", "--model", checkpoints.raw)
    assert "--ripple" in refusal(*arguments, "--ripple", 0.25)
    assert "ripple is 2.0; it must be a number from 0 to 1." in refusal(*arguments, "--decoder", "wavy", "--ripple", 2)


def test_the_own_options_of_our_decoders_have_flags_too(invoke: Callable[..., Result], checkpoints: Any) -> None:
    arguments = ["generate", "w7", "--model", checkpoints.raw, "--gen-length", 8, "--block-length", 8, "--json"]
    result = invoke(*arguments, "--no-soft", "--top-k", 2)
    params = json.loads(result.stdout)["params"]
    assert (params["soft"], params["top_k"]) == (False, 2)
    steps = json.loads(invoke(*arguments, "--decoder", "fixed-steps", "--steps=2").stdout)
    assert steps["params"]["steps"] == 2


def test_in_a_request() -> None:
    protocol = pytest.importorskip("dmax.serving.protocol")
    body = {"messages": [{"role": "user", "content": "hi"}], "decoder": "wavy"}
    request = protocol.request_models().chat.model_validate({**body, **OWN})
    assert request.params(64, 16, 5).decoder_options == OWN
    with pytest.raises(ValueError, match="crests"):
        protocol.request_models().chat.model_validate({**body, "crests": 9})


def test_on_the_page() -> None:
    pytest.importorskip("fastapi")
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from dmax.serving.pages import add_pages

    app = FastAPI()
    add_pages(app, {"wavy": {"crests": 4}})
    decoders = {each["name"]: each for each in TestClient(app).get("/web/settings.json").json()["decoders"]}
    assert decoders["wavy"]["about"] == "Commits the leftmost masks, more of them in every other pass."
    ripple, crests, mirrored = decoders["wavy"]["options"]
    assert (ripple["name"], ripple["label"], ripple["minimum"], ripple["maximum"]) == ("ripple", "Ripple", 0, 1)
    assert (crests["kind"], crests["default"], crests["help"]) == ("whole", 4, "Waves a block.")
    assert (mirrored["kind"], mirrored["default"]) == ("switch", False)


def test_among_the_harness_arguments() -> None:
    from dmax.evaluation.harness_arguments import HarnessError, generation_params

    assert generation_params({"decoder": "wavy", **OWN}).decoder_options == OWN
    with pytest.raises(HarnessError, match="did you mean 'ripple'"):
        generation_params({"decoder": "wavy", "riple": 0.25})


def test_what_the_params_say_of_decoders_options_is_what_decoders_say() -> None:
    for name, option in PARAMS.items():
        if option.of_decoder:
            declared = all_options()[name]
            assert (option.kind, option.minimum, option.maximum) == (declared.kind, declared.minimum, declared.maximum)


def test_every_option_is_described() -> None:
    assert all(option.help.endswith(".") for name in decoder_names() for option in described_options(name))
    assert all(option.help.endswith(".") for option in PARAMS.values())


def test_a_decoder_that_describes_nothing_has_options_of_the_kinds_of_its_defaults() -> None:
    class Plain:
        def __init__(self, *, width: int = 1, soft: bool = True, ratio: float = 0.5, mode: str = "a", rest=None): ...

    kinds = {option.name: option.kind for option in options_of(Plain)}
    assert kinds == {"width": "whole", "soft": "switch", "ratio": "number", "mode": "text", "rest": "any"}


def test_the_page_of_options_is_made_of_the_code() -> None:
    if not WRITER.is_file():
        pytest.skip("not in a checkout")
    written = runpy.run_path(str(WRITER))["page"]()
    page = (WRITER.parents[1] / "docs" / "reference" / "options.md").read_text(encoding="utf-8")
    assert page == written, "run python .ci/write_options.py"
