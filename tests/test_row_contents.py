"""Rows say which documents they hold, and can be learned whole."""

from itertools import pairwise

import numpy as np
import pytest

from glmcore.data.blocks import PackedBlocks
from glmcore.data.learned import AllLearned
from glmcore.data.loader import PackedRows, Source
from glmcore.data.samples import SampleStream
from glmcore.data.shards import ShardWriter, TokenShards

PAD = 99
NUM_ROWS = 12


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Source]:
    """Two sources of which some documents have masks, one of them empty."""
    folder = tmp_path_factory.mktemp("sources")
    generator = np.random.default_rng(0)
    for name in ("chat", "web"):
        with ShardWriter(folder / name, 100, with_loss_mask=name == "chat") as writer:
            for length in [*generator.integers(1, 40, 30).tolist(), *([0] if name == "web" else [])]:
                ids = generator.integers(0, 98, length)
                writer.append(ids, loss_mask=ids % 3 == 0 if name == "chat" else None)
    return [Source(name, TokenShards.open(folder / name), 1.0) for name in ("chat", "web")]


def all_rows(sources):
    yield PackedRows(sources, capacity=16, num_rows=NUM_ROWS, packing="best_fit", seed=3, pad_id=PAD)
    yield PackedRows(sources, capacity=16, num_rows=NUM_ROWS, packing="concat", seed=3, pad_id=PAD)
    yield PackedBlocks(sources, capacity=16, seed=3, pad_id=PAD, rows_per_block=5)
    yield SampleStream(sources, capacity=16, seed=3)


def test_the_documents_that_a_row_tells_of_are_those_in_it(sources):
    shards = {source.name: source.shards for source in sources}
    for rows in all_rows(sources):
        for row in range(NUM_ROWS):
            told = rows.contents(row)
            parts = [shards[p.source][p.document][p.first_token : p.first_token + p.num_tokens] for p in told]
            held = rows.batch(row, 1).input_ids
            expected = np.concatenate(parts)
            np.testing.assert_array_equal(held[: len(expected)], expected)
            assert (held[len(expected) :] == PAD).all()


def test_learning_all_gives_every_token_but_a_pieces_last_its_next_one_and_leaves_padding_out(sources):
    for rows in all_rows(sources):
        plain, whole = rows.batch(0, NUM_ROWS), AllLearned(rows, PAD).batch(0, NUM_ROWS)
        ids, bounds = plain.input_ids, plain.cu_seqlens
        for start, stop in pairwise(bounds):
            padding = (ids[start:stop] == PAD).all()
            assert (whole.loss_mask[start:stop] == (not padding)).all()
            expected = np.full(stop - start - 1, -100) if padding else ids[start + 1 : stop]
            np.testing.assert_array_equal(whole.labels[start : stop - 1], expected)
            assert whole.labels[stop - 1] == plain.labels[stop - 1]
        assert (plain.labels != -100).sum() < (whole.labels != -100).sum()
        assert AllLearned(rows, PAD).contents(1) == rows.contents(1)
