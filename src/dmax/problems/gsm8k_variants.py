"""Variants of GSM8K's training problems: the same stories with other numbers, worked out again, and other names.

The calculator notes of a solution (``48/2 = <<48/2=24>>24``) say how each result comes about. Every number of the
solution is traced to one source: a number of the question, an earlier result, or a constant such as the days of a
week. New numbers are drawn for those that can be followed all the way; what could come from two sources keeps its
number, together with everything that it hangs on. GSM8K's rows are read from the caller's copy; none are kept here.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import pairwise, permutations, product
from random import Random
from typing import NamedTuple

from dmax.problems.splits import Split, first_number
from dmax.problems.word_problems import Equation, equations

SWEEPS = 2
"""How often each number of a problem is drawn anew."""
TRIES = 20
"""Draws of one number before it stays as it is."""
MOST_PERMUTATIONS = 8
"""Orders of the problems that are remembered; each is one epoch of one seed."""
LARGEST_UNEXPLAINED = 12
"""A number of a solution that traces to nothing may be a count of things in the story up to here."""
LARGEST_SHARED = 4
"""A number up to here that the solution uses more often than the question says it may be another of the same value."""
LARGEST_GROWTH = 6
"""How many times as large, or as small, a result may become."""

Number = int | Fraction
Node = int | tuple[str, "Node", "Node"]
"""A place in the list of a problem's values, or a sign between two nodes."""

_PRIME = 2**61 - 1
_RESIDUES = tuple(Random("gsm8k-variants fingerprints").sample(range(2, _PRIME), 64))
"""Stand for the free numbers of a question: two results that agree in them are the same function of these."""

_DIGITS = r"\d+(?:,\d{3})*(?:\.\d+)?"
_TO_TWENTY = """
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
twenty
"""
_TENS = "thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = "half third fourth fifth sixth seventh eighth ninth tenth"
_WORDS = {word: value for value, word in enumerate(_TO_TWENTY.split(), 2)}
_SPELLED = {value: word for word, value in _WORDS.items()}
_LARGE_WORDS = {word: 10 * tens for tens, word in enumerate(_TENS.split(), 3)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_LARGE = frozenset((*_LARGE_WORDS, *_SCALES))
_PARTS = {"halves": 2, "quarter": 4, "quarters": 4}
for _parts, _word in enumerate(_ORDINALS.split(), 2):
    _PARTS |= {_word: _parts, _word + "s": _parts}
_ANY_WORD = "|".join(["one", *_WORDS, *_LARGE_WORDS, *_SCALES])
_NUMBER = re.compile(rf"{_DIGITS}|\b(?:{'|'.join(_WORDS)})\b")
_RUN = re.compile(rf"\b(?:{_ANY_WORD})(?:(?:[- ]| and )(?:{_ANY_WORD}))+\b|\b(?:{'|'.join(_LARGE_WORDS)})\b")
"""Number words that make up one number: twenty-five, three hundred."""
_WORD_PART = re.compile(rf"\b({'|'.join(['one', *_WORDS])})[- ]({'|'.join(_PARTS)})\b")
_FRACTION = re.compile(r"(?:\b(\d+) )?(?<![\d.,/])\b(\d+) ?/ ?(\d+)\b(?![/,.]\d)")
_SCALED = re.compile(rf"({_DIGITS}) ?({'|'.join(_SCALES)})\b")

_FIXED_BEFORE = re.compile(
    r"(?:[\dA-Za-z]|[:/#'.]|\d ?[-–]|\d to |\b(?:grade|chapter|room|size|version|level|route|highway|day|week|month|"
    r"year|quarter|step|floor|number|no\.|jan\w*|feb\w*|mar(?:ch)?|apr\w*|may|june?|july?|aug\w*|sept?\w*|oct\w*|nov\w*|"
    r"dec\w*|team|train|stage|phase|class|between(?: [$\d,.]+ and)?) )$",
    re.IGNORECASE,
)
_FIXED_AFTER = re.compile(
    r"(?:[:/'\"°]|st\b|nd\b|rd\b|th\b|[.,]\d|x\b|k\b|m\b| ?[-–] ?\d| to \d| ?(?:[ap]\.?m\b|o'clock)"
    r"|[- ](?:dollar[- ])?(?:bill|note)s?\b"
    r"|[- ](?:sided|wheeler|karat|inning|digit|star|way|piece set)|[- ](?:hundred|thousand|million|billion)\b"
    r"|[- ](?:of them\b|different\b|kinds? of|types? of|sets? of twins)|[\w '-]{0,40}:)",
    re.IGNORECASE,
)
"""What follows a number that stays: times, ordinals, bills, and counts of what is listed after them."""
_LISTED = re.compile(r"(?: [\w']+){1,3},? (?:named |called |namely )?[A-Z]\w+(?:, [A-Z]\w+)*,? and [A-Z]")
_FIXED_WORD_BEFORE = re.compile(r"\b(?:the|these|those|all|other|of|every|at|its|only) $", re.IGNORECASE)
_TOLD_APART = re.compile(
    r"\b(?:the (?:first|second|third|fourth|fifth|sixth|other|last|next|remaining|final)|another|one of)\b",
)
"""Where things are told apart one by one, their number stays."""
_MOST_TOLD_APART = 6
_COMPARES = re.compile(
    r"[<>≤≥]|\b(?:at least|at most|limit|maximum|minimum|greater|cheaper|cheapest|better|whichever|exceeds?|"
    r"enough|qualif\w+|up to|less expensive|fastest|slowest|faster|slower|winner|wins?|highest|lowest|largest|smallest|"
    r"tallest|most|least|first \$?\d+|over \$?\d+|above|below|under|instead|discount|free|overtime|capacity|"
    r"bonus|if (?:he|she|they|it) \w+ (?:more|less|over))\b",
)
"""Where the course of a solution may depend on which number is larger, all of them keep their order."""
_UNCERTAIN = re.compile(
    r"\^|\*\*|\bround(?:ed|s|ing)?\b(?! trip)|\bnearest\b|\bremainder\b|≈|~|\bapproximately\b", re.I
)

_OF_A = "(?:a|per|each|every|of the|in a|out of the)"
_CAPS: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), most)
    for pattern, most in (
        (rf"(?:[\w-]+ ){{0,3}}(?:days?|times|nights?|mornings|evenings) {_OF_A} week", 7),
        (rf"(?:[\w-]+ ){{0,3}}hours? (?:\w+ ){{0,3}}{_OF_A} (?:\w+ )?(?:day|night|morning|evening|weekday|shift)", 12),
        (r"(?:-hour|hours? of sleep|hour (?:shift|day|workday))", 14),
        (rf"(?:days?|times) {_OF_A} month", 28),
        (rf"(?:[\w-]+ )?months? {_OF_A} year", 12),
        (rf"weeks? {_OF_A} month", 4),
        (rf"weeks? {_OF_A} year", 52),
        (r"minutes? (?:a|per|each|every|of each|of every|out of every) hour", 59),
        (r"[- ]years?[- ]old|years of age", 95),
        (r"(?:of|out of)(?: the| every| all)? (?:7|12|24|30)\b", 11),
    )
)
"""The most that a number can be, from what follows it."""

