"""``dmax generate --input``: order, bad lines, and going on where a run broke off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from dmax import LLM, GenerationParams, save_model
from dmax.cli._common.errors import CommandError
from dmax.cli._common.files import LineFile

Run = Callable[..., Result]
Lines = Callable[..., Path]
Read = Callable[[Path], list[dict[str, Any]]]

PROMPTS: list[dict[str, Any]] = [
    {"prompt": "w7 w8 w9", "id": "kept by its owner"},
    {"prompt_ids": [10, 11]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "w12"}]}]},
    {"prompt": "w13"},
    {"prompt_ids": []},
]
SAMPLED = ("--temperature", "1.5", "--seed", "5", "--batch-size", "2")


@pytest.fixture
def batch(generate: Run, checkpoints: Any, tmp_path: Path) -> Callable[..., tuple[Result, Path]]:
    """An input file and further options -> what was printed, and the file of answers."""

    def run(source: Path, *options: object) -> tuple[Result, Path]:
        output = tmp_path / "answers.jsonl"
        result = generate("--model", checkpoints.chat, "--input", source, "--output", output, *options)
        return result, output

    return run


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from then on loading a model fails the test."""
    return lambda: monkeypatch.setattr(
        "dmax.cli._common.batch.load_llm", lambda *_: pytest.fail("the model was loaded")
    )


def test_answers_come_in_the_order_of_the_prompts(
    batch: Run, checkpoints: Any, write_lines: Lines, read_lines: Read
) -> None:
    llm = LLM(checkpoints.chat)
    prompts = [llm.chat_prompt("w7 w8 w9"), [10, 11], llm.chat_prompt("w12"), llm.chat_prompt("w13"), []]
    shared = GenerationParams(gen_length=16, block_length=8, temperature=1.5, seed=5)
    expected = llm.generate(prompts, [replace(shared, seed=5 + index) for index in range(5)])
    result, output = batch(write_lines(*PROMPTS), *SAMPLED)
    assert (result.exit_code, result.stdout) == (0, "")
    records = read_lines(output)
    assert [record["line"] for record in records] == [1, 2, 3, 4, 5]
    for record, answer in zip(records, expected, strict=True):
        wanted = {key: value for key, value in answer.to_dict().items() if key not in ("seconds", "tps")}
        assert {key: record[key] for key in wanted} == wanted


def test_without_an_output_the_lines_are_printed(generate: Run, checkpoints: Any, write_lines: Lines) -> None:
    result = generate("--model", checkpoints.chat, "--input", write_lines(*PROMPTS))
    assert [json.loads(line)["line"] for line in result.stdout.splitlines()] == [1, 2, 3, 4, 5]


def test_the_summary_gives_both_means(batch: Run, write_lines: Lines, read_lines: Read) -> None:
    result, output = batch(write_lines(*PROMPTS))
    records = read_lines(output)
    mean = sum(record["tpf"] for record in records) / len(records)
    pooled = sum(record["num_tokens"] for record in records) / sum(record["nfe"] for record in records)
    assert f"{mean:.2f} TPF (mean of answers)" in result.stderr
    assert f"{pooled:.2f} TPF (all tokens" in result.stderr


@pytest.mark.parametrize("lines_left", [0, 1, 2, 4])
@pytest.mark.parametrize("torn", [b"", b"{", b'{"line": 2, "mod', b'{"line": 3, "model": "x", "decoder": "y"}'])
def test_a_run_that_broke_off_goes_on(
    batch: Run, write_lines: Lines, read_lines: Read, lines_left: int, torn: bytes
) -> None:
    source = write_lines(*PROMPTS)
    _, output = batch(source, *SAMPLED)
    whole = output.read_bytes()
    kept = b"".join(whole.splitlines(keepends=True)[:lines_left])
    expected = read_lines(output)
    output.write_bytes(kept + torn)
    result, _ = batch(source, *SAMPLED)
    assert result.exit_code == 0
    assert output.read_bytes().startswith(kept)
    assert read_lines(output) == expected
    assert list(output.parent.glob("*.partial")) == []


