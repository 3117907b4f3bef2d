"""Variants of GSM8K's training problems: the same stories with other numbers, worked out again, and other names.

The calculator notes of a solution (``48/2 = <<48/2=24>>24``) say how each result comes about. Every number of the
solution is traced to one source: a number of the question, an earlier result, or a constant such as the days of a
week. New numbers are drawn for those that can be followed all the way; what could come from two sources keeps its
number, together with everything that it hangs on. GSM8K's rows are read from the caller's copy; none are kept here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from random import Random

from dmax.problems.gsm8k_variants.notes import plain_row
from dmax.problems.gsm8k_variants.numbers import Unfit
from dmax.problems.gsm8k_variants.template import Template
from dmax.problems.gsm8k_variants.texts import rendered, shown_number, with_articles
from dmax.problems.gsm8k_variants.tracer import template_of
from dmax.problems.splits import Split, first_number

MOST_PERMUTATIONS = 8
"""Orders of the problems that are remembered; each is one epoch of one seed."""


class Gsm8kVariants:
    """Endless variants of the problems of GSM8K, made from its rows.

    Args:
        rows: ``question`` and ``answer`` of each problem, as GSM8K has them.
        rename: whether variants have other names of people, too.
    """

    def __init__(self, rows: Iterable[Mapping[str, str]], rename: bool = True) -> None:
        self._rename = rename
        self._plain: list[dict[str, str]] = []
        self._templates: dict[int, Template] = {}
        self.reasons: Counter[str] = Counter()
        for index, row in enumerate(rows):
            self._plain.append(plain_row(row))
            try:
                self._templates[index] = template_of(**self._plain[-1])
            except Unfit as reason:
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
        """Return row ``index`` as it is: ``question``, ``solution`` without calculator notes, and ``answer``."""
        return dict(self._plain[index])

    def problem(self, split: Split, index: int, seed: int = 0, variants_only: bool = False) -> dict[str, str]:
        """Draw problem ``index`` of a split: ``question``, ``solution`` (without calculator notes) and ``answer``.

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

    def _variant(self, template: Template, random: Random) -> dict[str, str]:
        values = template.drawn(random)
        names = template.renamed(random) if self._rename else template.names
        answer = shown_number(values[template.answer])
        return {
            "question": with_articles(rendered(template.question, values, names)),
            "solution": f"{with_articles(rendered(template.solution, values, names))}\n#### {answer}",
            "answer": answer,
        }