_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_NOTE = re.compile(rf"([$€£¥]?)(?:(?<=[$€£¥]) *)?<<([^<>]*)>> *([$€£¥]?)({_DIGITS}|\.\d+)?")
_CALCULATED = re.compile(r"(?![-+*/ ])(?=.*\d[ )%]*[-+*/])[\d.+\-*/() %]+")
_TIMES = re.compile(r"(?:(?<=[\d)%])| )[xX×]\s?(?=[$€£¥]?[\d(.])")
_BARE_DECIMAL = re.compile(r"(?<=[\s$€£¥(*x+/=-])\.(?=\d)")
_MINUS = re.compile(r"(?<=[\d)%\w]) ?[–−—] ?(?=[$€£¥]?[\d(])")
_SIGN_BETWEEN = re.compile(r"(?<=[\d)%]) ?([-+*/x=]) ?(?=[$€£¥]?[\d(])")
_CLAIM = re.compile(rf"\d\)? ?[-+*/] ?[$€£¥(]*{_DIGITS}[)%]* ?= ?[$€£¥]?({_DIGITS})(?! ?[-+*/])")
_ARTICLE = re.compile(rf"\b([Aa])n?(?= \$?(?:{_DIGITS}|(?:{'|'.join(_WORDS)})\b))(?= (\$?)([\d,]+|\w+))")
_VOWEL = re.compile(r"8|11(?:,|$|\b(?!,))|18(?:,\d{3})?$|eight|eleven|eighteen")

_CUES: dict[str, tuple[Number, ...]] = {}
"""Constants that a word may bring in."""
for _bringing, _constants in (
    ("half halves halfway halved other", (2, Fraction(1, 2), Fraction(3, 2))),
    ("twice double doubled doubles doubling both pair pairs couple couples twin twins parents bike bikes", (2,)),
    (
        "bicycle bicycles legs feet hands eyes arms ears shoes socks round semi biweekly weekend weekends perimeter",
        (2,),
    ),
    ("third thirds triple tripled triples thrice tricycle tricycles triplets triangle triangular", (3, Fraction(1, 3))),
    ("yard yards", (3, 36)),
    ("quarter quarters", (4, Fraction(1, 4), Fraction(3, 4), 25)),
    ("fourth fourths", (4, Fraction(1, 4), Fraction(3, 4))),
    ("quadruple quadrupled quadruplets square squares rectangle rectangular perimeter seasons", (4,)),
    ("legs paws wheels tires", (2, 3, 4, 6, 8)),
    ("fifth fifths", (5, Fraction(1, 5))),
    ("weekday weekdays workday workdays workweek", (5,)),
    ("sixth sixths cube", (6,)),
    ("seventh", (7,)),
    ("eighth eighths spider spiders octopus octopuses", (8,)),
    ("ninth", (9,)),
    ("tenth tenths", (10, Fraction(1, 10))),
    ("week weeks weekly", (4, 7, 52)),
    ("day days daily everyday", (7, 24, 30, 31, 365)),
    ("monday tuesday wednesday thursday friday saturday sunday", (7,)),
    ("month months monthly", (4, 12, 28, 30, 31)),
    ("year years yearly annual annually", (12, 52, 365, 366)),
    ("hour hours hourly", (24, 60, 3600)),
    ("minute minutes", (60, Fraction(1, 2))),
    ("second seconds", (60, 3600)),
    ("decade decades", (10,)),
    ("century centuries percent percentage cent cents dollars penny pennies", (100, Fraction(1, 100))),
    ("dime dimes", (10, Fraction(1, 10))),
    ("nickel nickels", (5, 20, Fraction(1, 20))),
    ("dozen dozens foot feet inch inches noon midnight clock", (12,)),
    ("mile miles", (5280, 1760)),
    ("ounce ounces pound pounds", (16,)),
    ("ton tons", (2000,)),
    ("cup cups pint pints quart quarts gallon gallons", (2, 4, 8, 16, 128)),
    ("kilometer kilometers kilometre km kilogram kilograms kg gram grams liter liters litre litres ml mm mg", (1000,)),
    ("meter meters metre metres cm centimeter centimeters", (10, 100, 1000)),
    ("deck decks", (52,)),
    ("overtime", (Fraction(3, 2),)),
    ("degrees angle angles circle", (90, 180, 360)),
    ("january march may july august october december", (31,)),
    ("april june september november", (30,)),
    ("february", (28, 29)),
):
    for _word in _bringing.split():
        _CUES[_word] = (*_CUES.get(_word, ()), *_constants)