def test_a_run_that_is_complete_changes_nothing(batch: Run, write_lines: Lines, no_model: Callable[[], None]) -> None:
    source = write_lines(*PROMPTS)
    _, output = batch(source)
    before = output.read_bytes()
    no_model()
    result, _ = batch(source)
    assert result.exit_code == 0
    assert "5 of 5" in result.stderr
    assert output.read_bytes() == before


def test_a_last_line_without_its_newline_is_kept(batch: Run, write_lines: Lines) -> None:
    source = write_lines(*PROMPTS)
    _, output = batch(source)
    whole = output.read_bytes()
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]).rstrip(b"\n"))
    batch(source)
    assert output.read_bytes().splitlines()[:3] == whole.splitlines()[:3]
    assert len(output.read_bytes().splitlines()) == 5


def test_stopping_keeps_what_is_done(
    batch: Run, write_lines: Lines, read_lines: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, calls = LLM.generate, []

    def interrupted(self: LLM, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(self, *args, **kwargs)

    monkeypatch.setattr(LLM, "generate", interrupted)
    result, output = batch(write_lines(*PROMPTS), "--batch-size", "2")
    assert result.exit_code == 130
    assert "goes on" in result.stderr
    assert [record["line"] for record in read_lines(output)] == [1, 2]


MALFORMED = [
    ("{", "not valid JSON"),
    ("[1, 2]", "not a JSON list"),
    ('"w7"', "not a JSON string"),
    ("{}", "it has none"),
    ('{"prompt": "w7", "prompt_ids": [7]}', "prompt and prompt_ids"),
    ('{"prompt": 7}', "not a JSON number"),
    ('{"prompt": " "}', "empty"),
    ('{"prompt": "\\ud800"}', "Unicode"),
    ('{"prompt_ids": "7"}', "whole numbers"),
    ('{"prompt_ids": [48]}', "token id 48"),
    (json.dumps({"prompt_ids": [7] * 60}), "60 tokens"),
    ('{"messages": []}', "messages"),
    ('{"messages": [{"role": "user"}]}', "messages"),
    ('{"messages": ["w7"]}', "messages"),
    ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "part 1 of a turn's content is image_url"),
    ('{"prompt_ids": [7, 1]}', "the prompt holds the mask token"),
]


@pytest.mark.parametrize(("line", "part"), MALFORMED)
def test_a_bad_line_is_named_and_the_others_run(
    batch: Run, write_lines: Lines, read_lines: Read, line: str, part: str
) -> None:
    result, output = batch(write_lines({"prompt": "w7"}, "", line, {"prompt": "w8"}))
    assert result.exit_code == 2
    errors = [text for text in result.stderr.splitlines() if text.startswith("Error: ")]
    assert len(errors) == 1
    assert "line 3" in errors[0]
    assert part in errors[0]
    assert "Not answered: line 3." in result.stderr
    assert [record["line"] for record in read_lines(output)] == [1, 4]


def test_a_line_whose_logits_are_nan_is_named_and_the_others_run(
    generate: Run, checkpoints: Any, write_lines: Lines, read_lines: Read, tmp_path: Path
) -> None:
    llm = LLM(checkpoints.chat)
    with torch.no_grad():
        llm.model.model.word_embeddings.weight[40] = float("inf")
    save_model(llm.model, tmp_path / "bad", tokenizer=llm.tokenizer)
    single = generate("w40", "--model", tmp_path / "bad")
    assert (single.exit_code, single.stdout) == (2, "")
    assert "logits were NaN in pass 1" in single.stderr
    prompts = write_lines({"prompt": "w7"}, {"prompt": "w40"}, {"prompt": "w8"})
    result = generate("--model", tmp_path / "bad", "--input", prompts, "--output", tmp_path / "answers.jsonl")
    assert result.exit_code == 2
    assert "line 2: the model's logits were NaN" in result.stderr
    assert [record["line"] for record in read_lines(tmp_path / "answers.jsonl")] == [1, 3]


def test_a_bad_line_that_was_mended_finds_its_place(batch: Run, write_lines: Lines, read_lines: Read) -> None:
    batch(write_lines({"prompt": "w7"}, "{", {"prompt": "w8"}))
    result, output = batch(write_lines({"prompt": "w7"}, {"prompt": "w9"}, {"prompt": "w8"}))
    assert result.exit_code == 0
    assert [record["line"] for record in read_lines(output)] == [1, 2, 3]


def test_only_bad_lines_leave_no_output(batch: Run, write_lines: Lines) -> None:
    result, output = batch(write_lines("{", "{"))
    assert result.exit_code == 2
    assert "lines 1, 2" in result.stderr
    assert not output.exists()


def test_other_line_ends_and_a_byte_order_mark(batch: Run, tmp_path: Path, read_lines: Read) -> None:
    source = tmp_path / "windows.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"prompt": "w7"}\r\n{"prompt": "w8"}')
    result, output = batch(source)
    assert result.exit_code == 0
    assert len(read_lines(output)) == 2


def test_traces_go_along_with_the_answers(batch: Run, write_lines: Lines, read_lines: Read, tmp_path: Path) -> None:
    source, trace = write_lines(*PROMPTS), tmp_path / "trace.jsonl"
    options = ("--trace", trace, "--batch-size", "1")  # confidences would round otherwise in another batch
    _, output = batch(source, *options)
    answers, traces = read_lines(output), read_lines(trace)
    assert [len(record["trace"]) for record in traces] == [record["passes"] for record in answers]
    # Broken off after the third trace was written, and before its answer was.
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:2]))
    trace.write_bytes(b"".join(trace.read_bytes().splitlines(keepends=True)[:3]))
    batch(source, *options)
    assert (read_lines(output), read_lines(trace)) == (answers, traces)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--threshold", "0.25"], "threshold 0.5, not 0.25"),
        (["--decoder", "threshold"], "decoder soft-parallel, not threshold"),
        (["--seed", "1"], "seed 0, not 1"),
        (["--gen-length", "8"], "gen_length 16, not 8"),
        (["--stop", "w9"], "stop"),
        (["--decoder-option", "soft=false"], "soft True, not False"),
    ],
)
def test_answers_made_otherwise_are_not_mixed(batch: Run, write_lines: Lines, options: list[str], part: str) -> None:
    source = write_lines(*PROMPTS)
    _, output = batch(source)
    before = output.read_bytes().splitlines(keepends=True)[0]
    output.write_bytes(before)
    result, _ = batch(source, *options)
    assert result.exit_code == 2
    assert part in result.stderr
    assert output.read_bytes() == before


