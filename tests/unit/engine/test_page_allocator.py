"""Who holds which page, and which page serves whom."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmax.engine.page_allocator import PagePool, page_keys


def keys(tokens: list[int], page_length: int = 4, block_length: int = 4) -> list[bytes]:
    return list(page_keys(tokens, page_length, block_length))


def filled(pool: PagePool, tokens: list[int]) -> list[int]:
    """Pages taken and published for whole pages of tokens."""
    pages: list[int] = []
    for key in keys(tokens):
        pages.append(pool.take(after=pages[-1] if pages else None))
        pool.publish(pages[-1], key)
    return pages


def test_neighbours_are_preferred_and_a_taken_page_is_nobody_elses() -> None:
    pool = PagePool(6)
    first = pool.take()
    second = pool.take(after=first)
    assert second == first + 1
    other = pool.take()
    assert pool.take(after=second) != other
    assert pool.available == 2
    for _ in range(2):
        pool.take()
    with pytest.raises(IndexError):
        pool.take()


def test_known_pages_serve_again_until_they_are_needed() -> None:
    pool = PagePool(3)
    tokens = list(range(8))
    pages = filled(pool, tokens)
    pool.release(pages)
    assert (pool.available, pool.held, pool.cached) == (3, 0, 2)
    assert pool.reuse(keys(tokens)) == pages
    assert pool.held == 2
    pool.release(pages)
    taken = [pool.take() for _ in range(3)]
    assert sorted(taken) == [0, 1, 2]
    assert pool.evictions == 2
    assert pool.reuse(keys(tokens)) == []


def test_the_end_of_a_prompt_is_given_up_before_its_front() -> None:
    pool = PagePool(2)
    tokens = list(range(8))
    pages = filled(pool, tokens)
    pool.release(pages)
    assert pool.take() == pages[1]
    assert pool.reuse(keys(tokens)) == pages[:1]


def test_a_shared_page_stays_until_its_last_holder_leaves() -> None:
    pool = PagePool(2)
    tokens = list(range(4))
    [page] = filled(pool, tokens)
    assert pool.reuse(keys(tokens)) == [page]
    pool.release([page])
    assert pool.held == 1
    pool.release([page])
    assert pool.held == 0


def test_a_second_page_of_the_same_contents_stays_private() -> None:
    pool = PagePool(2)
    tokens = list(range(4))
    [first], [second] = filled(pool, tokens), filled(pool, tokens)
    pool.release([second])
    pool.release([first])
    assert pool.cached == 1
    assert pool.reuse(keys(tokens)) == [first]


def test_keys_name_everything_before_a_page_and_the_block_length() -> None:
    assert len(keys(list(range(11)))) == 2
    assert keys([1, 2, 3, 4, 5, 6, 7, 8])[0] == keys([1, 2, 3, 4, 9, 9, 9, 9])[0]
    assert keys([1, 2, 3, 4, 5, 6, 7, 8])[1] != keys([9, 2, 3, 4, 5, 6, 7, 8])[1], "the second page saw the first"
    assert keys([1, 2, 3, 4]) != keys([1, 2, 3, 4], block_length=2)
    first, second = keys([1, 2, 3, 4, 5, 6, 7, 8])
    assert list(page_keys([5, 6, 7, 8], 4, 4, before=first)) == [second]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), max_size=12)), max_size=30))
def test_pages_are_neither_lost_nor_held_twice(operations: list[tuple[int, list[int]]]) -> None:
    """Sequences that begin alike come and go; whoever is served gets pages that hold its very tokens."""
    pool = PagePool(5)
    holders: list[list[int]] = []
    contents: dict[int, bytes] = {}
    for action, tokens in operations:
        if action == 0 and holders:
            pool.release(holders.pop(0))
            continue
        wanted = keys(tokens)
        pages = pool.reuse(wanted)
        assert [contents[page] for page in pages] == wanted[: len(pages)]
        for key in wanted[len(pages) :]:
            if not pool.available:
                break
            page = pool.take(after=pages[-1] if pages else None)
            assert all(page not in held for held in (*holders, pages))
            contents[page] = key
            pool.publish(page, key)
            pages.append(page)
        holders.append(pages)
        assert pool.held == len({page for held in holders for page in held})
        assert pool.held + pool.available == 5