_SAID: dict[str, tuple[Number, ...]] = {
    "half": (2, 50, Fraction(1, 2)),
    "twice": (2, 100, 200),
    "double": (2, 100, 200),
    "doubled": (2, 100, 200),
    "both": (2,),
    "couple": (2,),
    "pair": (2,),
    "triple": (3, 200, 300),
    "thrice": (3,),
    "third": (3,),
    "quarter": (4, 25),
    "fourth": (4, 25),
    "fifth": (5, 20),
    "tenth": (10,),
    "dozen": (12,),
}
"""Numbers that the words of a solution may say again."""

_MEN = """
Aaron Adam Adrian Alan Albert Alfred Andre Andrew Andy Anthony Arnold Arthur Barry Ben Benjamin Bernard Billy Bob
Bobby Brad Brandon Brian Bruce Bryan Caleb Calvin Carl Carlos Charlie Colin Connor Craig Damian Dan Daniel Danny
Darren Dave David Dennis Derek Dominic Donald Doug Duncan Dylan Ed Eddie Edgar Edward Elijah Eric Ethan Eugene Felix
Fernando Fred Freddy Gabriel Gary George Gerald Greg Gregory Hank Harold Harry Hector Henry Howard Ian Isaac Ivan
Jacob Jake Jared Jason Javier Jeff Jeffrey Jeremy Jerome Jerry Jim Jimmy Joe Joel John Johnny Jonah Jonathan Joseph
Josh Joshua Juan Julian Justin Keith Ken Kenneth Kenny Kevin Kyle Larry Leo Leon Leonard Liam Logan Louis Luke Malcolm
Marcus Mario Martin Marvin Matt Matthew Max Michael Mike Nathan Neil Nicholas Nick Noah Norman Oliver Oscar Owen
Patrick Paul Pedro Peter Phil Philip Ralph Randy Raymond Ricardo Richard Rick Robert Rodney Roger Ron Ronald Ryan
Samuel Scott Sean Seth Simon Stan Stephen Steve Steven Stuart Ted Theodore Thomas Tim Timothy Toby Todd Tom Tommy Tony
Travis Trevor Tyler Victor Vincent Walter Wayne William Xavier Zach Zachary
"""
_WOMEN = """
Abigail Adriana Alice Alicia Alison Amanda Amelia Amy Andrea Angela Anita Ann Anna Anne Annie Audrey Barbara Beatrice
Becky Bella Bernice Beth Betty Bianca Brenda Bridget Brittany Camila Carla Carmen Caroline Carrie Cassandra Cassie
Catherine Cathy Cecilia Celia Cheryl Christina Christine Cindy Claire Clara Colleen Cynthia Danielle Deborah Denise
Diana Diane Donna Dorothy Edith Elaine Eleanor Elena Elizabeth Ella Ellen Elsa Emily Emma Erica Erin Esther Eva Evelyn
Fatima Felicia Fiona Gabriela Gail Gina Gloria Gretchen Gwen Hannah Harriet Hazel Heather Heidi Helen Ingrid Irene
Isabel Isabella Jackie Jane Janet Janice Jenna Jennifer Jenny Jessica Jill Joan Joanna Judy Julia Julie Karen Kate
Katherine Kathy Katie Kayla Kendra Kimberly Kristen Kylie Lana Laura Lauren Layla Leah Leila Lena Linda Lisa Lorraine
Lucia Lucy Luna Lydia Maggie Mandy Maria Marie Marilyn Marla Martha Mary Megan Melanie Melissa Mia Michelle Mildred
Miranda Molly Monica Nadia Nancy Naomi Natalie Natasha Nicole Nina Nora Olivia Pamela Patricia Paula Peggy Phoebe
Priscilla Rachel Rebecca Renee Rita Rosa Roxanne Ruth Sally Samantha Sandra Sara Sarah Sasha Selena Sharon Sheila
Shelly Sofia Sonia Sophia Sophie Stacy Stella Stephanie Susan Suzanne Sylvia Tamara Tanya Tara Teresa Tina Tracy
Ursula Valerie Vanessa Vera Veronica Wendy Yolanda Yvonne Zoe
"""
_GENDER = dict.fromkeys(_MEN.split(), 0) | dict.fromkeys(_WOMEN.split(), 1)
_GIVEN = tuple(tuple(name for name in names.split() if not name.endswith("s")) for names in (_MEN, _WOMEN))
_NAME = re.compile(r"(?<!Mr\. )(?<!Mrs\. )(?<!Ms\. )(?<!St\. )\b([A-Z][a-z]+)\b(?!-)('s|')?")
_SURNAMED = re.compile(r"\b([A-Z][a-z]+) [A-Z][a-z]")
_OTHER_NAME = re.compile(r"(?<=[\w,] )[A-Z][a-z]+")
_NAMES_MATTER = re.compile(r"\b(?:names?|letters?|alphabet\w*|spell\w*)\b|(?<!['’])\b[B-HJ-Z]\b(?!\.)")


class _Unfit(Exception):
    """A row whose numbers cannot be followed; says why."""


class _Slot(NamedTuple):
    """Where a text shows a value."""

    source: int
    """Which of the problem's values."""
    places: int
    """Decimals that it has at least, where it has any."""
    commas: bool
    """Whether thousands are set apart."""
    word: str = ""
    """The original word, where the number is spelled."""


class _NameSlot(NamedTuple):
    """Where a text says a name."""

    name: int
    suffix: str


Piece = str | _Slot | _NameSlot


class _Written(NamedTuple):
    """A number as a text has it."""

    start: int
    end: int
    value: Number
    text: str


@dataclass
class _Variable:
    """A number of the question, with all its occurrences."""

    value: Number
    kind: str = "plain"
    places: int = 0
    most: int | None = None
    fixed: bool = False
    spelled: bool = False
    cents: bool = False
    occurrences: list[_Written] = field(default_factory=list)


class _Range(NamedTuple):
    """What a number is drawn from: ``(low + step * k) / scale`` for ``k < size``."""

    low: int
    step: int
    size: int
    scale: int


