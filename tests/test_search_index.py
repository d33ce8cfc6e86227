"""The search index ranks as the formula says, in every script, whatever is asked."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmcore.envs.index import SearchIndex, words
from glmcore.errors import DataError

K1, B = 1.2, 0.75


def scores_by_the_formula(texts, query):
    """BM25 of every text, written as the paper has it, with SQLite's floor of what a common word counts."""
    split = [words(text) for text in texts]
    mean = sum(map(len, split)) / len(split)
    totals = []
    for text in split:
        total, counts = 0.0, Counter(text)
        for word in set(words(query)):
            n = sum(word in other for other in split)
            idf = max(math.log((len(split) - n + 0.5) / (n + 0.5)), 1e-6)
            if counts[word]:
                total += idf * counts[word] * (K1 + 1) / (counts[word] + K1 * (1 - B + B * len(text) / mean))
        totals.append(total)
    return totals


TEXTS = st.lists(st.lists(st.sampled_from("abcde\u4e2d"), max_size=12).map(" ".join), min_size=1, max_size=8)


@given(texts=TEXTS, query=st.lists(st.sampled_from("abcx\u4e2d"), max_size=4).map(" ".join), limit=st.integers(1, 9))
def test_a_search_ranks_by_bm25(texts, query, limit):
    found = SearchIndex(texts).search(query, limit)

    expected = scores_by_the_formula(texts, query)
    assert len(found) == min(limit, sum(score > 0 for score in expected))
    # A sum of at most five terms in another order: 1e-12 is thousands of roundings.
    for number, score in found:
        assert math.isclose(score, expected[number], rel_tol=1e-12)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    left_out = set(range(len(texts))) - {number for number, _ in found}
    assert all(expected[number] <= found[-1][1] * (1 + 1e-12) for number in left_out if found)


def test_texts_without_spaces_are_found_by_their_characters():
    index = SearchIndex(["\u5317\u4eac\u662f\u9996\u90fd", "\u4e0a\u6d77\u5728\u6d77\u8fb9", "caf\u00e9 snake_case"])
    assert [number for number, _ in index.search("\u6d77", 3)] == [1]
    assert [number for number, _ in index.search("CAF\u00c9", 3)] == [2]
    assert [number for number, _ in index.search("snake", 3)] == [2]


@given(query=st.text(max_size=30))
def test_no_query_breaks_the_index(query):
    assert len(SearchIndex(["b"]).search(query, 3)) <= 1


def test_an_index_of_nothing_is_refused():
    with pytest.raises(DataError, match="no documents"):
        SearchIndex([])
