r"""Where a solution states its answer, and what the statement comes to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from dmax.evaluation.grading.arithmetic import CURRENCY, NotArithmetic, leading_value
from dmax.evaluation.grading.number_words import WORD, spelt_anywhere, spelt_as_digits
from dmax.evaluation.grading.numbers import located_numbers
from dmax.evaluation.grading.plain_text import plain, without_latex
from dmax.evaluation.grading.said import said

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_DECORATION = re.compile(
    r"(?:[\s*_`~≈:{→—]|=>|\\(?:to|Rightarrow|rightarrow|implies)(?![A-Za-z])|\\approx\b|=(?!=)|\$(?!\s*[-+0-9.])|\\(?:boxed|bf|large|Large|underline)\b"
    r"|\([a-eA-E]\)|[A-Za-z](?:_\{?\w+\}?)?\s*=(?!=)"
    r"|(?i:(?:so|thus|hence|therefore)\b,?|(?:the\s+)?(?:(?:final|total|correct)\s+)?(?:answer|result|total)\b(?:\s+is\b)?"
    r"|(?:it|there|that)(?:\s+is|\s+are|'s)\b|is\b|about\b|around\b|approximately\b|approx\.|roughly\b|nearly\b|almost\b"
    r"|exactly\b|only\b|just\b|either\b|between\b|from\b|maybe\b|perhaps\b|probably\b|possibly\b|option\b))*"
)
_HEADING = re.compile(r"\(?[0-9]{1,2}\)?\s*(?:[.):]|[-–—]|(?<=\)))\**\s+[^\W\d]")
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!Mr\.)(?<!Mrs\.)(?<!Ms\.)(?<!Dr\.)(?<!\b[A-J]\.)(?<!i\.e\.)(?<!e\.g\.)(?<!vs\.)(?<!approx\.)\s+(?=[^a-z])|\n+"
)
_ONE_SIDED = re.compile(
    r"\s*(?:[A-Za-z]\s*)?(?:[<>≤≥≠≲≳±∓|]|\\(?:[lr]?vert|leq?s?|leqslant|geq?s?|geqslant|lt|gt|neq?|pm|mp|not|in|log|ln|sin|cos|tan|exp|binom|lfloor|lceil|sum|prod|int)(?![A-Za-z])|!=|=="
    r"|(?i:(?:no\s+)?(?:more|less|fewer|greater|higher|lower|larger|smaller)\s+than|over|under|above|below"
    r"|at\s+(?:least|most)|up\s+to|not|log|ln|sin|cos|tan|exp|isn't|aren't|never|neither|no(?!\.))\b)"
)
_START = rf"(?:{CURRENCY}\s{{0,3}})?[-+]?\s?(?:{CURRENCY}\s?)?(?:\.?[0-9]|\\(?:frac|sqrt))"
"""How another number begins."""
_WORDS = r"(?:[^\W\d_]+(?:['.-][^\W\d_]+)*\.?\s+){0,3}"
_CHOICE = re.compile(
    r"^\s*(?:squared|cubed)\b|\b(?:or|and)\s+(?:more|less|fewer|up|above|over|below|higher|lower|greater|beyond)\b|"
    rf"\bor\b\s*(?:maybe|perhaps|possibly|even|about|is\s+it|rather)?\s*\(?(?:[A-Za-z]\s*=\s*)?(?:{_START}|{WORD})"
    rf"|\b(?:maybe|perhaps|possibly|alternatively|not\s+sure|(?:could|might|may)\s+(?:also\s+)?be)\b\W*{_START}"
    r"|\b(?:or|and)\s+\\?(?:boxed|fbox)"
    rf"|^\s*(?:{_WORDS})(?:and|to|through|until|vs\.?|versus|&|plus|minus|times|divided\s+by|multiplied\s+by|over)\s+{_START}"
    rf"|^\s*(?:[,;|&:?]|/|-+|\.\.+|…|\\(?:pm|mp|ldots|dots|cdots|sim)|[±~])\s*(?:or\s+|and\s+|maybe\s+)?{_START}"
    rf"|^\s*{_START}|^\s+(?:(?!(?:of|in|for|at|per|by|from|with|after|on|each|every|is|as|if|because|since|so|where|when|while|but|which|not|rather\s+than|instead\s+of)\b)[^\W\d_]+\.?\s+){{1,2}}{_START}",
    re.IGNORECASE,
)
"""Behind a number: a second one, so that it is open which of them is meant, or what they come to together."""
_CHOICE_IN_BOX = re.compile(rf"^\s*(?:{_WORDS})?[^\W\d_]*\s*[,;]\s*(?:[A-Za-z]\s*=\s*)?{_START}", re.IGNORECASE)
_UNKNOWN = re.compile(r"^\s*(?:[xyznπ](?![\w'°])|\\(?!circ|degree|textdegree|\$|%|#|&|\\|/|boxed|fbox)[A-Za-z]+)")
"""Behind a number: a factor that is none."""
_OPEN = re.compile(
    r"^\s*(?:['’′]\s*[0-9]|[+<>≤≥≠±*√]|\^(?!\s*\{?\s*(?:\\circ|°|\\?[a-zA-Z]))|-\s*[a-z]\b(?!\w)|\\(?:pm|mp|leq?|geq?|lt|gt)\b)"
)
_BESIDE = rf"(?:{_START}[0-9.,]*)"
_RANGE = re.compile(
    rf"(?:\bbetween\s+{_BESIDE}\D{{0,12}}\band|[0-9]\)?\s?(?:-{{1,2}}|~|\\sim))\s*\**$|[0-9]-\\?[$€£]$", re.IGNORECASE
)
"""Before a number that is the far end of a range."""
_WHOLE = re.compile(r"(?:[0-9]\s?%?\sof|\bout\s+of)\s+(?:the\s+|all\s+|these\s+|those\s+|a\s+total\s+of\s+)?[*$]*$")
"""Before the number of all of which an answer is a part, as in 3 out of 4."""
_DENIED = re.compile(
    r"(?:\b(?:not|isn't|aren't|wasn't|never|instead\s+of|rather\s+than)\s+(?:just\s+|only\s+)?)[*$(]*$"
)
_GUESSED = re.compile(r"\b(?:could|might|may)\s+(?:also\s+)?be\s*[*$(]*$|\balternatively,?\s*[*$(]*$", re.IGNORECASE)
_ANSWER = re.compile(
    r"(?<![A-Za-z])answer\b(?:\s+(?:is|was|would\s+be|will\s+be|should\s+be|becomes|comes\s+to))?[\s\"'*_`:=;,—]*"
    r"(?:\\?[(\[]|\$+|\\(?:mathbf|text|textbf|mathrm)\{)?\s*(?=[^\W\d]?\)?\s*[-+$€£¥₹\\.]{0,3}\s?[0-9])",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"[\s*_]*\(|[\s*_]*(?:check|checking|verif\w+|note|explanation|because|since|reason\w*|proof|breakdown|here's|here\s+is|steps?)\b",
    re.IGNORECASE,
)
"""How a sentence begins that does not state the answer anew."""
_CHECK = re.compile(r"[\s*_(]*(?:check|checking|double-check|verif\w+|note)\b", re.IGNORECASE)
_CHECKS = re.compile(r"\n[\s#*_]*(?:(?:double-?)?check|verif\w+)\b[\s:*_]*\n.*", re.IGNORECASE | re.DOTALL)
"""A part of an answer that is headed as a check."""
_ROUNDED = re.compile(r"(?<=[0-9])([^()\n]{0,30})\([^()]*\brounded\b[^()]*\)", re.IGNORECASE)
_CALCULATION = re.compile(rf"(?<![0-9.]){_BESIDE}(?:\s*(?:\+|\*|\\times\b|\\div\b|(?<=\s)[-/](?=\s))\s*{_BESIDE})+$")
"""A calculation that ends a text, without what it comes to."""
_WITH_UNITS = re.compile(rf"{_BESIDE}\s+[^\W\d]+\s*(?:[-+*/]|\\times\b)\s*{_BESIDE}[^=]*=\D*[0-9]")
"""A calculation with units, and what it comes to: ``15 gallons * 8 pints = 120``."""
_MARK = re.compile(r"(?<!#)####(?!#)")
_BETWEEN_BOXES = re.compile(r"[\s$.,;]*(?:or|and)?[\s$]*(?:maybe|perhaps|possibly)?[\s$]*(?:[a-zA-Z]\s*=)?[\s$]*")


@dataclass(frozen=True)
class Reading:
    """What was taken for the answer."""

    value: Fraction | None
    """Its number; None where the statement leaves open which, or comes to none."""
    words: str
    """The statement itself."""
    place: str
    """Where it stands: ``box``, ``####``, ``answer`` (behind that word) or ``last number``."""

    def __str__(self) -> str:
        shown = " ".join(self.words.split())[:80]
        if self.value is None:
            return f"{shown!r} ({self.place}) states no single number"
        return f"number {_shown(self.value)} ({self.place}: {shown!r})"