class _Step(NamedTuple):
    """A result and what it must keep to."""

    target: int
    node: Node
    scale: int
    """A power of ten that makes it whole."""
    low: Number
    high: Number


@dataclass
class _Value:
    """A number that operands can come from."""

    value: Number
    fingerprint: int
    hangs_on: frozenset[int]
    """The free numbers of the question that it is worked out from."""
    node: Node | None = None


@dataclass(frozen=True)
class _Template:
    """A problem whose numbers can be followed."""

    question: tuple[Piece, ...]
    solution: tuple[Piece, ...]
    answer: int
    values: tuple[Number, ...]
    """The original's: numbers of the question, constants, results."""
    ranges: dict[int, _Range]
    steps: dict[int, tuple[_Step, ...]]
    """For each free number the results that hang on it, in the order in which they are worked out."""
    all_steps: tuple[_Step, ...]
    neighbours: dict[int, tuple[tuple[int, ...], tuple[int, ...]]]
    """For each free number those that are less and those that are more, next to it."""
    order: tuple[tuple[int, int], ...]
    """Pairs of values of which the first is less than the second, where all keep their order; else empty."""
    names: tuple[str, ...]

    def drawn(self, random: Random) -> list[Number]:
        """Values in place of the original's, as far as sensible ones were found."""
        values = list(self.values)
        free = list(self.ranges)
        for _ in range(SWEEPS):
            random.shuffle(free)
            for index in free:
                values = self._redrawn((index,), values, random)
        for index in free:
            if values[index] == self.values[index] and len(free) > 1:
                other = free[int(random.random() * len(free))]
                values = self._redrawn((index, other), values, random)
        return values

    def _redrawn(self, indices: tuple[int, ...], values: list[Number], random: Random) -> list[Number]:
        """The values with others at some places; as they are where no draw is sensible."""
        steps = self.steps[indices[0]] if len(indices) == 1 else self.all_steps
        for _ in range(TRIES):
            changed = values.copy()
            for index in indices:
                changed[index] = self._draw(index, random)
            if all(self._is_in_place(index, changed) for index in indices) and self._carried_out(steps, changed):
                return changed
        return values

    def _draw(self, index: int, random: Random) -> Number:
        low, step, size, scale = self.ranges[index]
        scaled = low + step * int(random.random() * size)
        return scaled if scale == 1 else Fraction(scaled, scale)

    def _is_in_place(self, index: int, values: list[Number]) -> bool:
        """Whether a number is another than the original's, of its kind, and in order."""
        value = values[index]
        if value == self.values[index] or (value.denominator == 1) != (self.ranges[index].scale == 1):
            return False
        below, above = self.neighbours[index]
        return all(values[i] < value for i in below) and all(values[i] > value for i in above)

    def _carried_out(self, steps: Sequence[_Step], values: list[Number]) -> bool:
        """Work the steps out, in place; False at the first result that is not sensible."""
        for index, node, scale, low, high in steps:
            value = _evaluated(node, values)
            if not low <= value <= high or (not isinstance(value, int) and scale % value.denominator):
                return False
            values[index] = value
        return all(values[less] < values[more] for less, more in self.order)

    def renamed(self, random: Random) -> list[str]:
        """New names, each of the gender of the one that it takes the place of."""
        taken = set(self.names)
        names = []
        for name in self.names:
            given = _GIVEN[_GENDER[name]]
            while (new := given[int(random.random() * len(given))]) in taken:
                pass
            taken.add(new)
            names.append(new)
        return names


