r"""What written arithmetic comes to, exactly: ``10^6``, ``3+4``, ``2 1/2``, ``\frac{3}{4}``, ``1.5 million``."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_GROUPED = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}|[0-9]{1,3}(?:[\u00a0'’_][0-9]{3})+"
"""1,000,000 and 10,00,000 and 1'000'000."""
_UNGROUPED = r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_DOTTED = r"[0-9]{1,3}(?:\.[0-9]{3}){2,}"
_EURO = r"(?:€|EUR\b|euros?\b|zł|kr\b|CHF\b|R\$)"
_COMMA_DECIMAL = (
    r"(?:[0-9]{1,3}(?:\.[0-9]{3})+|[0-9]{1,3}(?:[ \u00a0'’][0-9]{3})+),[0-9]{1,2}(?![0-9,])"
    rf"|(?:(?<=€)|(?<=€ ))[0-9]+,[0-9]{{2}}(?![0-9,])|[0-9]+,[0-9]{{2}}(?=[\s\u00a0]?{_EURO})"
)
"""1.250,00 and 1 250,5; 12,50 only beside a currency that is written so."""
DIGITS = rf"(?:{_COMMA_DECIMAL}|{_GROUPED}|{_DOTTED}|[0-9]{{1,3}}(?: [0-9]{{3}})+)(?![0-9])(?:\.[0-9]+)?|{_UNGROUPED}"
"""A number that stands by itself."""
DIGITS_IN_PROSE = (
    rf"(?:{_COMMA_DECIMAL}|{_GROUPED}|{_DOTTED}|[0-9]{{1,3}}(?: [0-9]{{3}})* [0-9]{{3}} [0-9]{{3}}"
    rf"|[0-9]{{1,3}} (?:000|[0-9]{{3}}(?=\s?{_EURO})))"
    rf"(?![0-9])(?:\.[0-9]+)?|{_UNGROUPED}"
)
"""A number between words, where 3 100 may be two."""
CURRENCY = r"(?:(?:US|A|C)?\\?\$|[€£¥₹₩]|Rs\.?|USD|EUR|GBP)"
MAGNITUDES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "k": 10**3,
    "K": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "mn": 10**6,
    "M": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "bn": 10**9,
    "B": 10**9,
    "trillion": 10**12,
}
MAGNITUDE = (
    r"(?:[eE](?P<ten>[-+]?[0-9]{1,9})(?![\w.]*[0-9])"
    r"|[ \u00a0-]{0,3}(?P<size>(?:hundred|thousand|lakh|million|crore|billion|trillion)(?=s?\b)|mn\b|bn\b)s?"
    r"|(?P<letter>[kKMB])(?![\w^]))"
)
_NUMBER = re.compile(rf"(?:{CURRENCY}\s{{0,3}})?(?P<digits>{DIGITS}){MAGNITUDE}?")
_FRACTION = re.compile(r"([0-9]+)\s?/\s?([0-9]+)(?![0-9.]*[0-9/])")
_SINGLE = re.compile(r"\s*([0-9])")
_MOST_DIGITS = 4000
"""Python refuses to read or print longer integers."""


class NotArithmetic(ValueError):
    """A text that does not begin with a value, or one that cannot be computed."""


def leading_value(text: str) -> tuple[Fraction, int, bool]:
    """Read as much arithmetic as a text begins with.

    Returns:
        The value, how many characters it takes, and whether it is a single number rather than a calculation.

    Raises:
        NotArithmetic: the text begins with something else, or the value is not rational, too large or undefined.
    """
    reader = _Reader(text)
    try:
        value = reader.sum()
    except (ZeroDivisionError, OverflowError, RecursionError, ValueError) as error:
        raise NotArithmetic(text[:40]) from error
    return value, reader.at, not reader.computed


def magnitude(ten: str | None, size: str | None, letter: str | None) -> Fraction:
    """Return what stands behind a number in words or as ``e6``, as a factor."""
    if ten and abs(int(ten)) > _MOST_DIGITS:
        raise NotArithmetic(ten)
    if ten:
        return Fraction(10) ** int(ten)
    word = size or letter
    return Fraction(MAGNITUDES[word]) if word else Fraction(1)


def digits_value(digits: str) -> Fraction:
    """Return the value of digits with separators."""
    if re.search(r",[0-9]{1,2}$", digits):  # 1.250,00
        digits = re.sub(r"[^0-9,]", "", digits).replace(",", ".")
    if digits.count(".") > 1:  # 1.000.000
        digits = digits.replace(".", "")
    if len(digits) > _MOST_DIGITS:
        raise NotArithmetic(digits[:40])
    return Fraction(re.sub(r"[^0-9.]", "", digits))


class _Reader:
    """A recursive descent over sums, products, powers and numbers; ``at`` is where it stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.computed = False

    def sum(self) -> Fraction:
        value = self._product()
        while sign := self._operator("+-"):
            start = self.at
            try:
                self.at += len(sign)
                after = self._product()
            except (NotArithmetic, ZeroDivisionError):
                self.at = start
                break
            value += after if sign.strip() == "+" else -after
            self.computed = True
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while True:
            start, sign = self.at, self._operator("*/x")
            try:
                self.at += len(sign)
                if not sign and not self._touches():
                    break
                factor = self._signed() if sign else self._power()
            except NotArithmetic:
                self.at = start
                break
            value = value / factor if sign.strip() == "/" else value * factor
            self.computed = True
        return value

    def _touches(self) -> bool:
        """Tell whether a factor follows without a sign: a bracket, a fraction or a root."""
        return re.match(r"\(|\s*\\(?:frac|sqrt)", self.text[self.at :]) is not None

    def _operator(self, signs: str) -> str:
        match = re.compile(rf"\s*[{re.escape(signs)}]\s*").match(self.text, self.at)
        if match is None:
            return ""
        if match[0].strip() == "x" and not re.match(r"[0-9.(\\]", self.text[match.end() :]):
            return ""
        return match[0]

    def _signed(self) -> Fraction:
        match = re.compile(rf"\s*(?:{CURRENCY}\s{{0,3}}(?=[-+]))?([-+]?)\s*").match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        value = self._power()
        return -value if match[1] == "-" else value

    def _power(self) -> Fraction:
        base = self._atom()
        if not re.compile(r"\s?\^(?!\s*\{?\s*(?:\\circ|°|[a-zA-Z]|\\(?:text|mathrm)))").match(self.text, self.at):
            return base
        self.at = self.text.index("^", self.at) + 1
        if match := re.compile(r"-?[0-9]+").match(self.text, self.at):
            self.at = match.end()
            exponent = Fraction(match[0])
        else:
            exponent = self._group()
        self.computed = True
        return _raised(base, exponent)

    def _atom(self) -> Fraction:
        rest = self.text[self.at :]
        if command := re.match(r"\s*\\(frac|sqrt)\s*", rest):
            self.at += command.end()
            return self._root() if command[1] == "sqrt" else self._fraction()
        if re.match(r"\s*[({]", rest):
            return self._group()
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            raise NotArithmetic(rest[:40])
        self.at = match.end()
        value = digits_value(match["digits"]) * magnitude(match["ten"], match["size"], match["letter"])
        plain = not any((match["ten"], match["size"], match["letter"], "." in match["digits"]))
        return value + self._fraction_behind() if plain else value

    def _fraction_behind(self) -> Fraction:
        """Read the rest of a mixed number: ``1/2`` of ``2 1/2``, ``2 and 1/2`` and ``2\\frac12``."""
        joint = re.compile(r"\s+(?:and\s+)?(?=[0-9]+\s?/\s?[0-9])|\s*(?:and\s+)?(?=\\frac)").match(self.text, self.at)
        if joint is None:
            return Fraction(0)
        start, self.at = self.at, joint.end()
        if match := _FRACTION.match(self.text, self.at):
            self.at = match.end()
            value = Fraction(int(match[1]), int(match[2]))
        else:
            self.at = self.text.index("\\frac", self.at) + len("\\frac")
            value = self._fraction()
        if not 0 < value < 1:  # 2 3/2 is no mixed number
            self.at = start
            raise NotArithmetic(self.text[start:][:40])
        return value

    def _fraction(self) -> Fraction:
        return self._argument() / self._argument()

    def _root(self) -> Fraction:
        index = Fraction(2)
        if match := re.compile(r"\[\s*([0-9]{1,3})\s*\]").match(self.text, self.at):
            self.at = match.end()
            index = Fraction(match[1])
        self.computed = True
        bare = re.compile(r"[0-9]+").match(self.text, self.at)
        if bare is None:
            return _raised(self._argument(), 1 / index)
        self.at = bare.end()
        return _raised(Fraction(bare[0]), 1 / index)

    def _argument(self) -> Fraction:
        if match := _SINGLE.match(self.text, self.at):
            self.at = match.end()
            return Fraction(match[1])
        return self._group()

    def _group(self) -> Fraction:
        match = re.compile(r"\s*([({])").match(self.text, self.at)
        if match is None:
            raise NotArithmetic(self.text[self.at :][:40])
        self.at = match.end()
        value = self.sum()
        closing = re.compile(r"\s*\)" if match[1] == "(" else r"\s*\}").match(self.text, self.at)
        if closing is None:
            raise NotArithmetic(self.text[self.at :][:40])
        self.at = closing.end()
        return value


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    """Compute a power or root, where it is rational and of a size that can be written down."""
    root = _exact_root(base, exponent.denominator)
    size = max(abs(root.numerator), root.denominator)
    if size > 1 and abs(exponent.numerator) * math.log10(size) > _MOST_DIGITS:
        raise NotArithmetic("too large")
    return root**exponent.numerator


def _exact_root(value: Fraction, index: int) -> Fraction:
    if index == 1:
        return value
    parts = []
    for part in (abs(value.numerator), value.denominator):
        near = math.isqrt(part) if index == 2 else round(part ** (1 / index))
        found = [root for root in (near - 1, near, near + 1) if root >= 0 and root**index == part]
        if not found:
            raise NotArithmetic("not rational")
        parts.append(found[0])
    if value < 0 and index % 2 == 0:
        raise NotArithmetic("not real")
    return Fraction(parts[0] if value >= 0 else -parts[0], parts[1])
