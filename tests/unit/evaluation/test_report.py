"""Reports of runs made by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from dmax.cli._common.errors import OneLineErrors
from dmax.cli.report import report as report_command
from dmax.evaluation.metrics import ResultsError, summarize
from dmax.evaluation.report import Table, compare, read_runs, to_html, to_markdown


def sample(index: int, correct: bool, **values: Any) -> dict[str, Any]:
    counts = {"num_tokens": 40, "passes": 9, "nfe": 10, "blocks": 2, "revisions": 4, "finish_reason": "stop"}
    text = {"prompt": f"question {index}", "reference": str(index), "text": "#### 7"}
    return {"index": index, "id": f"row-{index}", **text, "correct": correct, **counts, "error": None, **values}


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the folder of a run; ``right`` says which rows it answers right."""

    def write(
        name: str,
        right: Sequence[bool] = (True, False),
        *,
        samples: list[dict[str, Any]] | None = None,
        task: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        samples = [sample(index, correct) for index, correct in enumerate(right)] if samples is None else samples
        values = {"version": 1, "data": {"digest": "abc"}, "metrics": summarize(samples, 2.0, 8), **(task or {})}
        results = {
            "format": 1, "hardware": {"processor": "a CPU", "threads": 2}, "decoder": "threshold", "seed": 0,
            "model": {"name": "nano", "hash": None, "dtype": "float32", "device": "cpu"},
            "params": {"threshold": 0.9, "block_length": 32}, "tasks": {"gsm-symbolic": values}, **changes,
        }  # fmt: skip
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples)
        (folder / "samples-gsm-symbolic.jsonl").write_text(lines, encoding="utf-8")
        return folder

    return write


def cells(markdown: str, row: str) -> list[list[str]]:
    """Cells of all table rows that begin with a name."""
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in markdown.splitlines()
        if line.startswith(f"| {row} |")
    ]


def test_two_runs_side_by_side(write: Write) -> None:
    first = write("slow", [True] * 6 + [False] * 4)
    second = write("fast", [True] * 5 + [False] + [True] * 3 + [False], params={"threshold": 0.5, "block_length": 32})
    markdown = to_markdown(compare(read_runs([first, second])))
    settings, measures, against = cells(markdown, "fast")
    assert settings == ["fast", "nano", "threshold", "threshold 0.5", "cpu, float32", "a CPU"]
    assert "Same in all runs: block_length 32." in markdown
    assert measures[1].startswith("80.0 [")
    assert measures[2:] == ["4.00", "4.00", "200.0", "10.0", "40.0", "4.50", "0.100", "10"]
    assert against[1].startswith("+20.0 [")
    assert against[2:] == ["3", "1", "0.625", "10"]
    assert "Against slow, row by row:" in markdown
    assert "Warning" not in markdown
    assert len(cells(markdown, "slow")) == 2  # the baseline is not compared with itself


def test_another_baseline_turns_the_sign(write: Write) -> None:
    runs = read_runs([write("slow", [True, True]), write("fast", [True, False])])
    [_, _, against] = cells(to_markdown(compare(runs, "fast")), "slow")
    assert against[1].startswith("+50.0 [")
    with pytest.raises(ResultsError, match="'quick' is none of the runs; choose from slow, fast"):
        compare(runs, "quick")


def test_the_conventions_are_stated(write: Write) -> None:
    markdown = to_markdown(compare(read_runs([write("one")])))
    for convention in ("prefill of the prompt counts", "EOS", "Mean:", "Pooled:", "counts as wrong"):
        assert convention in markdown


def test_a_run_alone_shows_all_its_settings(write: Write) -> None:
    markdown = to_markdown(compare(read_runs([write("one")])))
    assert cells(markdown, "one")[0][3] == "threshold 0.9, block_length 32"
    assert "Against" not in markdown


def test_unknown_costs_are_dashes_and_failures_are_named(write: Write) -> None:
    silent = dict.fromkeys(("passes", "nfe", "blocks", "revisions"))
    lost = {**silent, "num_tokens": None, "finish_reason": None, "error": "timeout"}
    folder = write("remote", samples=[sample(0, True, **silent), sample(1, False, **lost)])
    [_, measures] = cells(to_markdown(compare(read_runs([folder]))), "remote")
    assert measures[2:] == ["–", "–", "20.0", "–", "40.0", "–", "–", "2 (1 failed)"]


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"task": {"version": 2}}, "version 2 of the task and first version 1"),
        ({"task": {"data": {"digest": "xyz"}}}, "ran on different data"),
        ({"right": [True]}, "other has 1 row and first has 2; they share 1"),
        ({"samples": [sample(0, True), sample(1, True, prompt="another")]}, "1 row of other asks or expects"),
        ({"samples": [sample(0, True), sample(1, True, reference="9")]}, "1 row of other asks or expects"),
        ({"task": {"gen_length": 64}}, "may have 64 tokens"),
        ({"hardware": {"accelerator": "a GPU"}}, "not comparable: they differ in hardware"),
        ({"model": {"name": "n", "dtype": "bfloat16", "device": "cuda"}}, "they differ in device, dtype"),
        ({"task": {"metrics": summarize([sample(0, True)], 1.0, 1)}}, "they differ in batch size"),
    ],
)
def test_what_keeps_runs_from_being_compared(write: Write, change: dict[str, Any], warning: str) -> None:
    report = compare(read_runs([write("first"), write("other", **change)]))
    assert any(warning in line for line in report.sections[0].warnings), report.sections[0].warnings
    assert f"> **Warning:** {report.sections[0].warnings[0]}" in to_markdown(report)
    assert len(report.sections[0].warnings) == 1


