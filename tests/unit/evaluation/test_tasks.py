from __future__ import annotations

import gzip
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import dmax.evaluation
from dmax.evaluation.tasks import (
    BadRow,
    GeneratedTask,
    Row,
    TaskError,
    describe,
    get_task,
    load_rows,
    task_names,
)
from dmax.evaluation.tasks.code_answers import called_names, complete, find_code

GSM8K_ROW = {"question": "Ada has 4 pens and buys 3 more. How many has she?", "answer": "4+3=<<4+3=7>>7\n#### 7"}
HUB_TASKS = ("gsm8k", "asdiv", "math500", "minerva-algebra", "humaneval", "humaneval+", "mbpp", "mbpp+")


def asdiv_row(answer: str, formula: str = "", kind: str = "Comparison") -> Row:
    return {"Body": "Some story.", "Question": "What?", "Answer": answer, "Formula": formula, "Solution-Type": kind}


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# names


def test_tasks_are_found_by_name() -> None:
    assert {"gsm-symbolic", *HUB_TASKS} <= set(task_names())
    assert all(get_task(name).name == name for name in task_names())
    assert dmax.evaluation.get_task("gsm8k") is get_task("gsm8k")


def test_an_unknown_task_is_named_with_the_nearest_and_all() -> None:
    with pytest.raises(TaskError, match=r"'GSM-8K' is unknown; choose from .*humaneval.* Did you mean 'gsm8k'\?"):
        get_task("GSM-8K")


@pytest.mark.parametrize("name", task_names())
def test_every_task_describes_itself(name: str) -> None:
    task = get_task(name)
    task.check(task.example)
    text = describe(task)
    assert f"{name}, version {task.version}" in text
    assert task.prompt(task.example) in text
    assert task.grading in text
    assert (task.source is None) == isinstance(task, GeneratedTask)


# prompts


@pytest.mark.parametrize(
    ("name", "row", "prompt"),
    [
        ("gsm8k", {"question": "How many? ", "answer": "#### 1"}, "How many?\nLet's think step by step"),
        ("asdiv", {"Body": "A. ", "Question": "B?", "Answer": "1"}, "A. B?\nLet's think step by step"),
        ("asdiv", {"body": "A.", "question": "B?", "answer": "1"}, "A. B?\nLet's think step by step"),
        ("math500", {"prompt": "Whole prompt.", "answer": "1"}, "Whole prompt."),
        ("gsm-symbolic", {"question": "How many?", "answer": "1"}, "How many?"),
    ],
)
def test_prompts(name: str, row: Row, prompt: str) -> None:
    assert get_task(name).prompt(row) == prompt


PROMPT_DIGESTS = {
    "gsm-symbolic": (4, "b20436c18c6e22d4"),
    "everyday": (2, "6843a2f5e09859e3"),
    "parallel-stress": (1, "77a38f0e270c8e19"),
    "gsm8k": (4, "85951e73db9e7438"),
    "asdiv": (4, "1e62319d46c0fba1"),
    "math500": (4, "cac105ddb30a03ac"),
    "minerva-algebra": (4, "cac105ddb30a03ac"),
    "humaneval": (4, "b7e0301f617e336e"),
    "humaneval+": (4, "b7e0301f617e336e"),
    "mbpp": (4, "55a9804b334d07c8"),
    "mbpp+": (4, "55a9804b334d07c8"),
}


@pytest.mark.parametrize("name", task_names())
def test_a_prompt_changes_only_with_the_version(name: str) -> None:
    """Whoever changes a prompt raises the task's version and writes both down here."""
    task = get_task(name)
    digest = hashlib.sha256(task.prompt(task.example).encode()).hexdigest()[:16]
    assert (task.version, digest) == PROMPT_DIGESTS[name]


def test_a_mathematics_prompt_asks_for_a_box() -> None:
    prompt = get_task("math500").prompt({"problem": "What is $1+1$?", "answer": "2"})
    assert prompt.startswith("What is $1+1$?\n")
    assert r"\boxed{}" in prompt


def test_code_prompts_give_and_ask_for_a_python_fence() -> None:
    task = get_task("humaneval")
    assert f"```python\n{task.example['prompt'].rstrip()}\n```" in task.prompt(task.example)
    mbpp = {
        "text": "Add.",
        "code": "def add(a, b): return a + b",
        "test_list": [f"assert add({n}, 1)" for n in range(5)],
    }
    prompt = get_task("mbpp").prompt(mbpp)
    assert "```python\nassert add(0, 1)\nassert add(1, 1)\nassert add(2, 1)\n```" in prompt


# grading of numbers and words


