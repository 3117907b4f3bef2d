"""Which sequence holds which page of the KV cache, and which pages can serve a prompt that begins alike.

A page is ``free`` (nothing worth keeping), ``held`` (by one or more sequences) or ``idle`` (held by none, but its
contents are known and may be asked for again). Idle pages are given up, least recently used first, when no free page
is left. Only whole, final pages are ever shared, so no sequence writes to a page that another holds.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

Key = bytes
"""Names the contents of a page: everything from position 0 to the page's end, and the block length."""


class PagePool:
    """Bookkeeping of ``pages`` pages, numbered from 0; the memory itself is elsewhere."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.queries = 0
        """Whole prompt pages that were looked up."""
        self.hits = 0
        """Those that were there."""
        self.evictions = 0
        """Idle pages given up for new contents."""
        self._free = OrderedDict.fromkeys(range(pages))
        self._holders = [0] * pages
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._page_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}

    @property
    def available(self) -> int:
        """Pages that can be taken now."""
        return len(self._free) + len(self._idle)

    @property
    def held(self) -> int:
        """Pages that sequences hold."""
        return self.pages - self.available

    @property
    def cached(self) -> int:
        """Pages whose contents are known, held or idle."""
        return len(self._page_of)

    def take(self, after: int | None = None) -> int:
        """Take a page for new contents, the one behind ``after`` if that is free: neighbours need no copy to be read.

        Raises:
            IndexError: no page is available.
        """
        if after is not None and after + 1 in self._free:
            page = after + 1
            del self._free[page]
        elif self._free:
            page, _ = self._free.popitem(last=False)
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
            self.evictions += 1
        else:
            raise IndexError("no page is available")
        self._holders[page] = 1
        return page

    def release(self, pages: Iterable[int]) -> None:
        """Give up one hold on each page, the last ones first: the front of a prompt is the likeliest to come again."""
        for page in reversed(list(pages)):
            self._holders[page] -= 1
            assert self._holders[page] >= 0
            if self._holders[page]:
                continue
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free[page] = None

    def reuse(self, keys: Sequence[Key]) -> list[int]:
        """Hold the pages of the longest run of ``keys``, from the first, whose contents are there."""
        found: list[int] = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            self._idle.pop(page, None)
            self._holders[page] += 1
            found.append(page)
        return found

    def count(self, queries: int, hits: int) -> None:
        """Count an admission: whole prompt pages that were looked up, and those that were there."""
        self.queries += queries
        self.hits += hits

    def publish(self, page: int, key: Key) -> None:
        """State what a held page contains, now that it is final; a second page of the same contents stays private."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key


def page_keys(tokens: Sequence[int], page_length: int, block_length: int, before: Key | None = None) -> Iterator[Key]:
    """Yield keys of the whole pages of ``tokens``, one after another.

    Args:
        tokens: from position 0, or from where the page of ``before`` ends.
        page_length: tokens of a page.
        block_length: decides who sees whom, so the same tokens have other keys and values under another one.
        before: key of the page before the first, if there is one.
    """
    key = str(block_length).encode() if before is None else before
    for end in range(page_length, len(tokens) + 1, page_length):
        content = array("q", tokens[end - page_length : end]).tobytes()
        key = hashlib.blake2b(key + content, digest_size=16).digest()
        yield key
