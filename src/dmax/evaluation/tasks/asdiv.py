"""ASDiv: word problems whose answers are numbers, several numbers, ratios, times of day, or words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from fractions import Fraction
from typing import ClassVar

from dmax.evaluation.grading import boxed, final_number, final_statement, numbers, read_number
from dmax.evaluation.grading.plain_text import plain
from dmax.evaluation.grading.said import said
from dmax.evaluation.tasks.base import PAPER_LENGTH, HubSource, Row, Verdict, one_line, text_of
from dmax.evaluation.tasks.numeric import STEP_BY_STEP

_NUMBER = re.compile(r"-?\(?[0-9]+(?:\.[0-9]+)?(?:/[0-9]+)?\)?")
_UNIT = re.compile(r"\s*\([^()]*[A-Za-z][^()]*\)\s*$")
_RATIO = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?::|/|\bto\b|\\colon)\s*([0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)
_RATIO_FRAC = re.compile(r"\\[dt]?frac\s*\{([0-9]+)\}\s*\{([0-9]+)\}")
_TIME = re.compile(r"([0-9]{1,2})\s*:\s*([0-9]{2})(?:\s*:\s*([0-9]{2}))?(?:\s*([ap])\.?\s*m\b)?", re.IGNORECASE)
_ORDINAL = re.compile(r"\b([0-9]+)(?:st|nd|rd|th)\b", re.IGNORECASE)
_LATEX = re.compile(r"\\[,;:!]|\\[a-zA-Z]+|[{}$]")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_MONTH = re.compile(r"\b(?:Jan|Febr)uary|March|April|May|June|July|August|(?:Sept|Nov|Dec)ember|October")
_NAMED = re.compile(r"(?<=\S)\(([^()]*[A-Za-z][^()]*)\)")
"""A thing compared, as in ``12 apples(Ann) > 9 apples(Ben)``; before a unit there is a space."""
_CLAUSE = re.compile(r"[.,;:!?\n]+|\bbut\b|\bbecause\b|\bsince\b|\bwhile\b", re.IGNORECASE)
_ASIDE = re.compile(r",\s*(?:in\s+fact|actually|however|of\s+course|indeed|at\s+all)\s*,", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(?:not|never|neither|nor|cannot|hardly|no\s+longer|far\s+from|false|untrue|wrong|fail(?:s|ed)?\s+to)\b|\w*n't\b",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\b(?:not|isn't|rather\s+than|instead\s+of)\s+[*$(]*[0-9][0-9:./]*")
"""A number or time that an answer rejects."""
_CONTRARY = {"yes": ["no"], "no": ["yes"]}
_EQUAL = frozenset({"equal", "equally", "equivalent", "same", "tie", "tied"})
_PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


class Asdiv:
    """The grade-school problems of ASDiv, with the columns of its XML file or of the hub's copy."""

    name = "asdiv"
    version = 4
    description = "Grade-school word problems of many kinds; the answers are numbers, ratios, times of day or words."
    grading = (
        r"The answer is what follows the last ####, else the last \boxed{}, else the end of the text. A number must "
        "equal the reference's (a decimal reference also takes what rounds to it), several numbers must be the same "
        "ones in any order, ratios and times of day are compared by value, and of the things that a problem compares "
        "the right one must be named first."
    )
    gen_length = PAPER_LENGTH
    source = HubSource("EleutherAI/asdiv", "asdiv", "validation")
    example: ClassVar[Row] = {
        "ID": "example",
        "Body": "Omar has 5 shells and Tess has 8 shells.",
        "Question": "How many shells do they have together?",
        "Answer": "13 (shells)",
        "Formula": "5+8=13",
    }

    def prompt(self, row: Row) -> str:
        body, question = text_of(row, "Body", "body").strip(), text_of(row, "Question", "question").strip()
        return f"{body} {question}\n{STEP_BY_STEP}"

    def reference(self, row: Row) -> str:
        formula = row.get("Formula", row.get("formula")) or ""
        return f"{formula}\n#### {text_of(row, 'Answer', 'answer')}".lstrip()

    def grade(self, row: Row, text: str) -> Verdict:
        text = plain(said(text))
        reading = read_number(text) if re.search("[0-9]", str(row.get("Answer", row.get("answer")))) else None
        read = str(reading) if reading else f"words {one_line(final_statement(text))!r}"
        return Verdict(self._is_right(row, text), read)

    def _is_right(self, row: Row, text: str) -> bool:
        answer = text_of(row, "Answer", "answer").strip()
        parts = [_UNIT.sub("", part).strip() for part in answer.split(";")]
        if all(_NUMBER.fullmatch(part) for part in parts):
            return _same_numbers(text, parts)
        if ratio := _RATIO.fullmatch(answer):
            kind = row.get("Solution-Type", row.get("solution_type"))
            return _same_ratio(text, ratio) if kind == "Ratio" else _same_time(text, answer)
        if _TIME.match(answer):
            return _same_time(text, answer)
        ordinals = _ORDINAL.findall(answer)
        if ordinals and not _MONTH.search(answer):
            return _same_place(text, int(ordinals[0]))
        formula = str(row.get("Formula", row.get("formula")) or "")
        return _names(text, answer, _NAMED.findall(formula))

    def check(self, row: Row) -> None:
        text_of(row, "Body", "body")
        text_of(row, "Question", "question")
        text_of(row, "Answer", "answer")

    def row_id(self, row: Row, index: int) -> str:
        return str(row.get("ID") or index)


