"""``python -m benchmarks.reproduction`` and what it finds in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.reproduction.__main__ import RECIPE, app

pytest.importorskip("yaml")


def test_its_recipe_lies_in_the_repository_wherever_it_is_called() -> None:
    assert RECIPE.is_absolute() and RECIPE.is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--recipe", "nothing.yaml"), "nothing.yaml is no recipe that can be read"),
        (("--recipe", str(RECIPE.with_name("1-autoregressive.yaml"))), "give the recipe of an OPUT training"),
        (("--notes", "nothing.yaml"), "nothing.yaml cannot be read as YAML"),
        (("--only", "oputt"), "row 'oputt' is unknown"),
        (("--base", "nano-base", "--only", "half-oput"), "starts from oput, which is not trained yet: add --only oput"),
        ((), "holds no study yet: name its base model with --base"),
        (("--data", "openai/gsm8k"), "give it as ID=PATH"),
        (("--data", "openai/gsm8k=nothing.jsonl"), "there is no nothing.jsonl, which --data names for openai/gsm8k"),
        (("--gsm8k", "nothing.jsonl"), "nothing.jsonl"),
        (("--budget-share", "2"), "--budget-share"),
        (("--jobs", "0"), "--jobs"),
        (("--dtype", "float8"), "float8"),
    ],
)
def test_bad_input_ends_with_one_sentence(
    options: tuple[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        app([*options, "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.count("\n") == 1 and said in error


@pytest.mark.parametrize("command", ["status", "page"])
def test_a_folder_without_a_study_is_named(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        app([command, "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "holds no study; name its folder with --out" in capsys.readouterr().err