def test_only_shared_rows_are_paired(write: Write) -> None:
    changed = [sample(0, False), sample(1, True, reference="9"), sample(5, True)]
    report = compare(read_runs([write("first", [True, False, True]), write("other", samples=changed)]))
    assert report.sections[0].against is not None
    assert report.sections[0].against.rows[0][2:] == ("0", "1", "1.000", "1")


def test_a_run_without_its_samples_is_shown_but_not_paired(write: Write) -> None:
    first, other = write("first"), write("other")
    (other / "samples-gsm-symbolic.jsonl").unlink()
    section = compare(read_runs([first, other])).sections[0]
    assert section.against is None
    assert section.warnings == ["The samples of other are not in its folder, so it cannot be compared row by row."]


def test_runs_of_different_tasks_stand_apart(write: Write) -> None:
    first = write("first")
    results = json.loads((first / "results.json").read_text(encoding="utf-8"))
    other = write("other", tasks={"asdiv": results["tasks"]["gsm-symbolic"]})
    sections = compare(read_runs([first, other])).sections
    assert [(s.task, s.baseline, len(s.measures.rows)) for s in sections] == [
        ("gsm-symbolic", "first", 1),
        ("asdiv", "other", 1),
    ]


def test_names_are_as_long_as_needed(write: Write) -> None:
    runs = read_runs([write("a/eval"), write("b/eval")])
    assert [run.name for run in runs] == ["a/eval", "b/eval"]
    assert [run.name for run in read_runs([write("c")])] == ["c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no results.json"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 2}', "has format 2"),
        ('{"format": 1, "tasks": {}}', "damaged"),
    ],
)
def test_what_is_no_finished_run(write: Write, content: str | None, message: str) -> None:
    folder = write("run")
    path = folder / "results.json"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ResultsError, match=message):
        read_runs([folder])


def test_answers_may_hold_any_character(write: Write) -> None:
    [run] = read_runs([write("run", samples=[sample(0, True, text="a\u2028b\x85c\x0cd")])])
    assert run.samples["gsm-symbolic"]["row-0"]["text"] == "a\u2028b\x85c\x0cd"


def test_what_else_is_refused(write: Write) -> None:
    folder = write("run")
    with pytest.raises(ResultsError, match="given twice"):
        read_runs([folder, folder / "." / ""])
    with pytest.raises(ResultsError, match="at least one folder"):
        compare([])
    for line in ('{"index": 0', '{"index": 0, "id": "a"}', "[]"):
        (folder / "samples-gsm-symbolic.jsonl").write_text(line, encoding="utf-8")
        with pytest.raises(ResultsError, match=r"gsm-symbolic\.jsonl is damaged"):
            read_runs([folder])


def test_text_cannot_break_a_table() -> None:
    table = Table(("Run", "Model"), [("a|b", "x\ny <b>*z*")])
    assert table.to_markdown().splitlines()[-1] == r"| a\|b | x y &lt;b>\*z\* |"


class Page(HTMLParser):
    """Collects the text of a page and the tags it leaves open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_whole_and_needs_nothing_else(write: Write) -> None:
    hostile = {"name": "<script>alert(1)</script>", "hash": None, "dtype": "float32", "device": "cpu"}
    report = compare(read_runs([write("first"), write("other", [True, True, True], model=hostile)]))
    text = to_html(report)
    page = Page()
    page.feed(text)
    assert page.open == []
    assert "<script>" not in text
    assert "<script>alert(1)</script>" in page.words
    assert not re.search(r"(?:src|href)\s*=|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    for row in (*report.sections[0].measures.rows, *report.notes, *report.sections[0].warnings):
        for piece in [row] if isinstance(row, str) else row:
            assert piece in page.words


@pytest.fixture
def invoke() -> Callable[..., Result]:
    app = typer.Typer(cls=OneLineErrors, pretty_exceptions_enable=False)
    app.command()(report_command)
    app.callback()(lambda: None)
    return lambda *arguments: CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_the_command_prints_markdown_and_writes_a_page(
    write: Write, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    folders, page = [write("slow"), write("fast")], tmp_path / "page.html"
    result = invoke(*folders, "--baseline", "fast", "--html", page)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == to_markdown(compare(read_runs(folders), "fast"))
    assert page.read_text(encoding="utf-8") == to_html(compare(read_runs(folders), "fast"))
    assert "page.html" in result.stderr


def test_the_command_refuses_in_one_sentence(write: Write, invoke: Callable[..., Result], tmp_path: Path) -> None:
    for arguments, sentence in (
        ([tmp_path / "nowhere"], "holds no results.json"),
        ([write("run"), "--baseline", "x"], "choose from run"),
        ([tmp_path / "run", "--html", tmp_path], "it is a folder"),
    ):
        result = invoke(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert sentence in result.stderr
        assert result.stderr.count("\n") == 1


def test_rows_with_the_same_id_are_paired_by_position_and_said(write: Write) -> None:
    twins = [sample(0, True, id="same"), sample(1, False, id="same"), sample(2, True, id="same")]
    other = [{**row, "correct": True} for row in twins]
    for row in (*twins, *other):
        row["prompt"] = row["reference"] = "one"
    section = compare(read_runs([write("first", samples=twins), write("other", samples=other)])).sections[0]
    assert section.against is not None
    assert section.against.rows[0][2:] == ("1", "0", "1.000", "3")
    assert section.warnings[0] == "In first, 2 rows repeat another's id; those are paired by position."
