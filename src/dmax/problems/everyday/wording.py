"""What people do to a question while they type it: number words, lower case, slips of the finger, asides.

Every function takes a :class:`random.Random` and changes the question only; what is asked stays the same.
"""

from __future__ import annotations

import re
from random import Random

UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
UNITS += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
OPENINGS = (
    "Solve this: ", "Please help: ", "Question: ", "Hi! ", "Can you solve this? ", "Here is a problem. ", "Hello, ",
    "Please solve: ", "Quick question: ", "Problem: ", "help me with this one. ", "Q: ",
)  # fmt: skip
ENDINGS = (
    "\nLet's think step by step", " Show your work.", " Thanks!", " Explain step by step.", " Please.",
    " Think step by step.", " Give only the number.", "\nAnswer:", " Show the steps.",
)  # fmt: skip
_LONG_WORD = re.compile(r"\b[a-z]{5,}\b")


def number_word(number: int) -> str:
    """Spell a number below 100: ``forty-two``."""
    if number < 20:
        return UNITS[number]
    tens, units = divmod(number, 10)
    return TENS[tens] + (f"-{UNITS[units]}" if units else "")


def as_typed(question: str, random: Random) -> str:
    """Return a question as some people would type it; four of five stay as they are."""
    if random.random() < 0.04:
        question = _with_slip(question, random)
    if random.random() < 0.05:
        question = question.rstrip("?.!")
    if random.random() < 0.04:
        question = random.choice(OPENINGS) + question
    if random.random() < 0.06:
        question = question.lower()
    if random.random() < 0.05:
        question += random.choice(ENDINGS)
    return question


def _with_slip(text: str, random: Random) -> str:
    """Swap, drop or double a letter inside one long word."""
    words = list(_LONG_WORD.finditer(text))
    if not words:
        return text
    word = random.choice(words)
    at = random.randrange(word.start() + 1, word.end() - 1)
    slips = (text[at + 1] + text[at], text[at], text[at : at + 2] + text[at + 1])
    return text[:at] + random.choice(slips) + text[at + 2 :]
