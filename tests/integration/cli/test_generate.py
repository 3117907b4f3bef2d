"""``dmax generate`` with one prompt: what goes in, what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from dmax import LLM, GenerationParams, decoder_names

Run = Callable[..., Result]
SHORT = GenerationParams(gen_length=16, block_length=8)
FIELDS = {
    "text",
    "token_ids",
    "num_tokens",
    "passes",
    "nfe",
    "blocks",
    "revisions",
    "tpf",
    "tps",
    "seconds",
    "finish_reason",
    "decoder",
    "params",
}


def test_text_goes_through_the_chat_template(generate: Run, checkpoints: Any) -> None:
    llm = LLM(checkpoints.chat)
    [as_chat] = llm.generate(llm.chat_prompt("w7 w8"), SHORT)
    [as_text] = llm.generate("w7 w8", SHORT)
    assert as_chat.text != as_text.text
    result = generate("w7 w8", "--model", checkpoints.chat)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{as_chat.text}\n", "")


def test_text_goes_in_as_it_is_where_there_is_no_template(generate: Run, checkpoints: Any) -> None:
    [expected] = LLM(checkpoints.raw).generate("w7 w8", SHORT)
    assert generate("w7 w8", "--model", checkpoints.raw).stdout == f"{expected.text}\n"


def test_an_empty_answer_says_so_beside_the_output(
    generate: Run, checkpoints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = LLM.generate
    monkeypatch.setattr(LLM, "generate", lambda *args, **more: [replace(answer(*args, **more)[0], text="")])
    result = generate("w7 w8", "--model", checkpoints.chat)
    assert (result.exit_code, result.stdout) == (0, "\n")
    assert result.stderr.startswith("The answer is empty: ")
    assert generate("w7 w8", "--json", "--model", checkpoints.chat).stderr == ""


def test_the_prompt_comes_from_stdin_where_it_is_left_out(generate: Run, checkpoints: Any) -> None:
    by_argument = generate("w7 w8", "--model", checkpoints.chat)
    by_stdin = generate("--model", checkpoints.chat, stdin="w7 w8\n")
    assert by_stdin.stdout == by_argument.stdout


def test_json_is_one_object_with_the_fields_of_an_output(generate: Run, checkpoints: Any) -> None:
    [expected] = LLM(checkpoints.bare).generate([7, 8], SHORT)
    result = generate("--prompt-ids", "[7, 8]", "--json", "--model", checkpoints.bare)
    assert result.stdout.count("\n") == 1
    record = json.loads(result.stdout)
    assert record.keys() == FIELDS | {"model"}
    measured = {"tps", "seconds"}
    assert {key: record[key] for key in FIELDS - measured} == {
        key: value for key, value in asdict(expected).items() if key in FIELDS - measured
    }
    assert record["text"] is None
    assert record["model"] == str(checkpoints.bare)


def test_without_a_tokenizer_the_plain_answer_is_its_token_ids(generate: Run, checkpoints: Any) -> None:
    [expected] = LLM(checkpoints.bare).generate([7, 8], SHORT)
    result = generate("--prompt-ids", "[7, 8]", "--model", checkpoints.bare)
    assert result.stdout.split() == [str(token_id) for token_id in expected.token_ids]


def test_an_empty_list_of_ids_asks_for_the_empty_prompt(generate: Run, checkpoints: Any) -> None:
    [expected] = LLM(checkpoints.bare).generate([], SHORT)
    record = json.loads(generate("--prompt-ids", "[]", "--json", "--model", checkpoints.bare).stdout)
    assert record["token_ids"] == expected.token_ids


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--threshold", "0.3"], {"threshold": 0.3}),
        (["--acceptance-threshold", "0.7"], {"acceptance_threshold": 0.7}),
        (["--decoder", "hierarchical", "--low-threshold", "0.2"], {"low_threshold": 0.2}),
        (["--decoder", "joint-threshold", "--editing-threshold", "0.8"], {"editing_threshold": 0.8}),
        (["--decoder-option", "soft=false", "--decoder-option", "top-k=2"], {"soft": False, "top_k": 2}),
        (["--gen-length", "5"], {"gen_length": 5}),
        (["--block-length", "4"], {"block_length": 4}),
        (["--temperature", "0.5", "--seed", "3"], {"temperature": 0.5, "seed": 3}),
        (["--stop", "w9", "--stop", "w8"], {"stop": ["w9", "w8"]}),
    ],
)
def test_every_decoding_flag_takes_effect(
    generate: Run, checkpoints: Any, flags: list[str], expected: dict[str, Any]
) -> None:
    result = generate("w7", "--json", "--model", checkpoints.raw, *flags)
    params = json.loads(result.stdout)["params"]
    assert {name: params[name] for name in expected} == expected


@pytest.mark.parametrize("decoder", decoder_names())
def test_every_decoder_can_be_chosen_and_is_named_in_the_help(
    generate: Run, invoke: Run, checkpoints: Any, decoder: str
) -> None:
    result = generate("w7", "--json", "--model", checkpoints.raw, "--decoder", decoder)
    assert json.loads(result.stdout)["decoder"] == decoder
    assert decoder in invoke("generate", "--help").stdout


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_reaches_the_model(
    generate: Run, checkpoints: Any, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    seen = []
    answer = LLM.generate

    def spy(self: LLM, *args: Any, **kwargs: Any) -> Any:
        seen.append((str(self.model.dtype), str(self.model.device)))
        return answer(self, *args, **kwargs)

    monkeypatch.setattr(LLM, "generate", spy)
    assert generate("w7", "--model", checkpoints.raw, "--dtype", dtype, "--device", "cpu").exit_code == 0
    assert seen == [(f"torch.{dtype}", "cpu")]


def test_a_trace_holds_every_pass_and_stays_out_of_the_answer(
    generate: Run, checkpoints: Any, tmp_path: Path, read_lines: Callable[[Path], list[dict[str, Any]]]
) -> None:
    path = tmp_path / "trace.json"
    result = generate("--prompt-ids", "[7, 8]", "--json", "--trace", path, "--model", checkpoints.bare)
    answer = json.loads(result.stdout)
    assert "trace" not in answer
    [record] = read_lines(path)
    assert record["token_ids"] == answer["token_ids"]
    assert record["prompt_ids"] == [7, 8]
    assert len(record["trace"]) == answer["passes"]
    assert record["trace"][-1]["final"] is True


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_costs_the_trace_and_not_the_answer(generate: Run, checkpoints: Any) -> None:
    arguments = ("--prompt-ids", "[7, 8]", "--model", checkpoints.bare)
    result = generate(*arguments, "--trace", "/dev/full")
    assert result.exit_code == 2
    assert result.stdout == generate(*arguments).stdout
    assert result.stderr.startswith("Error: cannot write /dev/full")


def test_a_stop_string_needs_a_tokenizer(checkpoints: Any, refusal: Callable[..., str]) -> None:
    message = refusal("generate", "--prompt-ids", "[7]", "--gen-length", 8, "--stop", "w8", "--model", checkpoints.bare)
    assert "stop" in message
    assert "tokenizer" in message


def test_the_seed_decides_what_is_drawn(generate: Run, checkpoints: Any) -> None:
    def drawn(seed: int) -> str:
        return generate("w7", "--model", checkpoints.raw, "--temperature", "2", "--seed", seed).stdout

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_help_and_version_wait_for_nothing_heavy() -> None:
    check = (
        "import sys; from dmax.cli import app\n"
        "try: app(['generate', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'huggingface_hub', 'tokenizers', 'jinja2'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, timeout=300)


def test_the_version_is_that_of_the_distribution(invoke: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmax.cli.commands.version", {"dmax-llm": "1.2.3"}.__getitem__)
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, "dmax 1.2.3\n")
