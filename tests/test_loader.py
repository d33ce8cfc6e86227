import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmcore.data.loader import PackedRows, Source
from glmcore.data.shards import ShardWriter, TokenShards
from glmcore.errors import DataError, PackingError

PAD = 0
TOKENS_PER_SOURCE = 10_000
"""Each token of a source is its own id, so that rows tell where their tokens come from."""


def shards_of(folder, number: int, lengths) -> TokenShards:
    """Source `number`; every fourth token is not learned."""
    path = folder / f"{number}-{abs(hash(tuple(lengths)))}"
    first = 1 + number * TOKENS_PER_SOURCE
    with ShardWriter(path, 100_000, with_loss_mask=True) as writer:
        for length in lengths:
            ids = np.arange(first, first + length, dtype=np.int32)
            writer.append(ids, loss_mask=ids % 4 != 0)
            first += length
    return TokenShards.open(path)


def rows_of(sources, **changes) -> PackedRows:
    arguments = {"capacity": 64, "num_rows": 20, "packing": "best_fit", "seed": 3, "pad_id": PAD}
    return PackedRows(sources, **{**arguments, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def sources(folder) -> list[Source]:
    generator = np.random.default_rng(0)
    lengths = [generator.integers(1, high, 60).tolist() for high in (40, 120, 20)]
    return [
        Source(name, shards_of(folder, number, lengths[number]), weight)
        for number, (name, weight) in enumerate([("web", 5.0), ("code", 3.0), ("math", 2.0)])
    ]


def segments(batch) -> list[np.ndarray]:
    """Tokens of each piece in the batch, padding left out."""
    pieces = np.split(batch.input_ids, batch.cu_seqlens[1:-1])
    return [piece for piece in pieces if piece[0] != PAD]


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_any_batch_is_the_same_part_of_the_same_rows(sources, packing):
    whole = rows_of(sources, packing=packing).batch(0, 20)
    again = rows_of(sources, packing=packing)
    for first, count in [(0, 1), (7, 3), (19, 1), (0, 20), (5, 0)]:
        part = again.batch(first, count)
        for name in ("input_ids", "labels", "position_ids", "loss_mask"):
            expected = getattr(whole, name)[first * 64 : (first + count) * 64]
            np.testing.assert_array_equal(getattr(part, name), expected)
        assert part.cu_seqlens[-1] == count * 64
        inside = (whole.cu_seqlens >= first * 64) & (whole.cu_seqlens <= (first + count) * 64)
        np.testing.assert_array_equal(part.cu_seqlens, whole.cu_seqlens[inside] - first * 64)


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_pieces_are_runs_of_real_documents_with_their_masks(sources, packing):
    batch = rows_of(sources, packing=packing).batch(0, 20)
    starts = {int(ids[0]): len(ids) for source in sources for ids in source.shards}
    for piece in segments(batch):
        assert (np.diff(piece) == 1).all()
        document = max(start for start in starts if start <= piece[0])
        assert piece[-1] < document + starts[document]
        if packing == "best_fit":  # only documents longer than a row are cut, at multiples of it
            offset = piece[0] - document
            assert offset % 64 == 0
            assert len(piece) == min(64, starts[document] - offset)
    real = batch.input_ids != PAD
    np.testing.assert_array_equal(batch.loss_mask, real & (batch.input_ids % 4 != 0))
    learned = batch.labels != -100
    np.testing.assert_array_equal(batch.labels[learned], batch.input_ids[learned] + 1)
    assert (batch.labels[learned] % 4 != 0).all()


def test_concat_leaves_no_padding_and_cuts_only_at_row_ends(sources):
    rows = rows_of(sources, packing="concat")
    assert rows.padding_fraction == 0
    assert rows.num_split_documents <= len(rows)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=30), min_size=1, max_size=3),
    capacity=st.integers(1, 128),
    num_rows=st.integers(1, 30),
    packing=st.sampled_from(["best_fit", "concat"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_sources_give_exactly_the_rows_asked_for(folder, lengths, capacity, num_rows, packing, seed):
    mixed = [
        Source(str(number), shards_of(folder, number, documents), number + 0.5)
        for number, documents in enumerate(lengths)
    ]
    rows = rows_of(mixed, capacity=capacity, num_rows=num_rows, packing=packing, seed=seed)
    batch = rows.batch(0, num_rows)
    assert len(rows) == num_rows
    assert len(batch.input_ids) == num_rows * capacity
    num_real = int((batch.input_ids != PAD).sum())
    assert rows.padding_fraction == pytest.approx(1 - num_real / (num_rows * capacity))
    by_source = collections.Counter((batch.input_ids[batch.input_ids != PAD] - 1) // TOKENS_PER_SOURCE)
    assert rows.tokens_by_source == {source.name: by_source[int(source.name)] for source in mixed}
    assert (batch.input_ids.reshape(num_rows, capacity)[:, 0] != PAD).all()


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_shares_follow_the_weights_within_one_document_of_each_source(sources, packing):
    rows = rows_of(sources, packing=packing, num_rows=200)
    total = sum(rows.tokens_by_source.values())
    longest = [int(source.shards.lengths.max()) for source in sources]
    for source, most in zip(sources, longest, strict=True):
        off = rows.tokens_by_source[source.name] - total * source.weight / 10
        assert -sum(longest) <= off <= most


def test_epochs_count_the_passes_over_each_source_and_each_pass_has_every_document_once(sources):
    rows = rows_of(sources[:1], packing="concat", num_rows=60)
    first_tokens = [int(ids[0]) for ids in sources[0].shards]
    pieces = segments(rows.batch(0, 60))
    seen = collections.Counter(int(piece[0]) for piece in pieces if int(piece[0]) in first_tokens)
    epochs = rows.epochs_by_source["web"]
    assert epochs > 2
    assert {int(epochs), -int(-epochs // 1)} >= set(seen.values())
    assert sum(seen.values()) == rows.num_documents == round(epochs * len(first_tokens))


def test_orders_of_seeds_differ(sources):
    one, two = (rows_of(sources, packing="concat", seed=seed).batch(0, 20).input_ids for seed in (1, 2))
    assert not np.array_equal(one, two)


def test_best_fit_rows_are_nearly_full_and_shuffled(sources):
    rows = rows_of(sources, num_rows=200)
    assert rows.padding_fraction < 0.01
    first_lengths = [int(rows.batch(row, 1).cu_seqlens[1]) for row in range(200)]
    assert first_lengths != sorted(first_lengths, reverse=True)


def test_split_documents_are_counted(folder):
    long = [Source("long", shards_of(folder, 0, [100, 30, 64, 65]), 1.0)]
    rows = rows_of(long, num_rows=5)  # one epoch: 64 + 36, 30, 64, 64 + 1
    assert sum(rows.tokens_by_source.values()) == 259
    assert (rows.num_split_documents, rows.num_documents) == (2, 4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"packing": "bestfit"}, PackingError, "packing is 'bestfit', it must be 'best_fit' or 'concat'"),
        ({"num_rows": 0}, PackingError, "num_rows=0 and capacity=64 must be at least 1"),
        ({"capacity": 2**25}, PackingError, "capacity is 33554432, it must be between 1 and 16777216"),
        ({"seed": -1}, DataError, "seed is -1, it must be from 0 to 2^64 - 1"),
    ],
)
def test_wrong_arguments_are_one_clear_line(sources, changes, error, message):
    with pytest.raises(error) as caught:
        rows_of(sources, **changes)
    assert message in str(caught.value)


def test_sources_that_cannot_be_mixed_are_named(sources, folder):
    def message(mixed):
        with pytest.raises(DataError) as caught:
            rows_of(mixed)
        return str(caught.value)

    web = sources[0].shards
    assert message([]) == "no sources are given, at least one is needed"
    assert message([Source("web", web, 0.0)]) == 'source "web" has weight 0, it must be finite and above 0'
    assert message([Source("web", web, 1.0), Source("web", web, 1.0)]) == 'two sources are named "web"'
    assert message([Source("none", shards_of(folder, 5, [0, 0]), 1.0)]) == 'source "none" has no tokens'
    with ShardWriter(folder / "other", 10) as writer:
        writer.append([1])
    other = Source("other", TokenShards.open(folder / "other"), 1.0)
    expected = "sources of different vocabulary sizes cannot be mixed: {'web': 100000, 'other': 10}"
    assert message([sources[0], other]) == expected


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (19, 2), (20, 1), (0, -1)])
def test_rows_past_the_end_are_refused(sources, first, count):
    with pytest.raises(PackingError, match="are not among the 20 rows"):
        rows_of(sources).batch(first, count)
