"""Do the graders of `dmax eval` know right from wrong?

Grades, on every row of the public data sets, the reference answer, the same answer stated otherwise, and answers that
are wrong on purpose. Right ones have to score 100 %, wrong ones 0 %; every row where that is not so is listed, with
the reason where one is known. The exit code is 1 where it is not.

    python benchmarks/reference_answers.py [--data DIR] [--tasks gsm8k,asdiv] [--workers N] [--json FILE]

Without `--data`, rows come from the Hugging Face Hub. With it, the folder holds gsm8k/test.jsonl, asdiv/ASDiv.xml,
math500/math500.jsonl, humaneval/HumanEval.jsonl.gz and mbpp/mbpp.jsonl; a task whose file is not there is left out.

Wrong answers: a number plus one, negated, without its last digit; the other of two things compared; LaTeX plus one,
negated, with its last number one higher; a program whose function returns None, raises, or is off by one.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

from run_record import describe_run, parse_arguments, report

from dmax.evaluation.grading import final_number
from dmax.evaluation.sandbox import available_isolation
from dmax.evaluation.tasks import Row, Task, get_task, load_rows
from dmax.evaluation.tasks.code_answers import called_names
from dmax.evaluation.tasks.programming import fenced

FILES = {
    "gsm8k": "gsm8k/test.jsonl",
    "asdiv": "asdiv/ASDiv.xml",
    "math500": "math500/math500.jsonl",
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "mbpp": "mbpp/mbpp.jsonl",
}
_LAST_NUMBER = re.compile(r"[0-9]+(?=[^0-9]*$)")
Variant = tuple[str, str, bool]
"""What was done to the reference, the answer that came of it, and whether it is right."""

_UNIT = "math-verify leaves units, here with the exponent that was changed, out of the comparison"
KNOWN: dict[tuple[str, str, str], str] = {
    ("asdiv", "nluds-1111", "last number plus one"): "of a time with a date only the time counts; the year was changed",
    ("math500", "23", "negated"): "-(x=5) is no expression; math-verify reads x = 5 in it",
    **{("math500", row, "last number plus one"): _UNIT for row in ("257", "467")},
}
"""Why the verdict on (task, row, variant) is not the one expected."""

_OFF_BY_ONE = """
def _off_by_one(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float, complex)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, (list, tuple)):
        return type(value)([*value, 0])
    if isinstance(value, dict):
        return {**value, "_": 0}
    return 0

def _wrapped(function):
    return lambda *arguments, **named: _off_by_one(function(*arguments, **named))