def _same_numbers(text: str, expected: list[str]) -> bool:
    """Tell whether an answer states these numbers, in whatever order."""
    if len(expected) == 1:
        found = [final_number(text)]
    else:
        in_boxes = [number for content in boxed(text) for number in numbers(content)]
        stated = numbers(final_statement(text)) if "####" in text or not in_boxes else in_boxes
        found = list((stated if len(stated) >= len(expected) else numbers(text))[-len(expected) :])
    if len(found) != len(expected) or None in found:
        return False
    wanted = [(final_number(part) or Fraction(0), part) for part in expected]
    pairs = zip(sorted(number for number in found if number is not None), sorted(wanted), strict=True)
    return all(number == value or _rounds_to(number, part) for number, (value, part) in pairs)


def _rounds_to(number: Fraction, reference: str) -> bool:
    """Tell whether a decimal reference is this number, cut to the places that it shows."""
    places = len(reference.partition(".")[2])
    return places > 0 and "/" not in reference and abs(number - Fraction(reference)) * 10**places * 2 <= 1


def _same_ratio(text: str, expected: re.Match[str]) -> bool:
    statement = _stated_or_all(text, (_RATIO, _RATIO_FRAC))
    found = list(_RATIO.finditer(statement)) or list(_RATIO_FRAC.finditer(statement))
    if not found:
        return False
    (up, down), (a, b) = found[-1].groups(), expected.groups()
    return Fraction(up) * Fraction(b) == Fraction(down) * Fraction(a)


def _same_time(text: str, expected: str) -> bool:
    """Tell whether two times of day agree; to the half day only where both tell it."""
    found = list(_TIME.finditer(_stated_or_all(text, (_TIME,))))
    reference = _TIME.search(expected)
    if not found or reference is None:
        return False
    given, wanted = _seconds(found[-1]), _seconds(reference)
    half_day = 12 * 3600
    if all(_tells_half(match) for match in (found[-1], reference)):
        return given == wanted
    return given % half_day == wanted % half_day


def _tells_half(match: re.Match[str]) -> bool:
    return match[4] is not None or not 1 <= int(match[1]) <= 12


def _seconds(match: re.Match[str]) -> int:
    hours, minutes, seconds = int(match[1]), int(match[2]), int(match[3] or 0)
    if match[4] is not None:
        hours = hours % 12 + (12 if match[4].lower() == "p" else 0)
    return (hours * 60 + minutes) * 60 + seconds


def _stated_or_all(text: str, patterns: Iterable[re.Pattern[str]]) -> str:
    """Return the final statement, as it is or without LaTeX, where it holds what is looked for; else the whole."""
    statement = _DENIED.sub("", final_statement(text))
    for candidate in (_LATEX.sub("", statement), statement):
        if any(pattern.search(candidate) for pattern in patterns):
            return candidate
    return text


def _same_place(text: str, place: int) -> bool:
    word = _PLACES[place - 1] if place <= len(_PLACES) else None
    return final_number(text) == place or word in _words(final_statement(text))


def _names(text: str, expected: str, named: list[str]) -> bool:
    """Tell whether the right one of the things that a problem compares is named, and named before the others.

    Args:
        text: the answer.
        expected: the right one, as the data set writes it.
        named: all of them, as the formula does.
    """
    stated, wanted = final_statement(text), _words(expected)
    if not _EQUAL.isdisjoint(wanted):
        return any(not denied and not _EQUAL.isdisjoint(words) for words, denied in _clauses(stated))
    contrary = _CONTRARY.get(expected.lower().strip("."))
    others = {word for name in contrary or named if _words(name) != wanted for word in _words(name)}
    own = [word for word in wanted if word not in others] or wanted
    if not others:
        return all(word in _words(stated) for word in own)
    statement = _words(stated)
    if contrary is None:
        clauses = [
            (words, denied) for words, denied in _clauses(stated) if not denied or not set(own).isdisjoint(words)
        ]
        if not any(not denied and not set(own).isdisjoint(words) for words, denied in clauses):
            return False
        statement = [word for words, _ in clauses for word in words]
    rivals = others.difference(wanted)
    if _left_open(statement, set(own), rivals, {*wanted, *others}):
        return False
    # "Ann's box is heavier than Ben's" names both.
    first = min((statement.index(word) for word in rivals if word in statement), default=len(statement))
    return any(word in statement[:first] for word in own)


def _clauses(statement: str) -> list[tuple[list[str], bool]]:
    """List the words of each clause of a statement, and whether it denies something."""
    parts = _CLAUSE.split(_ASIDE.sub(" ", re.sub("[*_~]", "", statement.replace("’", "'"))))
    return [(_words(part), _DENIAL.search(part) is not None) for part in parts]


def _left_open(statement: list[str], own: Set[str], rivals: Set[str], named: Set[str]) -> bool:
    """Tell whether "or" stands between the right thing and another, or whether both are named and nothing else."""
    only = "and" in statement and {"and", "both", *own, *rivals} >= {*statement}
    if only and not (own.isdisjoint(statement) or rivals.isdisjoint(statement)):
        return True
    for place in (at for at, word in enumerate(statement) if word == "or"):
        before = next((word for word in reversed(statement[:place]) if word in own | rivals or word not in named), "")
        behind = next((word for word in statement[place + 1 :] if word in own | rivals or word not in named), "")
        if (before in own and behind in rivals) or (before in rivals and behind in own):
            return True
    return False


def _words(text: str) -> list[str]:
    """List lower-case words without possessive or plural s, ordinal endings and LaTeX."""
    plain = _ORDINAL.sub(r"\1", _LATEX.sub(" ", text.replace("’", "'")))
    return [word.lower().partition("'")[0].rstrip("s") or "s" for word in _WORD.findall(plain)]