def test_gsm8k_references_are_right_and_other_numbers_wrong() -> None:
    task = get_task("gsm8k")
    assert task.grade(GSM8K_ROW, task.reference(GSM8K_ROW))
    assert task.grade(GSM8K_ROW, r"She has \boxed{7\text{ pens}}.")
    assert not any(task.grade(GSM8K_ROW, text) for text in ("#### 8", "#### -7", "#### 70", "4 and 3", ""))


@pytest.mark.parametrize("name", ["gsm-symbolic", "everyday"])
def test_drawn_problems_need_no_data(name: str) -> None:
    task = get_task(name)
    rows = load_rows(task, limit=3)
    assert len({row["question"] for row in rows}) == 3
    assert rows[:2] == load_rows(task, limit=2)
    assert rows.source == {"generated": name, "seed": 0}
    assert all(task.grade(row, task.reference(row)) for row in rows)
    assert not any(task.grade(row, task.reference(row) + "1") for row in rows)


@pytest.mark.parametrize(
    ("row", "right", "wrong"),
    [
        (asdiv_row("9 (plums)"), ["#### 9 plums", "So 4+5=9.", "nine"], ["#### 10", "#### -9", "ten"]),
        (asdiv_row("3/4 (cup)"), ["#### 0.75", r"\boxed{\frac{3}{4}}"], ["#### 3", "#### 4/3"]),
        (asdiv_row("-(1/3)"), ["#### -1/3"], ["#### 1/3"]),
        (asdiv_row("3.333 (hours)"), ["#### 3.333", "#### 10/3"], ["#### 3.33", "#### 3"]),
        (
            asdiv_row("5 (years old); 15 (years old)"),
            ["#### Bo is 15, Al is 5", r"\boxed{5}, \boxed{15}", "Al is 5 years old and Bo is 15."],
            ["#### 5", "#### 5, 16", "#### 15, 15"],
        ),
        (
            asdiv_row("2:3", kind="Ratio"),
            ["#### 2:3", "2 to 3", r"\boxed{\frac{2}{3}}", "#### 4 : 6", r"\boxed{2 \text{ to } 3}"],
            ["#### 3:2", "#### 2", "#### 2:4"],
        ),
        (
            asdiv_row("3:30 p.m.", kind="Sum"),
            ["#### 3:30 PM", "#### 15:30", "at 3:30", r"\boxed{3\!:\!30 \text{ p.m.}}"],
            ["#### 3:30 a.m.", "#### 3:31 p.m.", "#### 330"],
        ),
        (asdiv_row("14:55", kind="Sum"), ["#### 2:55 pm", "#### 14:55:00"], ["#### 2:55 am"]),
        (asdiv_row("6th"), ["#### 6", "sixth", "the 6th"], ["#### 5th", "fifth"]),
        (asdiv_row("March 3rd"), ["#### March 3", "on 3 March"], ["#### March 4th", "#### May 3rd"]),
        (asdiv_row("Yes"), ["Yes, he can.", r"\boxed{\text{yes}}"], ["No.", "He can."]),
        (
            asdiv_row("Al's box", "7 kg(Al's box) > 5 kg(Bo's box)"),
            ["#### Al", "Al's box is heavier than Bo's box.", "#### Al’s box"],
            ["#### Bo's box", "Bo's box is heavier than Al's.", "#### box"],
        ),
        (
            asdiv_row("They are equal", "1/2(Al) equals 2/4(Bo)"),
            ["Both are equal.", "#### the same"],
            ["#### Al", "Bo has more."],
        ),
    ],
)
def test_asdiv_answers_of_every_kind(row: Row, right: list[str], wrong: list[str]) -> None:
    task = get_task("asdiv")
    assert task.grade(row, task.reference(row))
    assert [text for text in right if not task.grade(row, text)] == []
    assert [text for text in wrong if task.grade(row, text)] == []


# mathematics


def test_mathematics_is_compared_by_value_from_any_thread() -> None:
    task, row = get_task("math500"), {"problem": "?", "answer": r"\frac{1}{2}"}
    right = [r"so \boxed{0.5}", r"\boxed{\dfrac12}", r"\boxed{\frac{1}{2}}"]
    wrong = [r"\boxed{\frac{1}{3}}", "no idea", "", r"\boxed{((((}"]
    with ThreadPoolExecutor(4) as pool:
        assert [v.right for v in pool.map(partial(task.grade, row), right + wrong)] == [True] * 3 + [False] * 4


def test_a_comparison_that_hangs_is_wrong_and_the_next_one_works() -> None:
    from dmax.evaluation.tasks.math_verifier import MathVerifier

    verifier = MathVerifier(seconds=1)
    assert not verifier.same(r"\boxed{5}", r"\boxed{9^{9^{9^{9}}}}")
    assert verifier.same(r"\boxed{5}", r"\boxed{10/2}")


