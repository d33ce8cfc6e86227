import collections
import itertools

import numpy as np
import pytest
from test_samples import shards_of

from glmcore.data.blocks import PackedBlocks
from glmcore.data.loader import Source
from glmcore.data.prefetch import Loader
from glmcore.errors import DataError, PackingError

PAD = 999_999


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Source]:
    folder = tmp_path_factory.mktemp("blocks")
    generator = np.random.default_rng(0)
    lengths = [generator.integers(1, high, 50).tolist() for high in (40, 120)]
    return [
        Source(name, shards_of(folder, number, lengths[number]), weight)
        for number, (name, weight) in enumerate([("web", 2.0), ("code", 1.0)])
    ]


def blocks_of(sources, **changes) -> PackedBlocks:
    return PackedBlocks(sources, **{"capacity": 64, "seed": 3, "pad_id": PAD, "rows_per_block": 8, **changes})


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def test_every_document_drawn_is_packed_once_and_shares_follow_the_weights(sources):
    rows = blocks_of(sources)
    start = rows.start_of(300)
    batch = rows.batch(0, start.first_row)
    pieces = np.split(batch.input_ids, batch.cu_seqlens[1:-1])
    begins = {int(ids[0]): len(ids) for source in sources for ids in source.shards}
    tokens = collections.Counter()
    for piece in pieces:
        if piece[0] != PAD:
            tokens[int(piece[0]) // 100_000] += len(piece)
            assert (np.diff(piece) == 1).all()
            document = max(begin for begin in begins if begin <= piece[0])
            offset = int(piece[0]) - document
            assert offset % 64 == 0  # only documents longer than a row are cut, at multiples of it
            assert len(piece) == min(64, begins[document] - offset)
    assert [tokens[0], tokens[1]] == [read for _, read in start.progress]
    assert abs(tokens[0] - 2 / 3 * sum(tokens.values())) <= 160
    seen = collections.Counter(int(piece[0]) for piece in pieces if int(piece[0]) in begins)
    for number in (0, 1):
        epochs = start.progress[number][0] / 50
        mine = [seen[int(ids[0])] for ids in sources[number].shards]
        assert set(mine) <= {int(epochs), -int(-epochs // 1)}
    assert (batch.input_ids == PAD).mean() < 0.1  # a block of eight rows leaves one or two half empty


def test_any_rows_are_the_same_whatever_was_read_before(sources):
    rows = blocks_of(sources)
    whole = rows.batch(0, 100)
    again = blocks_of(sources)
    for first, count in [(90, 10), (3, 1), (0, 40), (50, 0), (60, 20)]:
        part = again.batch(first, count)
        np.testing.assert_array_equal(part.input_ids, whole.input_ids[first * 64 : (first + count) * 64])
        assert part.cu_seqlens[-1] == count * 64
    assert same(again.batch(0, 100), whole)
    assert not same(blocks_of(sources, seed=4).batch(0, 100), whole)


def test_a_run_goes_on_from_the_start_of_a_block(sources):
    rows = blocks_of(sources)
    start = rows.start_of(70)
    assert 0 < start.first_row <= 70
    resumed = blocks_of(sources, start=start)
    assert same(resumed.batch(70, 40), rows.batch(70, 40))
    assert resumed.start_of(110) == rows.start_of(110)
    with pytest.raises(PackingError, match=f"row 0 is before row {start.first_row}"):
        resumed.batch(0, 1)


def test_threads_of_a_loader_get_the_rows_of_their_steps(sources):
    expected = blocks_of(sources).batch(0, 80).input_ids
    with Loader(blocks_of(sources), rows_per_step=4, num_steps=20, depth=5, num_threads=3) as loader:
        found = [batches[0].input_ids for batches in loader]
    np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("too_long", ["truncate", "drop"])
def test_long_documents_are_treated_as_chosen(sources, too_long):
    rows = blocks_of(sources, too_long=too_long)
    batch = rows.batch(0, 40)
    begins = {int(ids[0]): len(ids) for source in sources for ids in source.shards}
    for start, end in itertools.pairwise(batch.cu_seqlens):
        if batch.input_ids[start] != PAD:
            length = begins[int(batch.input_ids[start])]
            assert end - start == min(length, 64)
            assert too_long == "truncate" or length <= 64


def test_wrong_arguments_are_one_clear_line(sources):
    for changes, message in [
        ({"capacity": 0}, "capacity=0 must be at least 1"),
        ({"rows_per_block": 0}, "rows_per_block=0"),
        ({"seed": -1}, "seed is -1"),
        ({"capacity": 1, "too_long": "drop"}, "no document of block 0 is in rows of 1"),
    ]:
        chosen = sources[1:] if "too_long" in changes else sources
        with pytest.raises((DataError, PackingError)) as caught:
            blocks_of(chosen, **changes)
        assert message in str(caught.value)
    with pytest.raises(PackingError, match="num_rows is -1"):
        blocks_of(sources).batch(0, -1)