def test_answers_of_another_model_or_input_are_not_mixed(
    batch: Run, generate: Run, checkpoints: Any, write_lines: Lines
) -> None:
    source = write_lines(*PROMPTS)
    _, output = batch(source)
    before = output.read_bytes()
    result = generate("--model", checkpoints.raw, "--input", source, "--output", output)
    assert result.exit_code == 2
    assert "made with model" in result.stderr
    result, _ = batch(write_lines(*PROMPTS[:2]))
    assert result.exit_code == 2
    assert "line 3" in result.stderr
    assert output.read_bytes() == before


def test_answers_without_their_traces_are_not_gone_on_with(batch: Run, write_lines: Lines, tmp_path: Path) -> None:
    source = write_lines(*PROMPTS)
    batch(source)
    result, _ = batch(source, "--trace", tmp_path / "trace.jsonl")
    assert result.exit_code == 2
    assert "trace lacks line 1" in result.stderr


@pytest.mark.parametrize(
    "content",
    [
        b"notes of mine",
        b"notes of mine\n",
        b'{"prompt": "w7"}\n',
        b'{"line": 1, "model": "m", "decoder": "d", "params": {}}\nnotes\n',
        b'{"line": 1, "model": "m", "decoder": "d", "params": {}}\n' * 2,
        b"\n",
    ],
)
def test_a_file_of_something_else_is_left_alone(
    batch: Run, write_lines: Lines, tmp_path: Path, no_model: Callable[[], None], content: bytes
) -> None:
    no_model()
    (tmp_path / "answers.jsonl").write_bytes(content)
    result, output = batch(write_lines(*PROMPTS))
    assert result.exit_code == 2
    assert "answers.jsonl" in result.stderr
    assert output.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_input(batch: Run, tmp_path: Path, no_model: Callable[[], None], content: bytes) -> None:
    no_model()
    source = tmp_path / "empty.jsonl"
    source.write_bytes(content)
    result, output = batch(source)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "empty.jsonl is empty" in result.stderr
    assert not output.exists()