def test_the_reference_of_a_solution_is_its_last_box() -> None:
    task = get_task("minerva-algebra")
    row = {"problem": "?", "solution": r"First \boxed{1}, no: \boxed{\frac{x}{2}}."}
    task.check(row)
    assert task.grade(row, task.reference(row))
    assert not task.grade(row, r"\boxed{\frac{x}{3}}")


# code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Sure:\n```python\ndef f(x):\n    return x\n```\nDone.", "def f(x):\n    return x\n"),
        (
            "```py\nimport os\n```\nand\n```python\ndef f(x):\n    return 1\n```\n```\nf(3)\n```",
            "def f(x):\n    return 1\n",
        ),
        (
            "```python\ndef f(x):\n    return 1\n```\nBetter:\n```python\ndef f(x):\n    return 2\n```",
            "def f(x):\n    return 2\n",
        ),
        ("```python\ndef f(x):\n    return 1", "def f(x):\n    return 1"),
        ("1. Do it:\n   ```python\n   def f(x):\n       return 1\n   ```", "def f(x):\n    return 1\n"),
        ("```bash\nls\n```\n```python\nf = len\n```", "f = len\n"),
        ("Here it is.\nimport re\ndef f(x):\n    return x\nIt returns x.", "import re\ndef f(x):\n    return x"),
        ("y = 2\ndef f(x):\n    return y", "y = 2\ndef f(x):\n    return y"),
        ("    return x", "    return x"),
    ],
)
def test_the_code_of_an_answer(text: str, code: str) -> None:
    assert find_code(text, ("f",)) == code


PROMPT = 'from typing import List\n\ndef g():\n    return 1\n\ndef f(x: List[int]) -> int:\n    """Doc."""\n'


@pytest.mark.parametrize(
    "code",
    [
        "def f(x: List[int]) -> int:\n    y = x[0]\n    return y + g()",
        "from __future__ import annotations\ndef f(x):\n    return x[0] + g()",
        "    y = x[0]\n    return y + g()",
        "y = x[0]\nreturn y + g()",
        "y = x[0]\n    return y + g()",
        "    return x[0] + g()\n\nThis adds g.",
    ],
)
def test_an_answer_may_be_a_whole_function_or_its_body(code: str) -> None:
    names: dict[str, Any] = {}
    exec(complete(PROMPT, code, "f"), names)
    assert names["f"]([2]) == 3


def test_the_function_of_some_assertions() -> None:
    assert called_names(["assert sorted(f(3)) == [1]", "assert math.isclose(f(2), 3)", "assert ("]) == ("f",)
    assert called_names(["assert sum(1, 2) == 3"]) == ("sum",)


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_code_is_run_against_the_tests(name: str) -> None:
    task = get_task(name)
    row = task.example
    reference = task.reference(row)
    assert task.grade(row, reference)
    assert not task.grade(row, reference.replace("2", "3"))
    assert not task.grade(row, "I do not know.")


def test_evalplus_tests_are_one_program() -> None:
    task = get_task("mbpp+")
    row = {**task.example, "test_imports": ["import math"], "test": "assert count_even([2]) == math.floor(1.5)\n"}
    assert task.grade(row, task.reference(row))
    assert not task.grade({**row, "test": "assert count_even([2]) == 2\n"}, task.reference(row))


# rows


def test_files_of_every_kind(tmp_path: Path) -> None:
    task = get_task("gsm8k")
    lines = write_lines(tmp_path / "a.jsonl", GSM8K_ROW, GSM8K_ROW)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    array = tmp_path / "a.json"
    array.write_text(json.dumps([GSM8K_ROW, GSM8K_ROW]))
    table = tmp_path / "a.csv"
    table.write_text('question,answer\n"How\nmany?",#### 7\nHow?,#### 8\n')
    assert all(len(load_rows(task, path)) == 2 for path in (lines, packed, array, table))
    rows = load_rows(task, lines, limit=1)
    assert rows == [GSM8K_ROW]
    assert rows.source["file"] == str(lines)
    assert len(rows.source["sha256"]) == 64
    assert task.row_id(rows[0], 0) == "0"


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("gsm-symbolic", {"question": "How many?", "answer": "7", "solution": 7}, "column 'solution' must be text"),
        ("parallel-stress", {"kind": "twist"}, "column 'kind' must be one of copy, reverse, sort, replace, shuffle"),
        ("parallel-stress", {"words": None}, "words"),
    ],
)
def test_a_row_that_could_not_be_graded_is_bad(name: str, row: Row, problem: str) -> None:
    task = get_task(name)
    with pytest.raises(BadRow, match=problem):
        task.check({**task.example, **row})


def test_a_list_is_graded_by_its_rule() -> None:
    task = get_task("parallel-stress")
    rows = load_rows(task, limit=20)
    assert all(task.grade(row, task.reference(row)) for row in rows)
    assert not any(task.grade(row, task.reference(row) + ", zebra") for row in rows)
    assert task.row_id(rows[1], 1) == "reverse-1"