def read_number(text: str) -> Reading | None:
    r"""Return the number that a solution ends with: what the last ``\boxed{}`` behind the last ``####`` comes to, else
    what stands directly behind the last ``####`` that a number follows, else the last box with a number, else what is
    called the answer last, else the last number at all; None where there is none. Thoughts do not count.

    A ``####`` with a numbered title is a heading, and a box without a number a remark.
    """
    text = said(text)
    parts = _MARK.split(text)
    if len(parts) > 1 and (behind := _read_boxes(parts[-1])):
        return behind
    for number in range(len(parts) - 1, 0, -1):
        line, _, later = parts[number].strip().partition("\n")
        later = "\n".join([later, *parts[number + 1 :]])
        found = _read_marked(line.strip(), later)
        if found is not None:
            return found
    return _read_boxes(text) or _read_prose(plain(text))


def final_number(text: str) -> Fraction | None:
    """Return the number of :func:`read_number`; None also where the statement leaves it open."""
    reading = read_number(text)
    return None if reading is None else reading.value


def same_number(text: str, reference: str) -> bool:
    """Return whether an answer ends with the reference's number, exactly."""
    given, expected = final_number(text), final_number(reference)
    return given is not None and given == expected


def boxed(text: str) -> list[str]:
    r"""Return what stands in each ``\boxed{}`` of a text, the outermost ones, in order; an unclosed box reaches to the
    end."""
    return [text[start:end] for start, end in _box_spans(text)]