"""


def numeric_variants(task: Task, row: Row) -> Iterator[Variant]:
    solution, _, stated = task.reference(row).rpartition("####")
    value = final_number(stated)
    assert value is not None
    yield "boxed, with currency and separators", rf"{solution}so \boxed{{\${_decimal(value, ',')}}}.", True
    yield "last number of a sentence", f"The answer is {_decimal(value)} in all.", True
    yield "boxed behind a numbered heading", rf"{solution}#### 1: Check\n\boxed{{{_decimal(value)}.}}", True
    yield "plus one", f"{solution}#### {_decimal(value + 1)}", False
    yield "or one more", f"{solution}#### {_decimal(value)} or {_decimal(value + 1)}", False
    if value:
        yield "negated", f"{solution}#### {_decimal(-value)}", False
    if abs(value) >= 10:
        yield "last digit dropped", f"{solution}#### {_decimal(Fraction(int(value / 10)))}", False


def asdiv_variants(task: Task, row: Row) -> Iterator[Variant]:
    answer = str(row["Answer"])
    yield "boxed", rf"Therefore \boxed{{\text{{{answer}}}}}.", True
    yield "marked in bold", f"#### **{answer}**", True
    if re.search("[0-9]", answer):
        bare = re.sub(r"\([^()]*[a-z][^()]*\)", "", answer)
        yield "last number plus one", f"#### {re.sub(_LAST_NUMBER, _plus_one, bare)}", False
    if re.fullmatch(r"[0-9.]*[1-9][0-9.]* *(\([^()]*\))?", answer):
        yield "negated", f"#### -{answer}", False
    if ";" in answer:
        yield "one number left out", f"#### {answer.rpartition(';')[0]}", False
    if row["Solution-Type"] == "Ratio" and ":" in answer:
        yield "turned round", f"#### {':'.join(reversed(answer.split(':')))}", False
    if not re.search("[0-9]", answer):
        for other in _others(answer, str(row["Formula"])):
            yield "another of the things compared", f"#### {other}", False


def math_variants(task: Task, row: Row) -> Iterator[Variant]:
    answer = task.reference(row).removeprefix(r"\boxed{").removesuffix("}")
    respelled = answer.replace(r"\frac", r"\dfrac").replace(r"\left", "").replace(r"\right", "")
    yield "respelled", rf"We get $\boxed{{ {respelled} }}$.", True
    yield "with a full stop in the box", rf"$\boxed{{{answer}.}}$", True
    yield "in doubled braces, with a comma", rf"\boxed{{{{{answer}}},}}", True
    yield "plus one", rf"\boxed{{{answer} + 1}}", False
    if answer != "0":
        yield "negated", rf"\boxed{{-({answer})}}", False
    if re.search("[0-9]", answer):
        yield "last number plus one", rf"\boxed{{{re.sub(_LAST_NUMBER, _plus_one, answer)}}}", False


def code_variants(task: Task, row: Row) -> Iterator[Variant]:
    code = task.reference(row).removeprefix("```python\n").removesuffix("\n```")
    if "entry_point" in row:
        name = row["entry_point"]
        yield "body alone", row["canonical_solution"], True
    else:
        name = next(
            name for name in called_names(row["test_list"]) if re.search(rf"^def +{name}\b", code, re.MULTILINE)
        )
    yield "fence cut off, with prose", f"```python\n{code}\n\nThis solves it.", True
    yield "returns None", fenced(f"{code}\n\ndef {name}(*arguments, **named):\n    return None"), False
    yield "raises", fenced(f"{code}\n\ndef {name}(*arguments, **named):\n    raise ValueError"), False
    yield "off by one", fenced(f"{code}\n{_OFF_BY_ONE}\n{name} = _wrapped({name})"), False


VARIANTS: dict[str, Callable[[Task, Row], Iterator[Variant]]] = {
    "gsm8k": numeric_variants,
    "asdiv": asdiv_variants,
    "math500": math_variants,
    "humaneval": code_variants,
    "mbpp": code_variants,
}


def _decimal(value: Fraction, group: str = "") -> str:
    return f"{float(value):{group}.6f}".rstrip("0").rstrip(".")


def _plus_one(number: re.Match[str]) -> str:
    """Add one with as many digits as before, so that 3:09 becomes 3:10."""
    return str(int(number[0]) + 1).zfill(len(number[0]))


def _others(answer: str, formula: str) -> list[str]:
    """List the other answers that a comparison could have had."""
    contrary = {"yes": ["No"], "no": ["Yes"]}.get(answer.lower())
    named = re.findall(r"(?<=\S)\(([^()]*[A-Za-z][^()]*)\)", formula)
    return contrary or [name for name in named if name != answer]


def grade_all(task: Task, rows: list[Row], workers: int) -> dict[str, Any]:
    """Grade every variant of every row."""

    def grade(index: int, row: Row) -> list[tuple[str, str, bool, bool]]:
        variants = [("reference", task.reference(row), True), *VARIANTS[task.name](task, row)]
        return [(task.row_id(row, index), kind, right, task.grade(row, text).right) for kind, text, right in variants]

    verdicts = []
    with ThreadPoolExecutor(workers) as pool:
        for done, row_verdicts in enumerate(pool.map(grade, range(len(rows)), rows), 1):
            verdicts += row_verdicts
            if done % 100 == 0 or done == len(rows):
                print(f"{task.name}: {done} of {len(rows)} rows", file=sys.stderr, flush=True)
    kinds: dict[str, dict[str, Any]] = {}
    exceptions = []
    for row_id, kind, right, graded in verdicts:
        entry = kinds.setdefault(kind, {"is": "right" if right else "wrong", "answers": 0, "graded_right": 0})
        entry["answers"] += 1
        entry["graded_right"] += graded
        if graded is not right:
            exceptions.append({"row": row_id, "variant": kind, "reason": KNOWN.get((task.name, row_id, kind))})
    return {"rows": len(rows), "variants": kinds, "exceptions": exceptions}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the data sets; the Hugging Face Hub if left out")
    parser.add_argument("--tasks", default=",".join(FILES), help="names parted by commas")
    parser.add_argument("--limit", type=int, help="rows of each task, from the first on")
    parser.add_argument("--workers", type=int, default=1, help="rows graded at the same time")
    arguments = parse_arguments(parser)
    results: dict[str, Any] = {}
    for name in arguments.tasks.split(","):
        path = arguments.data and arguments.data / FILES[name]
        if path and not path.exists():
            print(f"{name} is left out: there is no {path}.", file=sys.stderr)
            continue
        task = get_task(name)
        rows = load_rows(task, path, arguments.limit)
        started = time.perf_counter()
        graded = grade_all(task, rows, arguments.workers)
        source = {key: Path(value).name if key == "file" else value for key, value in rows.source.items()}
        seconds = round(time.perf_counter() - started, 1)
        results[name] = {"version": task.version, "data": source, **graded, "seconds": seconds}
    run = describe_run()
    run["versions"] |= {package: version(package) for package in ("math-verify", "sympy")}
    report({"tasks": results, **run, "sandbox": str(available_isolation()), "seed": arguments.seed}, arguments.json)
    return int(any(entry["reason"] is None for result in results.values() for entry in result["exceptions"]))


if __name__ == "__main__":
    sys.exit(main())