def test_parquet_files(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = dict(get_task("mbpp").example)
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert load_rows(get_task("mbpp"), tmp_path / "a.parquet") == [row]


def test_asdiv_comes_as_xml(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(
        '<M><ProblemSet><Problem ID="p-1" Grade="1" Source="s"><Body>Al has 2 figs.</Body><Question>Now?</Question>'
        "<Solution-Type>X</Solution-Type><Answer>2 (figs)</Answer><Formula>2=2</Formula></Problem></ProblemSet></M>"
    )
    task = get_task("asdiv")
    [row] = load_rows(task, path)
    assert row["Solution-Type"] == "X"
    assert task.row_id(row, 0) == "p-1"
    assert task.reference(row) == "2=2\n#### 2 (figs)"


def test_malformed_lines_are_named_by_number(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", GSM8K_ROW)
    with path.open("a") as file:
        file.write('\n{"question": "cut off\n[1]\n{"question": "?", "answer": "none"}\n')
    task = get_task("gsm8k")
    with pytest.raises(TaskError, match=r"line 3 of .*a.jsonl is no gsm8k row: it is not JSON .*; mend it, or leave"):
        load_rows(task, path)
    assert load_rows(task, path, limit=1) == [GSM8K_ROW]
    rows = load_rows(task, path, skip_bad=True)
    assert rows == [GSM8K_ROW]
    assert [line.partition(":")[0] for line in rows.skipped] == ["line 3", "line 4", "line 5"]
    assert rows.skipped[2] == "line 5: column 'answer' holds no number"


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"answer": "#### 1"}, "there is no column 'question'; it has answer"),
        ("gsm8k", {"question": 3, "answer": "#### 1"}, "column 'question' must hold text, not int"),
        ("gsm8k", {"question": " ", "answer": "#### 1"}, "column 'question' is empty"),
        ("asdiv", {"Body": "b", "Question": "q"}, "there is no column 'Answer' or 'answer'"),
        ("minerva-algebra", {"problem": "p", "solution": "none"}, r"column 'solution' has no \\boxed"),
        (
            "humaneval",
            {"prompt": "x", "entry_point": "f", "test": "t", "canonical_solution": "s"},
            "does not define 'f'",
        ),
        ("mbpp", {"text": "t", "code": "c", "test_list": "assert f()"}, "'test_list' must hold a list of texts"),
    ],
)
def test_bad_rows_say_which_column(name: str, row: Row, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        get_task(name).check(row)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.txt", b"", "no known kind; give a file ending in .jsonl"),
        ("a.jsonl", b"\n", "holds no gsm8k rows"),
        ("a.jsonl", b"\xff\xfe", "not a whole .jsonl file"),
        ("a.jsonl.gz", b"text", "cannot be read: Not a gzipped file"),
        ("a.json", b'{"a": 1}', "must hold a list of rows"),
        ("a.xml", b"<a><b></a>", "not a whole .xml file"),
        ("a.xml", b"<!DOCTYPE a><a/>", "declarations of types and entities are not read"),
    ],
)
def test_unusable_files(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(TaskError, match=message):
        load_rows(get_task("gsm8k"), tmp_path / file)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"none.jsonl cannot be read: No such file"):
        load_rows(get_task("gsm8k"), tmp_path / "none.jsonl")
    with pytest.raises(TaskError, match="is a folder; give the file"):
        load_rows(get_task("gsm8k"), tmp_path)
    with pytest.raises(TaskError, match="must be at least 1, not 0"):
        load_rows(get_task("gsm8k"), limit=0)


@pytest.mark.parametrize("name", HUB_TASKS)
def test_a_hub_that_cannot_be_reached_is_told_in_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers at that port
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    task = get_task(name)
    started = time.monotonic()
    with pytest.raises(TaskError, match=r"^no data set .* cannot be reached .* with --data\.$") as error:
        load_rows(task)
    assert str(task.source) in str(error.value)
    assert time.monotonic() - started < 10


def test_rows_from_the_hub_come_out_of_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit, cached = "0123456789" * 4, tmp_path / "datasets--openai--gsm8k"
    (cached / "refs" / "refs" / "convert").mkdir(parents=True)
    (cached / "refs" / "refs" / "convert" / "parquet").write_text(commit)
    for split, rows in (("train", []), ("test", [GSM8K_ROW])):
        folder = cached / "snapshots" / commit / "main" / split
        folder.mkdir(parents=True)
        parquet.write_table(pyarrow.table({c: [r[c] for r in rows] for c in GSM8K_ROW}), folder / "0000.parquet")
    loaded = load_rows(get_task("gsm8k"))
    assert loaded == [GSM8K_ROW]
    assert loaded.source == {"dataset": "openai/gsm8k", "config": "main", "split": "test", "revision": commit}