def final_statement(text: str) -> str:
    r"""Return the words an answer ends with: the line after the last ``####``, else the last ``\boxed{}``, else its
    last sentence."""
    text = said(text)
    marked = [line for part in _MARK.split(text)[1:] if (line := part.strip().partition("\n")[0].strip())]
    if marked:
        return marked[-1]
    boxes = boxed(text)
    if boxes:
        return boxes[-1]
    sentences = [part for part in _SENTENCE_END.split(text) if re.search(r"\w", part)]
    return sentences[-1].strip() if sentences else ""


def boxes_side_by_side(text: str) -> list[str]:
    """Return the last box and those before it that nothing but "or" and "and" parts from the next one."""
    spans = _box_spans(text)
    first = len(spans) - 1
    while first > 0 and _BETWEEN_BOXES.fullmatch(_between(text, spans, first)):
        first -= 1
    return list(dict.fromkeys(text[slice(*span)] for span in spans[max(first, 0) :]))


def _between(text: str, spans: list[tuple[int, int]], index: int) -> str:
    """Return what stands between a box and the one before it."""
    return text[spans[index - 1][1] + 1 : len(_BOX_START.sub("", text[: spans[index][0]]))]


def _box_spans(text: str) -> list[tuple[int, int]]:
    found = []
    position = 0
    while match := _BOX.search(text, position):
        position = _closing_brace(text, match.end())
        found.append((match.end(), position))
    return found