def test_inputs_and_outputs_must_differ_and_exist(
    refusal: Callable[..., str], write_lines: Lines, tmp_path: Path, no_model: Callable[[], None]
) -> None:
    source = write_lines(*PROMPTS)
    no_model()
    before = source.read_bytes()
    assert "same file" in refusal("generate", "--input", source, "--output", source)
    assert "same file" in refusal(
        "generate", "--input", source, "--output", tmp_path / "a", "--trace", tmp_path / "." / "a"
    )
    assert "absent.jsonl" in refusal("generate", "--input", tmp_path / "absent.jsonl", "--output", tmp_path / "a")
    assert "--batch-size is 0" in refusal("generate", "--input", source, "--batch-size", "0")
    assert source.read_bytes() == before
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_sentence(generate: Run, checkpoints: Any, write_lines: Lines) -> None:
    result = generate("--model", checkpoints.chat, "--input", write_lines(*PROMPTS), "--output", "/dev/full")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "/dev/full" in result.stderr
    assert "space" in result.stderr


def test_lines_reach_the_file_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with LineFile(path, ()) as file:
        file.append(2, {"text": "é"})
        assert path.read_text(encoding="utf-8") == '{"line": 2, "text": "é"}\n'
        file.append(1, {})
    assert [json.loads(line)["line"] for line in path.read_text(encoding="utf-8").splitlines()] == [1, 2]


def test_a_file_keeps_its_lines_when_the_work_fails(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"

    def work() -> None:
        with LineFile(path, ()) as file:
            file.append(2, {})
            raise CommandError("stop")

    with pytest.raises(CommandError):
        work()
    assert path.read_text(encoding="utf-8") == '{"line": 2}\n'


def test_a_checkpoint_says_how_it_is_decoded(
    generate: Run, checkpoints: Any, write_lines: Lines, read_lines: Read, refusal: Callable[..., str], tmp_path: Path
) -> None:
    """Its defaults take effect, are reported, count when a run goes on, and give way to what is asked for."""
    model, output = tmp_path / "model", tmp_path / "answers.jsonl"
    shutil.copytree(checkpoints.chat, model)
    config = json.loads((model / "config.json").read_text())
    config["decoder_defaults"] = {"soft-parallel": {"threshold": 0.03, "soft": False}}
    (model / "config.json").write_text(json.dumps(config))
    run = ("--model", model, "--input", write_lines(*PROMPTS), "--output", output)
    assert generate(*run).exit_code == 0
    answers = read_lines(output)
    assert {(record["params"]["threshold"], record["params"]["soft"]) for record in answers} == {(0.03, False)}
    assert generate(*run).exit_code == 0
    assert read_lines(output) == answers
    asked = refusal("generate", *run, "--threshold", "0.5", "--gen-length", "16", "--block-length", "8")
    assert asked.startswith("the output was made with threshold 0.03, not 0.5")
