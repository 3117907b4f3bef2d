"""Evaluations that break off, go on, share their rows, and never lose one."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dmax.evaluation.answerers import Answer, AnswererError
from dmax.evaluation.regrade import regrade
from dmax.evaluation.run_folder import RunFolderError
from dmax.evaluation.runner import RunSettings, Share, TaskData, evaluate, read_samples
from dmax.evaluation.tasks import Verdict


class Adding:
    """A task whose rows ask for a sum."""

    name = "adding"
    version = 1
    description = "Sums."
    gen_length = 8
    source = None

    def prompt(self, row: Mapping[str, Any]) -> str:
        return f"{row['a']}+{row['b']}"

    def reference(self, row: Mapping[str, Any]) -> str:
        return str(row["a"] + row["b"])

    def grade(self, row: Mapping[str, Any], text: str) -> Verdict:
        if text == "raise":
            raise RuntimeError("no such grade")
        return Verdict(text == self.reference(row), f"text {text!r}")

    def check(self, row: Mapping[str, Any]) -> None:
        pass

    def row_id(self, row: Mapping[str, Any], index: int) -> str:
        return f"row-{index}"


class Calculator:
    """Answers sums; what ``wrong`` names is answered otherwise, and after ``patience`` batches it is interrupted."""

    def __init__(self, wrong: Mapping[str, str] | None = None, patience: int = 10**9, batch_size: int = 4) -> None:
        self.wrong = wrong or {}
        self.patience = patience
        self.batch_size, self.backend = batch_size, "scripted"
        self.asked: list[str] = []
        self.seeds: list[int] = []

    def answer(self, prompts: Sequence[str], seeds: Sequence[int], gen_length: int) -> list[Answer]:
        if self.patience == 0:
            raise KeyboardInterrupt
        self.patience -= 1
        self.asked += prompts
        self.seeds += seeds
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: str) -> Answer:
        text = self.wrong.get(prompt, str(sum(map(int, prompt.split("+")))))
        if text == "fail":
            return Answer.failed("GenerationError: too long", 0.1)
        return Answer(text, num_tokens=6, passes=2, nfe=3, blocks=1, revisions=1, seconds=0.5, finish_reason="stop")

    def describe(self) -> dict[str, Any]:
        model = {"name": "calculator", "hash": None, "dtype": None, "device": None}
        return {"model": model, "decoder": "sums", "params": {}}


def asked(rows: int = 10) -> list[TaskData]:
    return [TaskData(Adding(), [{"a": i, "b": 2 * i} for i in range(rows)], {"kind": "test"}, gen_length=8)]


def run(folder: Path, calculator: Calculator, rows: int = 10, **settings: Any) -> dict[str, Any] | None:
    return evaluate(
        asked(rows), calculator, folder, RunSettings(**{"seed": 5, "command": ["dmax", "eval"], **settings})
    )


def without_times(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in sample.items() if k != "wall_share"} for sample in read_samples(path)]


def test_every_row_is_answered_graded_and_counted(tmp_path: Path) -> None:
    calculator = Calculator({"3+6": "10"})
    results = run(tmp_path, calculator)
    assert results is not None
    assert json.loads((tmp_path / "results.json").read_text()) == results
    metrics = results["tasks"]["adding"]["metrics"]
    assert (metrics["n"], metrics["accuracy"], metrics["tpf_mean"]) == (10, 0.9, 2.0)
    assert calculator.seeds == list(range(5, 15))
    samples = read_samples(tmp_path / "samples-adding.jsonl")
    assert [sample["index"] for sample in samples] == list(range(10))
    assert [sample["id"] for sample in samples if not sample["correct"]] == ["row-3"]
    assert samples[3]["reference"] == "9"
    assert {"command", "versions", "hardware", "git_commit", "seed", "decoder", "params"} <= results.keys()


def test_a_generation_or_a_grader_that_raises_counts_as_wrong(tmp_path: Path) -> None:
    results = run(tmp_path, Calculator({"1+2": "fail", "2+4": "raise"}))
    assert results is not None
    metrics = results["tasks"]["adding"]["metrics"]
    assert (metrics["n"], metrics["accuracy"]) == (10, 0.8)
    errors = {s["id"]: s["error"] for s in read_samples(tmp_path / "samples-adding.jsonl") if s["error"]}
    assert errors == {"row-1": "GenerationError: too long", "row-2": "grading raised RuntimeError: no such grade"}


@pytest.mark.parametrize("torn", [b"", b'{"index": 4, "id": "row', b"garbage"])
def test_a_run_goes_on_where_it_broke_off(tmp_path: Path, torn: bytes) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, Calculator({"3+6": "10"}))
    with pytest.raises(KeyboardInterrupt):
        run(broken, Calculator({"3+6": "10"}, patience=1))
    assert not (broken / "results.json").exists()
    with (broken / "samples-adding.jsonl").open("ab") as file:
        file.write(torn)
    rest = Calculator({"3+6": "10"})
    assert run(broken, rest) is not None
    assert len(rest.asked) == 6, "what was answered is not asked again"
    name = "samples-adding.jsonl"
    assert without_times(broken / name) == without_times(whole / name)


def test_a_complete_run_is_not_asked_again(tmp_path: Path) -> None:
    first = run(tmp_path, Calculator())
    again = Calculator()
    second = run(tmp_path, again)
    assert first is not None
    assert second is not None
    assert again.asked == []
    assert first == second, "nor described anew"


def test_every_start_that_answered_rows_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was taken up on another machine or commit says so; no figure passes for the last one's alone."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Calculator(patience=1), command=["first"])
    monkeypatch.setattr("dmax.environment.git_commit", lambda: "another")
    results = run(tmp_path, Calculator(), command=["second"])
    assert results is not None
    assert [session["command"] for session in results["sessions"]] == [["first"], ["second"]]
    assert results["sessions"][0]["git_commit"] != "another"
    assert (results["command"], results["git_commit"]) == (["second"], "another")


def test_processes_share_the_rows_and_the_last_one_joins_them(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run(alone, Calculator())
    calculators = [Calculator() for _ in range(3)]
    results = [run(shared, c, share=Share(rank, 3)) for rank, c in enumerate(calculators)]
    assert results[:2] == [None, None]
    assert results[2] is not None
    assert sorted(len(c.asked) for c in calculators) == [3, 3, 4]
    name = "samples-adding.jsonl"
    assert without_times(shared / name) == without_times(alone / name)
    assert sorted(path.name for path in shared.iterdir()) == ["results.json", name, "sessions.jsonl", "settings.json"]
    assert results[2]["tasks"]["adding"]["metrics"]["batch_size"] == 12


def test_parts_that_another_process_joins_meanwhile_are_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, Calculator(), share=Share(0, 2))
    read = Path.read_bytes

    def removed_in_between(path: Path) -> bytes:
        if path.name.endswith("0-of-2.jsonl"):
            path.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", removed_in_between)
    assert run(tmp_path, Calculator(), share=Share(1, 2)) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 6}, "seed"),
        ({"rows": 9}, "tasks"),
        ({"share": Share(0, 2)}, "processes"),
        ({"calculator": Calculator(batch_size=2)}, "batch_size"),
    ],
)
def test_the_folder_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    run(tmp_path, Calculator())
    before = (tmp_path / "samples-adding.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=named):
        run(tmp_path, **{"calculator": Calculator(), **change})
    assert (tmp_path / "samples-adding.jsonl").read_bytes() == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="choose another --out"):
        run(tmp_path, Calculator())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_line_that_is_no_sample_is_reported(tmp_path: Path) -> None:
    run(tmp_path, Calculator())
    path = tmp_path / "samples-adding.jsonl"
    path.write_bytes(b"[]\n" + path.read_bytes())
    with pytest.raises(RunFolderError, match="line 1"):
        run(tmp_path, Calculator())


def test_failed_rows_are_asked_again_and_the_file_is_in_order(tmp_path: Path) -> None:
    run(tmp_path, Calculator({"1+2": "fail", "2+4": "fail"}))
    again = Calculator()
    results = run(tmp_path, again)
    assert results is not None
    assert again.asked == ["1+2", "2+4"]
    assert results["tasks"]["adding"]["metrics"]["failed"] == 0
    assert [sample["index"] for sample in read_samples(tmp_path / "samples-adding.jsonl")] == list(range(10))


def test_failed_rows_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    run(tmp_path, Calculator({"1+2": "fail"}))
    again = Calculator()
    assert run(tmp_path, again, retry_failed=False) is not None
    assert again.asked == []


def test_failed_rows_of_several_processes_are_asked_again(tmp_path: Path) -> None:
    for rank in range(2):
        run(tmp_path, Calculator({"1+2": "fail", "3+6": "fail"}), share=Share(rank, 2))
    results = [run(tmp_path, Calculator(), share=Share(rank, 2)) for rank in range(2)]
    assert results[0] is None
    assert results[1] is not None
    assert results[1]["tasks"]["adding"]["metrics"]["accuracy"] == 1
    assert [sample["index"] for sample in read_samples(tmp_path / "samples-adding.jsonl")] == list(range(10))


def test_a_run_without_answers_stops_and_goes_on(tmp_path: Path) -> None:
    dead = Calculator({f"{i}+{2 * i}": "fail" for i in range(3, 10)})
    with pytest.raises(AnswererError, match=r"4 answers in a row failed.*too long.*same command"):
        run(tmp_path, dead, most_failures=3)
    assert len(dead.asked) == 8
    assert not (tmp_path / "results.json").exists()
    rest = Calculator()
    assert run(tmp_path, rest, most_failures=3) is not None
    assert rest.asked == [f"{i}+{2 * i}" for i in range(3, 10)]


def test_several_samples_a_row_give_pass_at_k(tmp_path: Path) -> None:
    class Drawing(Calculator):
        def answer(self, prompts: Sequence[str], seeds: Sequence[int], gen_length: int) -> list[Answer]:
            answers = super().answer(prompts, seeds, gen_length)
            return [replace(a, text="no") if seed % 2 else a for a, seed in zip(answers, seeds, strict=True)]

    drawing, data = Drawing(), [replace(asked(3)[0], samples=2)]
    results = evaluate(data, drawing, tmp_path, RunSettings(seed=0, command=[]))
    assert results is not None
    metrics = results["tasks"]["adding"]["metrics"]
    assert (metrics["n"], metrics["rows"], metrics["accuracy"]) == (6, 3, 0.5)
    assert metrics["pass_at_k"] == {"1": 0.5, "2": 1.0}
    assert drawing.seeds == list(range(6))
    rows = [(s["id"], s["row"]) for s in read_samples(tmp_path / "samples-adding.jsonl")]
    assert rows == [("row-0", 0), ("row-0", 0), ("row-1", 1), ("row-1", 1), ("row-2", 2), ("row-2", 2)]


def test_stored_answers_are_graded_again_without_asking(tmp_path: Path) -> None:
    run(tmp_path, Calculator({"3+6": "nine", "2+4": "raise", "1+2": "fail"}))

    class Lenient(Adding):
        version = 2

        def grade(self, row: Mapping[str, Any], text: str) -> Verdict:
            return Verdict(True, f"read {text}")

    data = [TaskData(Lenient(), asked()[0].rows, {"kind": "test"}, gen_length=8)]
    results = regrade(data, tmp_path)
    assert results is not None
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["tasks"]["adding"]["version"] == 2
    metrics = results["tasks"]["adding"]["metrics"]
    assert (metrics["accuracy"], metrics["failed"]) == (0.9, 1)
    samples = read_samples(tmp_path / "samples-adding.jsonl")
    assert (samples[3]["reason"], samples[2]["error"], samples[1]["correct"]) == ("read nine", None, False)
    with pytest.raises(RunFolderError, match="other rows"):
        regrade([replace(data[0], rows=data[0].rows[:4])], tmp_path)


def test_waiting_for_a_server_is_no_part_of_the_throughput(tmp_path: Path) -> None:
    class Waiting(Calculator):
        waited = 0.0

        def answer(self, prompts: Sequence[str], seeds: Sequence[int], gen_length: int) -> list[Answer]:
            started = time.perf_counter()
            time.sleep(0.05)
            self.waited += time.perf_counter() - started
            return super().answer(prompts, seeds, gen_length)

    results = run(tmp_path, Waiting())
    assert results is not None
    assert results["tasks"]["adding"]["metrics"]["wall_seconds"] < 0.05