def _closing_brace(text: str, begin: int) -> int:
    depth, escaped = 1, False
    for position in range(begin, len(text)):
        if escaped:
            escaped = False
            continue
        escaped = text[position] == "\\"
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return len(text)


def _read_boxes(text: str) -> Reading | None:
    """Read the last box that holds a number; it states none where two side by side differ."""
    spans = _box_spans(text)
    for index in range(len(spans) - 1, -1, -1):
        start, end = spans[index]
        reading = _read_box(text[start:end])
        if reading is None:
            continue
        if index:
            beside = _BETWEEN_BOXES.fullmatch(_between(text, spans, index))
            before = _read_box(text[slice(*spans[index - 1])]) if beside else None
            if before is not None and before.value != reading.value:
                return Reading(None, f"{before.words} and {reading.words}", "box")
        return reading
    return None


_TERM = re.compile(r"(?<![A-Za-z\\])[a-zA-Z]\s*[-+*/^]|[-+*^]\s*[a-zA-Z](?![A-Za-z])")
"""A variable in a calculation."""
_BOX_START = re.compile(_BOX.pattern + r"\Z")


def _read_box(content: str) -> Reading | None:
    words = without_latex(plain(content))
    if inner := boxed(words):
        return _read_box(inner[-1])
    words = _in_digits(words)
    if not re.search("[0-9]", words):
        return None
    factorial = re.fullmatch(r"[\s{]*([0-9]{1,3})\s*!\s*[.}]*\s*", words)
    if factorial:
        return Reading(_factorial(int(factorial[1])), content, "box")
    value, begins = _statement_value(words, in_box=True)
    if not begins:
        found = {number for number, _, _ in located_numbers(words)}
        single = len(found) == 1 and not _ONE_SIDED.search(words) and not _TERM.search(words)
        value = found.pop() if single else None
    return Reading(value, content, "box")


def _in_digits(words: str) -> str:
    """Return a statement without digits with those of the number in words that it begins with."""
    return words if re.search("[0-9]", words) else spelt_anywhere(spelt_as_digits(words))


def _factorial(number: int) -> Fraction:
    value = 1
    for factor in range(2, number + 1):
        value *= factor
    return Fraction(value)


def _read_marked(line: str, later: str) -> Reading | None:
    """Read what a line behind ``####`` comes to; None where it is a heading."""
    words = without_latex(plain(line))
    words = words if re.search("[0-9]", later) else _in_digits(words)
    if not re.search("[0-9]", words):
        return None
    if _HEADING.match(words) and not re.search(r"[.!?]\**$", words) and re.search("[0-9]", later):
        return None
    value, begins = _statement_value(words, in_box=False)
    return Reading(value, line, "####") if begins else None


def _read_prose(text: str) -> Reading | None:
    stated = _read_answer(text)
    if stated is not None:
        return stated
    text = _without_checks(text)
    text = text if re.search("[0-9]", text) else spelt_anywhere(text)
    found = located_numbers(text)
    while len(found) > 1 and (_DENIED.search(text[: found[-1][1]]) or _WHOLE.search(text[: found[-1][1]])):
        found.pop()
    if not found:
        return None
    value, start, end = found[-1]
    words = text[max(0, text.rfind("\n", 0, start) + 1, start - 40) : end]
    calculation = _CALCULATION.search(text[:end])
    if calculation:
        return Reading(_statement_value(without_latex(calculation[0]), in_box=True)[0], words, "last number")
    alternative = re.search(r"\bor\s*(?:maybe|perhaps|possibly|even)?\s*\**$", text[:start], re.IGNORECASE)
    if alternative and len(found) > 1 and found[-2][0] != value and len(text[found[-2][2] : alternative.start()]) < 30:
        return Reading(None, words, "last number")
    if _RANGE.search(text[:start]) or _GUESSED.search(text[:start]):
        return Reading(None, words, "last number")
    if re.search(
        r"(?:[<>≤≥≠]|\\(?:leq?|geq?|neq?|lt|gt)|(?:\bnot|n't|\bcannot|\bnever)(?:\s+be)?)\s*\**$", text[:start]
    ):
        return Reading(None, words, "last number")
    return Reading(value, words, "last number")


