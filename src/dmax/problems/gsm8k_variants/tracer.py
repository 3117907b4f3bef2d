"""Every number of a solution traced to one source."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise, permutations, product

from dmax.problems.gsm8k_variants.constants import cued_constants, fix_what_is_said
from dmax.problems.gsm8k_variants.expressions import (
    RESIDUES,
    Value,
    constant_fingerprint,
    evaluated,
    fingerprint_of,
    leaves_of,
    tree_of,
)
from dmax.problems.gsm8k_variants.names import changeable_names, name_pieces
from dmax.problems.gsm8k_variants.numbers import (
    DIGITS,
    Node,
    Number,
    Unfit,
    Written,
    decimals_of,
    numbers_in,
    simplified,
    to_number,
)
from dmax.problems.gsm8k_variants.question import Variable, question_numbers, range_of
from dmax.problems.gsm8k_variants.template import Step, Template
from dmax.problems.gsm8k_variants.texts import Piece, Slot, in_pieces, rendered, slot_of
from dmax.problems.word_problems import Equation, equations

LARGEST_UNEXPLAINED = 12
"""A number of a solution that traces to nothing may be a count of things in the story up to here."""
LARGEST_SHARED = 4
"""A number up to here that the solution uses more often than the question says it may be another of the same value."""
LARGEST_GROWTH = 6
"""How many times as large, or as small, a result may become."""
_UNCERTAIN = re.compile(
    r"\^|\*\*|\bround(?:ed|s|ing)?\b(?! trip)|\bnearest\b|\bremainder\b|≈|~|\bapproximately\b", re.I
)
_COMPARES = re.compile(
    r"[<>≤≥]|\b(?:at least|at most|limit|maximum|minimum|greater|cheaper|cheapest|better|whichever|exceeds?|"
    r"enough|qualif\w+|up to|less expensive|fastest|slowest|faster|slower|winner|wins?|highest|lowest|largest|smallest|"
    r"tallest|most|least|first \$?\d+|over \$?\d+|above|below|under|instead|discount|free|overtime|capacity|"
    r"bonus|if (?:he|she|they|it) \w+ (?:more|less|over))\b",
)
"""Where the course of a solution may depend on which number is larger, all of them keep their order."""
_CLAIM = re.compile(rf"\d\)? ?[-+*/] ?[$€£¥(]*{DIGITS}[)%]* ?= ?[$€£¥]?({DIGITS})(?! ?[-+*/])")


def template_of(question: str, solution: str, answer: str) -> Template:
    """Make the template of a row whose notes are part of its text.

    Raises:
        Unfit: its numbers cannot be followed.
    """
    body = solution.rpartition("\n####")[0]
    if not re.fullmatch(r"\d+(\.\d+)?", answer):
        raise Unfit("the answer is no positive number")
    if _UNCERTAIN.search(body.lower()):
        raise Unfit("powers or rounding")
    return _Tracer(question, body, to_number(answer)).template()


class _Tracer:
    """Traces the numbers of one row; starts over with more fixed numbers until each has one source."""

    def __init__(self, question: str, body: str, answer: Number) -> None:
        self.question, self.body, self.answer = question, body, answer
        self.found = equations(body)
        if not self.found:
            raise Unfit("no equation")
        self.written = numbers_in(body)
        self.at = {number.start: number for number in self.written}
        self.operands = {equation: _operands(body, equation, self.written) for equation in self.found}
        self.result_of = {self._result_start(equation): equation for equation in self.found}
        if any(claim.start(1) not in self.result_of for claim in _CLAIM.finditer(body)):
            raise Unfit("an equation that is not exact")
        self.variables, self.constants = question_numbers(question)
        self.constants |= cued_constants(f"{question} {body}")
        fix_what_is_said(self.variables, question, body)

    def _result_start(self, equation: Equation) -> int:
        start = equation.result + (not self.body[equation.result].isdigit())
        if start not in self.at:
            raise Unfit("an equation that is not understood")
        return start

    def template(self) -> Template:
        while True:
            clashing = self._trace()
            if not clashing:
                break
            for index in clashing:
                self.variables[index].fixed = True
        return self._built()

    def _trace(self) -> set[int]:
        """Trace all numbers; the indices of those that must be fixed before trying again."""
        free = [i for i, variable in enumerate(self.variables) if not variable.fixed]
        if not free:
            raise Unfit("no number of the question can be followed")
        self.values = [
            Value(
                v.value,
                constant_fingerprint(v.value) if v.fixed else RESIDUES[i],
                frozenset() if v.fixed else frozenset((i,)),
            )
            for i, v in enumerate(self.variables)
        ]
        self.derived: dict[int, tuple[int, ...]] = {}  # a part of a hundred -> the number that it is worked out from
        self.sources: dict[int, int] = {}  # where a number of the solution stands -> its value
        self.known: dict[Number, list[int]] = {}
        for index, value in enumerate(self.values):
            self.known.setdefault(value.value, []).append(index)
        used: Counter[int] = Counter()
        for equation in self.found:
            clash = self._work_out(equation, used)
            if clash:
                return clash
        unused = {i for i in free if used[i] < _needed(self.variables[i]) or _too_often(self.variables[i], used[i])}
        return unused or self._restated(used) or self._trace_prose()

    def _work_out(self, equation: Equation, used: Counter[int]) -> set[int]:
        """Trace the operands of an equation and add its result; what must be fixed, if anything."""
        leaves = []
        for operand in self.operands[equation]:
            if isinstance(operand, Written):
                clash = self._resolve(operand)
                if clash:
                    return clash
                source = self.sources[operand.start]
                used[source] += 1
                used.update(self.derived.get(source, ()))
            else:
                source = self._constant(operand)
            leaves.append(source)
        node = tree_of(ast.parse(equation.expression, mode="eval").body, iter(leaves))
        value = evaluated(node, [v.value for v in self.values])
        start = self._result_start(equation)
        if value != self.at[start].value:
            raise Unfit("an equation that is not exact")
        self.sources[start] = self._added(value, node)
        return set()

    def _resolve(self, number: Written, candidates: Sequence[int] | None = None) -> set[int]:
        """Find the source of a number; what must be fixed first, if anything."""
        if number.start in self.sources:
            return set()
        if candidates is None:
            candidates = self.known.get(number.value, [])
        candidates = [*candidates, *self._derivations(number.value)]
        if number.value in self.constants or number.value in (0, 1):
            candidates.append(self._constant(number.value))
        if not candidates:
            return self._unexplained(number)
        if len({self.values[i].fingerprint for i in candidates}) > 1:
            clash = frozenset().union(*(self.values[i].hangs_on for i in candidates))
            return set(clash)
        self.sources[number.start] = candidates[0]
        return set()

    def _unexplained(self, number: Written) -> set[int]:
        if not isinstance(number.value, int) or number.value > LARGEST_UNEXPLAINED:
            raise Unfit("a number from nowhere")
        clash = self._related(number.value)
        if not clash:
            self.sources[number.start] = self._constant(number.value)
        return clash

    def _related(self, value: Number) -> set[int]:
        """Find the free numbers of the question that a number may be worked out from in the head."""
        free = {i: v.value for i, v in enumerate(self.variables) if not v.fixed}
        related = {i for i, a in free.items() if value in (a - 1, a + 1, 2 * a, Fraction(a) / 2)}
        for (i, a), (j, b) in permutations(free.items(), 2):
            if value in (a + b, a - b, a * b) or value * b == a:
                related |= {i, j}
        return related

    def _restated(self, used: Mapping[int, int]) -> set[int]:
        """Find the free numbers that must be fixed, since the question also says what is worked out from them."""
        related: set[int] = set()
        for i, variable in enumerate(self.variables):
            if variable.value > 1 and not used.get(i, 0):
                related |= self._related(variable.value)
                for known in self.known[variable.value]:
                    related |= self.values[known].hangs_on
        return related

    def _derivations(self, value: Number) -> list[int]:
        """Find what is ``value`` as a part of a hundred, such as 0.2 or 0.8 or 1.2 for 20%."""
        if isinstance(value, int):
            return []
        found = []
        for i, variable in enumerate(self.variables):
            if variable.fixed or not (variable.kind == "percent" or variable.cents):
                continue
            part = Fraction(variable.value) / 100
            node: Node = ("/", i, self._constant(100))
            if value == part:
                found.append(self._part(value, node, i))
            if variable.kind == "percent" and value in (1 - part, 1 + part):
                sign = "-" if value == 1 - part else "+"
                found.append(self._part(value, (sign, self._constant(1), node), i))
        return found

    def _part(self, value: Number, node: Node, variable: int) -> int:
        index = self._added(value, node)
        self.derived[index] = (variable,)
        return index

    def _constant(self, value: Number) -> int:
        return self._kept(Value(value, constant_fingerprint(value), frozenset()))

    def _added(self, value: Number, node: Node) -> int:
        hangs_on = frozenset().union(*(self.values[i].hangs_on for i in leaves_of(node)))
        if not hangs_on:
            index = self._constant(value)
        else:
            fingerprint = fingerprint_of(node, self.values)
            index = self._kept(Value(value, fingerprint, hangs_on, node))
        known = self.known.setdefault(value, [])
        if index not in known:
            known.append(index)
        return index

    def _kept(self, value: Value) -> int:
        """Return the place of a value, added if it is not there yet."""
        for index, other in enumerate(self.values):
            if other.fingerprint == value.fingerprint and other.value == value.value:
                return index
        self.values.append(value)
        return len(self.values) - 1

    def _trace_prose(self) -> set[int]:
        """Trace the numbers outside of equations, to results up to their line, else to later ones."""
        lines = [m.start() for m in re.finditer("\n", self.body)] + [len(self.body)]
        for number in self.written:
            if number.start in self.sources:
                continue
            line_end = next(end for end in lines if end > number.start)
            there = {self.sources[s] for s in self.result_of if s < line_end} | set(range(len(self.variables)))
            known = self.known.get(number.value, [])
            clash = self._resolve(number, [i for i in known if i in there] or known)
            if clash:
                return clash
        return set()

    def _final(self) -> int:
        """Return the place of the answer among the values."""
        last = self.sources[self._result_start(self.found[-1])]
        if self.values[last].value == self.answer:
            return last
        known = [i for i in self.known.get(self.answer, []) if self.values[i].node is not None]
        if len(known) != 1:
            raise Unfit("the answer is not one of the results")
        return known[0]

    def _built(self) -> Template:
        final = self._final()
        free = [i for i, variable in enumerate(self.variables) if not variable.fixed]
        if not self.values[final].hangs_on:
            raise Unfit("the answer hangs on no number that can be followed")
        question = in_pieces(self.question, self._question_slots(free))
        solution = in_pieces(self.body, self._solution_slots())
        values = tuple(v.value for v in self.values)
        if (rendered(question, values, ()), rendered(solution, values, ())) != (self.question, self.body):
            raise Unfit("a number that is written in an unusual way")
        steps = self._steps(solution)
        everything = _COMPARES.search(f"{self.question} {self.body}".lower())
        names = changeable_names(self.question, self.body)
        return Template(
            question=name_pieces(question, names),
            solution=name_pieces(solution, names),
            answer=final,
            values=values,
            ranges={i: range_of(self.variables[i]) for i in free},
            steps={i: tuple(s for s in steps if i in self.values[s.target].hangs_on) for i in free},
            all_steps=tuple(steps),
            neighbours={i: self._neighbours(i) for i in free},
            order=self._order() if everything else (),
            names=names,
        )

    def _question_slots(self, free: Sequence[int]) -> list[tuple[Written, Slot]]:
        return [
            (number, slot_of(number, i, commas=number.value < 1000))
            for i in free
            for number in self.variables[i].occurrences
        ]

    def _solution_slots(self) -> list[tuple[Written, Slot]]:
        found = []
        for number in self.written:
            source = self.sources[number.start]
            if self.values[source].hangs_on:
                if re.match(r"(?:st|nd|rd|th)\b", self.body[number.end : number.end + 3]):
                    raise Unfit("a result that is an ordinal")
                found.append((number, slot_of(number, source)))
        return found

    def _steps(self, solution: Sequence[Piece]) -> list[Step]:
        spelled = {piece.source for piece in solution if isinstance(piece, Slot) and piece.word}
        for index in spelled & set(range(len(self.variables))):
            self.variables[index].spelled = True
        percents = {
            self.sources[start] for start in self.sources if self.body[self.at[start].end :].lstrip().startswith("%")
        }
        steps = []
        for index, value in enumerate(self.values):
            if value.node is None:
                continue
            low, high = _bounds(value.value)
            if index in spelled:
                high = min(high, 20)
            if index in percents and value.value <= 100:
                high = min(high, 100)
            places = 0 if isinstance(value.value, int) else max(2, decimals_of(value.value))
            places = 4 if index in self.derived else places
            steps.append(Step(index, value.node, 10**places, low, high))
        return steps

    def _neighbours(self, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        own = self.variables[index]
        alike = [(v.value, i) for i, v in enumerate(self.variables) if v.kind == own.kind]
        below = max((pair for pair in alike if pair[0] < own.value), default=None)
        above = min((pair for pair in alike if pair[0] > own.value), default=None)
        return (below[1],) if below else (), (above[1],) if above else ()

    def _order(self) -> tuple[tuple[int, int], ...]:
        """Tell which numbers of the question and results are less than which others; percentages left out."""
        shown = [i for i in range(len(self.variables)) if self.variables[i].kind != "percent"]
        shown += [i for i, value in enumerate(self.values) if value.node is not None and i not in self.derived]
        by_size: dict[Number, list[int]] = {}
        for index in sorted(shown, key=lambda i: self.values[i].value):
            by_size.setdefault(self.values[index].value, []).append(index)
        return tuple(pair for less, more in pairwise(by_size.values()) for pair in product(less, more))


def _needed(variable: Variable) -> int:
    """Tell how often a number must be an operand, so that none may say something else, such as how many steps."""
    small = isinstance(variable.value, int) and variable.value <= LARGEST_UNEXPLAINED
    return len(variable.occurrences) if small else 1


def _too_often(variable: Variable, used: int) -> bool:
    """Tell whether a number so small is an operand so often that one of them may be another number of the story."""
    return variable.value <= LARGEST_SHARED and used > len(variable.occurrences)


def _operands(body: str, equation: Equation, written: Sequence[Written]) -> list[Written | Number]:
    """List the numbers of an equation's expression, in order: those of the text, and those that signs stand for."""
    percent = body[equation.end : equation.end + 1] == "%"
    found: list[Written | Number] = []
    marks = [m.start() for m in re.finditer(r"half(?= \*)", body[equation.start : equation.result])]
    for number in written:
        if not equation.start <= number.start < equation.result or not number.text[0].isdigit():
            continue
        while marks and equation.start + marks[0] < number.start:
            marks.pop(0)
            found += [1, 2]
        found.append(number)
        if body[number.end : number.end + 1] == "%" and not percent:
            found.append(100)
    stated = [to_number(text) for text in re.findall(r"\d+(?:\.\d+)?", equation.expression)]
    if [n.value if isinstance(n, Written) else n for n in found] != stated:
        raise Unfit("an equation that is not understood")
    return found


def _bounds(value: Number) -> tuple[Number, Number]:
    """Return the least and the most that a result may become.

    Raises:
        Unfit: it is not positive.
    """
    if value <= 0:
        raise Unfit("a result that is not positive")
    if value == 1:
        return 1, 1
    if value < 1:
        return Fraction(1, 10_000), Fraction(9_999, 10_000)
    low = max(Fraction(2 if isinstance(value, int) else 1), Fraction(value) / LARGEST_GROWTH)
    return simplified(low), value * LARGEST_GROWTH