class Gsm8kVariants:
    """Endless variants of the problems of GSM8K, made from its rows.

    Args:
        rows: ``question`` and ``answer`` of each problem, as GSM8K has them.
        rename: whether variants have other names of people, too.
    """

    def __init__(self, rows: Iterable[Mapping[str, str]], rename: bool = True) -> None:
        self._rename = rename
        self._plain: list[dict[str, str]] = []
        self._templates: dict[int, _Template] = {}
        self.reasons: Counter[str] = Counter()
        for index, row in enumerate(rows):
            self._plain.append(_plain(row))
            try:
                self._templates[index] = _template(**self._plain[-1])
            except _Unfit as reason:
                self.reasons[str(reason)] += 1
        self._all = list(range(len(self._plain)))
        self._orders: dict[tuple[int, int, bool], list[int]] = {}

    @property
    def total(self) -> int:
        """How many rows there are."""
        return len(self._plain)

    @property
    def qualified(self) -> int:
        """How many of them have variants."""
        return len(self._templates)

    def plain(self, index: int) -> dict[str, str]:
        """Row ``index`` as it is: ``question``, ``solution`` without calculator notes, and ``answer``."""
        return dict(self._plain[index])

    def problem(self, split: Split, index: int, seed: int = 0, variants_only: bool = False) -> dict[str, str]:
        """Problem ``index`` of a split: ``question``, ``solution`` (without calculator notes) and ``answer``.

        Every run of ``total`` (or ``qualified``) problems has each row once, in an order of its own. Rows without
        variants are given as they are, in all splits alike; of the others, splits and seeds have different draws.

        Args:
            variants_only: leave out the rows without variants.

        Raises:
            SeedError: the split has no such seed.
            ValueError: there are no rows to choose from.
        """
        first = first_number(split, seed)
        count = self.qualified if variants_only else self.total
        if not count:
            raise ValueError("none of the rows has variants." if self.total else "there are no rows.")
        row = self._order(first, index // count, variants_only)[index % count]
        if row not in self._templates:
            return self.plain(row)
        return self._variant(self._templates[row], Random(f"gsm8k-variants {first} {index} {row}"))

    def _order(self, first: int, epoch: int, variants_only: bool) -> list[int]:
        key = first, epoch, variants_only
        if key not in self._orders:
            if len(self._orders) >= MOST_PERMUTATIONS:
                self._orders.pop(next(iter(self._orders)))
            order = list(self._templates) if variants_only else self._all.copy()
            Random(f"gsm8k-variants order {first} {epoch}").shuffle(order)
            self._orders[key] = order
        return self._orders[key]

    def _variant(self, template: _Template, random: Random) -> dict[str, str]:
        values = template.drawn(random)
        names = template.renamed(random) if self._rename else template.names
        answer = _shown(values[template.answer])
        return {
            "question": _with_articles(_rendered(template.question, values, names)),
            "solution": f"{_with_articles(_rendered(template.solution, values, names))}\n#### {answer}",
            "answer": answer,
        }


def _plain(row: Mapping[str, str]) -> dict[str, str]:
    """A row with calculator notes made part of the text, times signs as ``*`` and equations spaced."""
    body, _, answer = row["answer"].partition("####")
    lines = [_spaced(_without_notes(_tidy(line))) for line in body.strip().splitlines()]
    answer = answer.strip().replace(",", "").lstrip("$")
    solution = "\n".join([*lines, f"#### {answer}"])
    return {"question": re.sub(r"[^\S\n]+", " ", row["question"].strip()), "solution": solution, "answer": answer}


def _tidy(line: str) -> str:
    line = re.sub(r"\s+", " ", line.strip())
    line = _MINUS.sub(" - ", _TIMES.sub(" * ", line))
    return re.sub(r"\$ (?=\d)", "$", line)


def _without_notes(line: str) -> str:
    """The line with each note's expression left out where the text has it, and written out where it has not."""
    text, at = "", 0
    for note in _NOTE.finditer(line):
        text += line[at : note.start()]
        expression, _, noted = note[2].rpartition("=")
        shown = note[4] or noted.strip()
        result = (note[1] or note[3]) + shown
        if _CALCULATED.fullmatch(expression.strip()) and not _ends_in(text, expression, result):
            text += _lead(text, expression)
        text += result
        at = note.end()
    return _BARE_DECIMAL.sub("0.", text + line[at:])


def _bare(text: str) -> str:
    return re.sub(r"[\s$€£¥,]", "", text)


def _ends_in(text: str, expression: str, result: str) -> bool:
    """Whether the text ends in an equation with this result."""
    if _bare(text[-3 * len(expression) - 20 :]).endswith(_bare(expression) + "="):
        return True
    whole = _BARE_DECIMAL.sub("0.", text + result)
    found = equations(whole)
    return bool(found) and found[-1].end == len(whole)


def _lead(text: str, expression: str) -> str:
    """What is missing between a text and the result of an expression."""
    space = "" if not text or text[-1] in " ($" else " "
    if _bare(text).endswith(_bare(expression)):
        return f"{space}= "
    return f"{space}{expression.strip()} = "


def _spaced(line: str) -> str:
    """The line with a space on either side of every sign of its equations."""
    for equation in reversed(equations(line)):
        start, end = equation.start, equation.result
        spaced = _SIGN_BETWEEN.sub(r" \1 ", line[start : end + 1])[:-1]
        line = line[:start] + re.sub(r"\s*=\s*$", " = ", spaced) + line[end:]
    return line


@cache
def _number(text: str) -> Number:
    if text in _WORDS:
        return _WORDS[text]
    return _whole(Fraction(text.replace(",", "")))


def _whole(value: Fraction) -> Number:
    return value.numerator if value.denominator == 1 else value


def _numbers(text: str) -> list[_Written]:
    return [_Written(*m.span(), _number(m[0]), text[m.start() : m.end()]) for m in _NUMBER.finditer(text.lower())]


def _template(question: str, solution: str, answer: str) -> _Template:
    """The template of a row whose notes are part of its text.

    Raises:
        _Unfit: its numbers cannot be followed.
    """
    body = solution.rpartition("\n####")[0]
    if not re.fullmatch(r"\d+(\.\d+)?", answer):
        raise _Unfit("the answer is no positive number")
    if _UNCERTAIN.search(body.lower()):
        raise _Unfit("powers or rounding")
    return _Tracer(question, body, _number(answer)).template()


class _Tracer:
    """Traces the numbers of one row; starts over with more fixed numbers until each has one source."""

    def __init__(self, question: str, body: str, answer: Number) -> None:
        self.question, self.body, self.answer = question, body, answer
        self.found = equations(body)
        if not self.found:
            raise _Unfit("no equation")
        self.written = _numbers(body)
        self.at = {number.start: number for number in self.written}
        self.operands = {equation: _operands(body, equation, self.written) for equation in self.found}
        self.result_of = {self._result_start(equation): equation for equation in self.found}
        if any(claim.start(1) not in self.result_of for claim in _CLAIM.finditer(body)):
            raise _Unfit("an equation that is not exact")
        self.variables, self.constants = _question_numbers(question)
        self.constants |= _cued(f"{question} {body}")
        _fix_what_is_said(self.variables, question, body)

    def _result_start(self, equation: Equation) -> int:
        start = equation.result + (not self.body[equation.result].isdigit())
        if start not in self.at:
            raise _Unfit("an equation that is not understood")
        return start

    def template(self) -> _Template:
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
            raise _Unfit("no number of the question can be followed")
        self.values = [
            _Value(
                v.value,
                _constant_fingerprint(v.value) if v.fixed else _RESIDUES[i],
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
            if isinstance(operand, _Written):
                clash = self._resolve(operand)
                if clash:
                    return clash
                source = self.sources[operand.start]
                used[source] += 1
                used.update(self.derived.get(source, ()))
            else:
                source = self._constant(operand)
            leaves.append(source)
        node = _tree(ast.parse(equation.expression, mode="eval").body, iter(leaves))
        value = _evaluated(node, [v.value for v in self.values])
        start = self._result_start(equation)
        if value != self.at[start].value:
            raise _Unfit("an equation that is not exact")
        self.sources[start] = self._added(value, node)
        return set()

    def _resolve(self, number: _Written, candidates: Sequence[int] | None = None) -> set[int]:
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

    def _unexplained(self, number: _Written) -> set[int]:
        if not isinstance(number.value, int) or number.value > LARGEST_UNEXPLAINED:
            raise _Unfit("a number from nowhere")
        clash = self._related(number.value)
        if not clash:
            self.sources[number.start] = self._constant(number.value)
        return clash

    def _related(self, value: Number) -> set[int]:
        """The free numbers of the question that a number may be worked out from in the head."""
        free = {i: v.value for i, v in enumerate(self.variables) if not v.fixed}
        related = {i for i, a in free.items() if value in (a - 1, a + 1, 2 * a, Fraction(a) / 2)}
        for (i, a), (j, b) in permutations(free.items(), 2):
            if value in (a + b, a - b, a * b) or value * b == a:
                related |= {i, j}
        return related

    def _restated(self, used: Mapping[int, int]) -> set[int]:
        """The free numbers that must be fixed, since the question also says what is worked out from them."""
        related: set[int] = set()
        for i, variable in enumerate(self.variables):
            if variable.value > 1 and not used.get(i, 0):
                related |= self._related(variable.value)
                for known in self.known[variable.value]:
                    related |= self.values[known].hangs_on
        return related

    def _derivations(self, value: Number) -> list[int]:
        """What is ``value`` as a part of a hundred, such as 0.2 or 0.8 or 1.2 for 20%."""
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
        return self._kept(_Value(value, _constant_fingerprint(value), frozenset()))

    def _added(self, value: Number, node: Node) -> int:
        hangs_on = frozenset().union(*(self.values[i].hangs_on for i in _leaves(node)))
        if not hangs_on:
            index = self._constant(value)
        else:
            fingerprint = _fingerprint(node, self.values)
            index = self._kept(_Value(value, fingerprint, hangs_on, node))
        known = self.known.setdefault(value, [])
        if index not in known:
            known.append(index)
        return index

    def _kept(self, value: _Value) -> int:
        """The place of a value, added if it is not there yet."""
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
        """The place of the answer among the values."""
        last = self.sources[self._result_start(self.found[-1])]
        if self.values[last].value == self.answer:
            return last
        known = [i for i in self.known.get(self.answer, []) if self.values[i].node is not None]
        if len(known) != 1:
            raise _Unfit("the answer is not one of the results")
        return known[0]

    def _built(self) -> _Template:
        final = self._final()
        free = [i for i, variable in enumerate(self.variables) if not variable.fixed]
        if not self.values[final].hangs_on:
            raise _Unfit("the answer hangs on no number that can be followed")
        question = _pieces(self.question, self._question_slots(free))
        solution = _pieces(self.body, self._solution_slots())
        values = tuple(v.value for v in self.values)
        if (_rendered(question, values, ()), _rendered(solution, values, ())) != (self.question, self.body):
            raise _Unfit("a number that is written in an unusual way")
        steps = self._steps(solution)
        everything = _COMPARES.search(f"{self.question} {self.body}".lower())
        names = _names(self.question, self.body)
        return _Template(
            question=_name_pieces(question, names),
            solution=_name_pieces(solution, names),
            answer=final,
            values=values,
            ranges={i: _range(self.variables[i]) for i in free},
            steps={i: tuple(s for s in steps if i in self.values[s.target].hangs_on) for i in free},
            all_steps=tuple(steps),
            neighbours={i: self._neighbours(i) for i in free},
            order=self._order() if everything else (),
            names=names,
        )

    def _question_slots(self, free: Sequence[int]) -> list[tuple[_Written, _Slot]]:
        return [
            (number, _slot(number, i, commas=number.value < 1000))
            for i in free
            for number in self.variables[i].occurrences
        ]

    def _solution_slots(self) -> list[tuple[_Written, _Slot]]:
        found = []
        for number in self.written:
            source = self.sources[number.start]
            if self.values[source].hangs_on:
                if re.match(r"(?:st|nd|rd|th)\b", self.body[number.end : number.end + 3]):
                    raise _Unfit("a result that is an ordinal")
                found.append((number, _slot(number, source)))
        return found

    def _steps(self, solution: Sequence[Piece]) -> list[_Step]:
        spelled = {piece.source for piece in solution if isinstance(piece, _Slot) and piece.word}
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
            places = 0 if isinstance(value.value, int) else max(2, _places(value.value))
            places = 4 if index in self.derived else places
            steps.append(_Step(index, value.node, 10**places, low, high))
        return steps

    def _neighbours(self, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        own = self.variables[index]
        alike = [(v.value, i) for i, v in enumerate(self.variables) if v.kind == own.kind]
        below = max((pair for pair in alike if pair[0] < own.value), default=None)
        above = min((pair for pair in alike if pair[0] > own.value), default=None)
        return (below[1],) if below else (), (above[1],) if above else ()

    def _order(self) -> tuple[tuple[int, int], ...]:
        """Which numbers of the question and results are less than which others; percentages left out."""
        shown = [i for i in range(len(self.variables)) if self.variables[i].kind != "percent"]
        shown += [i for i, value in enumerate(self.values) if value.node is not None and i not in self.derived]
        by_size: dict[Number, list[int]] = {}
        for index in sorted(shown, key=lambda i: self.values[i].value):
            by_size.setdefault(self.values[index].value, []).append(index)
        return tuple(pair for less, more in pairwise(by_size.values()) for pair in product(less, more))


def _needed(variable: _Variable) -> int:
    """How often a number must be an operand, so that no occurrence may say something else, such as how many steps."""
    small = isinstance(variable.value, int) and variable.value <= LARGEST_UNEXPLAINED
    return len(variable.occurrences) if small else 1


def _too_often(variable: _Variable, used: int) -> bool:
    """Whether a number so small is an operand so often that one of them may be another number of the story."""
    return variable.value <= LARGEST_SHARED and used > len(variable.occurrences)


def _operands(body: str, equation: Equation, written: Sequence[_Written]) -> list[_Written | Number]:
    """The numbers of an equation's expression, in order: those that the text has, and those that signs stand for."""
    percent = body[equation.end : equation.end + 1] == "%"
    found: list[_Written | Number] = []
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
    stated = [_number(text) for text in re.findall(r"\d+(?:\.\d+)?", equation.expression)]
    if [n.value if isinstance(n, _Written) else n for n in found] != stated:
        raise _Unfit("an equation that is not understood")
    return found


def _tree(node: ast.expr, leaves: Iterable[int]) -> Node:
    if isinstance(node, ast.BinOp):
        left = _tree(node.left, leaves)
        return _SIGNS[type(node.op)], left, _tree(node.right, leaves)
    return next(iter(leaves))


def _leaves(node: Node) -> list[int]:
    return [node] if isinstance(node, int) else _leaves(node[1]) + _leaves(node[2])


def _evaluated(node: Node, values: Sequence[Number]) -> Number:
    if isinstance(node, int):
        return values[node]
    sign, left, right = node
    a = values[left] if isinstance(left, int) else _evaluated(left, values)
    b = values[right] if isinstance(right, int) else _evaluated(right, values)
    if sign == "*":
        value = a * b
    elif sign == "+":
        value = a + b
    elif sign == "-":
        value = a - b
    elif b == 0:
        return -1  # never sensible
    else:
        value = a // b if isinstance(a, int) and isinstance(b, int) and a % b == 0 else Fraction(a) / b
    return value if isinstance(value, int) else _whole(value)


def _constant_fingerprint(value: Number) -> int:
    if isinstance(value, int):
        return value % _PRIME
    return value.numerator * pow(value.denominator, -1, _PRIME) % _PRIME


def _fingerprint(node: Node, values: Sequence[_Value]) -> int:
    if isinstance(node, int):
        return values[node].fingerprint
    sign, left, right = node
    a, b = _fingerprint(left, values), _fingerprint(right, values)
    if sign == "/":
        return a * pow(b, -1, _PRIME) % _PRIME if b else 0
    return {"+": a + b, "-": a - b, "*": a * b}[sign] % _PRIME


def _bounds(value: Number) -> tuple[Number, Number]:
    """The least and the most that a result may become.

    Raises:
        _Unfit: it is not positive.
    """
    if value <= 0:
        raise _Unfit("a result that is not positive")
    if value == 1:
        return 1, 1
    if value < 1:
        return Fraction(1, 10_000), Fraction(9_999, 10_000)
    low = max(Fraction(2 if isinstance(value, int) else 1), Fraction(value) / LARGEST_GROWTH)
    return _whole(low), value * LARGEST_GROWTH


def _places(value: Number) -> int:
    """How many decimals it has.

    Raises:
        _Unfit: they do not end.
    """
    for places in range(7):
        if 10**places % value.denominator == 0:
            return places
    raise _Unfit("a result of many decimals")


def _question_numbers(question: str) -> tuple[list[_Variable], set[Number]]:
    """The numbers of a question that may become others, by value, and the constants that its fractions bring in."""
    constants, spans = _constant_spans(question)
    told_apart = bool(_TOLD_APART.search(question.lower()))
    variables: dict[Number, _Variable] = {}
    for number in _numbers(question):
        if any(start < number.end and number.start < end for start, end in spans):
            continue
        variable = variables.setdefault(number.value, _Variable(number.value))
        variable.occurrences.append(number)
        before, after = question[max(0, number.start - 30) : number.start], question[number.end : number.end + 60]
        _note_context(variable, number, before, after)
        if told_apart and variable.kind == "plain" and number.value <= _MOST_TOLD_APART:
            variable.fixed = True
    for constant in constants & set(variables):
        variables[constant].fixed = True
    if len(variables) > len(_RESIDUES):
        raise _Unfit("too many numbers")
    return list(variables.values()), constants


def _note_context(variable: _Variable, number: _Written, before: str, after: str) -> None:
    """Tell from the text around an occurrence what kind of number it is, and whether it may change."""
    spelled = not number.text[0].isdigit()
    if _stays(number, before, after, spelled):
        variable.fixed = True
    if re.match(r" ?(?:%|percent\b)", after):
        variable.kind = "percent"
    elif variable.kind == "plain" and (before.endswith("$") or re.match(r" (?:dollars?|cents?)\b", after)):
        variable.kind = "money"
    variable.cents |= bool(re.match(r" ?(?:cents?\b|¢)", after))
    variable.spelled |= spelled
    _, _, decimals = number.text.partition(".")
    variable.places = max(variable.places, len(decimals))
    for pattern, most in _CAPS:
        if pattern.match(after.lstrip()):
            variable.most = min(most, variable.most or most)


def _stays(number: _Written, before: str, after: str, spelled: bool) -> bool:
    if number.value in (0, 1) or _FIXED_BEFORE.search(before) or _FIXED_AFTER.match(after):
        return True
    if spelled and _FIXED_WORD_BEFORE.search(before):
        return True
    small = number.value <= _MOST_TOLD_APART and not before.endswith("$")
    if small and _LISTED.match(after):
        return True
    return bool(re.fullmatch(r"(?:19|20)\d\d", number.text)) and not before.endswith("$")


def _constant_spans(question: str) -> tuple[set[Number], list[tuple[int, int]]]:
    """The fractions and long number words of a question: constants, and where they stand."""
    question = question.lower()
    constants: set[Number] = set()
    spans = []
    for match in _FRACTION.finditer(question):
        constants |= _parts_of_fraction(int(match[2]), int(match[3]), int(match[1] or 0))
        spans.append(match.span())
    for match in _WORD_PART.finditer(question) if any(word in question for word in _PARTS) else ():
        constants |= _parts_of_fraction(_WORDS.get(match[1], 1), _PARTS[match[2]], 0)
        spans.append(match.span())
    for match in _RUN.finditer(question) if any(word in question for word in _LARGE) else ():
        words = re.split(r"[- ]", match[0])
        if not _LARGE.isdisjoint(words):
            constants |= _parts_of_run(words)
            spans.append(match.span())
    for match in _SCALED.finditer(question):
        scale = _SCALES[match[2]]
        constants |= {_number(match[1]), scale, _number(match[1]) * scale}
        spans.append(match.span())
    return constants, spans


def _parts_of_fraction(numerator: int, denominator: int, whole: int) -> set[Number]:
    if not denominator:
        return set()
    fraction = Fraction(numerator, denominator)
    numbers = {numerator, denominator, denominator - numerator, whole}
    fractions = {fraction, 1 - fraction, 1 + fraction, whole + fraction}
    return {_whole(Fraction(number)) for number in numbers | fractions}


def _parts_of_run(words: Sequence[str]) -> set[Number]:
    """The value of number words such as three hundred and five, and those of its words."""
    total = current = 0
    parts: set[Number] = set()
    for word in words:
        if word in _SCALES:
            current = max(current, 1) * _SCALES[word]
            if word != "hundred":
                total, current = total + current, 0
        elif word != "and":
            current += 1 if word == "one" else _WORDS.get(word) or _LARGE_WORDS[word]
        parts.add(total + current)
    return parts


def _cued(text: str) -> set[Number]:
    constants: set[Number] = {100, Fraction(1, 100)} if "%" in text else set()
    for word in set(re.findall(r"[a-z]+", text.lower())):
        constants.update(_CUES.get(word, ()))
    return constants


def _fix_what_is_said(variables: Sequence[_Variable], question: str, body: str) -> None:
    """Fix the numbers that the solution says in other words than the question."""
    words = set(re.findall(r"[a-z]+", body.lower())) - set(re.findall(r"[a-z]+", question.lower()))
    said = {value for word in words for value in _SAID.get(word, ())}
    for variable in variables:
        variable.fixed |= variable.value in said


def _range(variable: _Variable) -> _Range:
    """What a number is drawn from: about half to twice of it, as round as it is."""
    scale = 1 if isinstance(variable.value, int) else 10**variable.places
    value = int(variable.value * scale)
    step = _step(value, scale)
    low, high = max(value // 2, 2 * step if value > 2 * step else min(value, step)), value * 9 // 5 + 1
    if scale == 1:
        low, high = max(low, 2), max(high, min(5, 2 * value + 1))
    if variable.kind == "percent":
        high = min(high, 95 * scale) if variable.value <= 100 else high
    if variable.most is not None:
        high = min(high, max(variable.most, value))
    if variable.spelled:
        high = min(high, 20)
    low = max(-(-low // step), 1) * step
    return _Range(low, step, max((high - low) // step + 1, 1), scale)


def _step(value: int, scale: int) -> int:
    """The roundness of a number, and of those that may take its place."""
    if scale > 1:
        return next(step for step in (25, 10, 5, 1) if value % step == 0)
    for least, round_to, step in ((10_000, 1000, 500), (1000, 100, 100), (200, 50, 25), (100, 10, 10), (15, 5, 5)):
        if value >= least and value % round_to == 0:
            return step
    return 1


def _slot(number: _Written, source: int, commas: bool = False) -> _Slot:
    if not number.text[0].isdigit():
        return _Slot(source, 0, False, number.text)
    return _Slot(source, len(number.text.partition(".")[2]), commas or "," in number.text)


def _pieces(text: str, slots: Iterable[tuple[_Written, _Slot]]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    at = 0
    for number, slot in sorted(slots):
        pieces += [text[at : number.start], slot]
        at = number.end
    return (*pieces, text[at:])


def _names(question: str, body: str) -> tuple[str, ...]:
    """The names of a question that can be others."""
    known = set(_SURNAMED.findall(f"{question} {body}"))
    found = dict.fromkeys(match[1] for match in _NAME.finditer(question))
    names = [name for name in found if name in _GENDER and name not in known]
    said = {match[1] for match in _NAME.finditer(body)} - {match[1] for match in _NAME.finditer(question)}
    short = {name[:3] for name in names}
    others = set(_OTHER_NAME.findall(body)) - set(re.findall(r"\w+", question))
    unclear = any(name in _GENDER or name[:3] in short for name in said) or others
    if unclear or _NAMES_MATTER.search(f"{question} {body}"):
        return ()
    return tuple(names)


def _name_pieces(pieces: Sequence[Piece], names: Sequence[str]) -> tuple[Piece, ...]:
    if not names:
        return tuple(pieces)
    found: list[Piece] = []
    for piece in pieces:
        if not isinstance(piece, str):
            found.append(piece)
            continue
        at = 0
        for match in _NAME.finditer(piece):
            if match[1] in names:
                found += [piece[at : match.start()], _NameSlot(names.index(match[1]), "'s" if match[2] else "")]
                at = match.end()
        found.append(piece[at:])
    return tuple(found)


def _rendered(pieces: Sequence[Piece], values: Sequence[Number], names: Sequence[str]) -> str:
    parts = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(piece)
        elif isinstance(piece, _NameSlot):
            parts.append(names[piece.name] + piece.suffix)
        elif piece.word:
            word = _SPELLED.get(int(values[piece.source]), "")
            parts.append(word.capitalize() if piece.word[0].isupper() else word)
        else:
            parts.append(_shown(values[piece.source], piece.places, piece.commas))
    return "".join(parts)


def _shown(value: Number, places: int = 0, commas: bool = False) -> str:
    if not isinstance(value, int):
        places = max(places, _places(value))
    elif not places:
        return f"{value:,}" if commas else str(value)
    scaled = int(value * 10**places)
    whole, decimals = divmod(scaled, 10**places)
    return f"{whole:{',' if commas else ''}}.{decimals:0{places}}"


def _with_articles(text: str) -> str:
    """The text with *a* or *an* as the number after it wants."""
    return _ARTICLE.sub(lambda match: match[1] + ("n" if _VOWEL.match(match[3]) else ""), text)