def _without_checks(text: str) -> str:
    """Drop sentences at the end that check what was said before, and a remark on rounding."""
    if re.search("[0-9]", shorter := _CHECKS.sub("", text)):
        text = shorter
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    for end in reversed(ends):
        if not _CHECK.match(text[end:]) or not re.search("[0-9]", text[:end]):
            break
        text = text[:end]
    return _ROUNDED.sub("", text)


def _read_answer(text: str) -> Reading | None:
    """Read what stands behind the words "the answer is", where no later sentence but a remark holds a number."""
    found = list(_ANSWER.finditer(text))
    if not found:
        return None
    sentence, *later = _SENTENCE_END.split(text[found[-1].end() :])
    if any(re.search("[0-9]", part) and not _REMARK.match(part) for part in later):
        return None
    words = without_latex(sentence)
    value, begins = _statement_value(words, in_box=False)
    return Reading(value, sentence, "answer") if begins else None


def _statement_value(words: str, *, in_box: bool) -> tuple[Fraction | None, bool]:
    """Read the whole value of a statement, None where it has no single one; and whether it begins with a number."""
    if _WITH_UNITS.match(words):
        words = words.rpartition("=")[2]
    start = _DECORATION.match(words)
    assert start is not None
    rest = words[start.end() :]
    if _ONE_SIDED.match(rest):
        return None, True
    several = re.search(r"=[^=]*(?:[,;]|\band\b|\bor\b)[^=]*=", words)
    if several and in_box:
        return None, True
    try:
        value, end, single = leading_value(rest)
    except NotArithmetic:
        after = rest.rpartition("=")[2]
        if after != rest and re.search("[0-9]", after):
            return _statement_value(after, in_box=in_box)
        return None, re.match(_START, rest.lstrip("( {")) is not None
    behind = rest[end:]
    share = re.match(r"\s*%?\s*(?:out\s+)?of\s+[^=,;]*=", behind)
    equals = re.match(r"[^=]*?=\s*(?=[^=])", behind) if not single or in_box or share else None
    if equals and re.search("[0-9]", behind[equals.end() :]):
        last, begins = _statement_value(behind.rpartition("=")[2], in_box=in_box)
        if begins:
            return last, True
    return (None if _leaves_open(behind, in_box=in_box) else value), True


def _leaves_open(behind: str, *, in_box: bool) -> bool:
    """Tell whether what stands behind a number changes it or puts another beside it."""
    bare = re.sub(r"^[*_`$}]+|[$*`]", "", behind)
    if _OPEN.match(bare) or (in_box and _UNKNOWN.match(bare)) or re.match(r"\s*\\(?:pi|sqrt)", bare):
        return True
    if re.match(rf"\s*[,;]\s*[A-Za-z]\s*=\s*{_START}", bare):
        return True
    if not in_box and re.match(r"\s*[,;:][^=,;]*=", bare):  # how it was worked out
        return False
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z])", bare)[0] if not in_box else bare
    if re.match(r"\s*(?:=|\.\s|\.$|\()", bare) and not re.search(
        rf"\b(?:or|maybe|perhaps|possibly)\s+{_START}", sentence
    ):
        return False
    return bool(_CHOICE.search(sentence) or (in_box and _CHOICE_IN_BOX.match(bare)))


def _shown(value: Fraction) -> str:
    return str(value) if len(str(value)) <= 40 else f"{str(value)[:40]}…"
