import gc
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import packing as oracle

from glmcore.errors import GlmcoreError, PackingError
from glmcore.packing import (
    BestFitStream,
    PackedBatch,
    balance,
    balance_micro_batches,
    fill,
    pack_best_fit,
    pack_concat,
    pack_documents,
)

LENGTHS = arrays(np.uint32, st.integers(0, 200), elements=st.integers(0, 64))


@dataclass
class Documents:
    ids: np.ndarray
    offsets: np.ndarray
    loss_mask: np.ndarray | None = None


@st.composite
def documents(draw, max_len=20) -> Documents:
    lengths = draw(st.lists(st.integers(0, max_len), max_size=20))
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    num_tokens = int(offsets[-1])
    mask = draw(st.none() | arrays(np.uint8, num_tokens, elements=st.integers(0, 3)) | arrays(np.bool_, num_tokens))
    return Documents(np.arange(1000, 1000 + num_tokens, dtype=np.int32), offsets, mask)


def rows_of(pieces) -> list[tuple[int, int, int, int]]:
    rows = np.repeat(np.arange(pieces.num_rows), np.diff(pieces.row_offsets.astype(np.int64)))
    columns = (rows, pieces.doc, pieces.start, pieces.length)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, capacity=st.integers(64, 128))
def test_best_fit_agrees_with_the_oracle_and_fills_no_row_past_capacity(lengths, capacity):
    packing = pack_best_fit(lengths, capacity)

    row_of, order = oracle.best_fit(lengths.tolist(), capacity)
    assert packing.row_of.dtype == packing.order.dtype == np.uint32
    np.testing.assert_array_equal(packing.row_of, row_of)
    np.testing.assert_array_equal(packing.order, order)
    assert packing.num_rows == max(row_of, default=-1) + 1
    assert np.bincount(packing.row_of, weights=lengths).max(initial=0) <= capacity


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, capacity=st.integers(1, 80))
def test_split_best_fit_is_best_fit_of_the_pieces(lengths, capacity):
    cut = oracle.split(lengths.tolist(), capacity)
    row_of, order = oracle.best_fit([length for _, _, length in cut], capacity)
    expected = [(row_of[piece], *cut[piece]) for piece in order]
    assert rows_of(pack_documents(lengths, capacity, too_long="split")) == expected


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, capacity=st.integers(1, 80))
def test_concat_agrees_with_the_oracle_and_fills_all_rows_but_the_last(lengths, capacity):
    pieces = pack_concat(lengths, capacity)
    assert rows_of(pieces) == oracle.concat(lengths.tolist(), capacity)
    assert pieces.num_rows == -(-int(lengths.sum()) // capacity)


@settings(deadline=None, max_examples=100)
@given(
    costs=st.lists(st.floats(0, 1e9) | st.integers(0, 5), max_size=60),
    num_ranks=st.integers(1, 20),
    equal_counts=st.booleans(),
)
def test_balance_agrees_with_the_oracle(costs, num_ranks, equal_counts):
    rank_of = balance(np.array(costs, np.float64), num_ranks, equal_counts=equal_counts)
    assert rank_of.dtype == np.uint32
    expected = oracle.balance([float(cost) for cost in costs], num_ranks, equal_counts)
    if not equal_counts:
        np.testing.assert_array_equal(rank_of, expected)
        return
    counts = np.bincount(rank_of, minlength=num_ranks)
    assert counts.max() - counts.min() <= 1
    busiest, twin = (np.bincount(ranks, weights=costs).max(initial=0) for ranks in (rank_of, np.array(expected, int)))
    assert busiest <= twin * (1 + 1e-12)  # swaps come after the differencing


@settings(deadline=None, max_examples=50)
@given(costs=st.lists(st.integers(0, 100), max_size=60), num_ranks=st.integers(1, 5), num_micro=st.integers(1, 4))
def test_micro_batches_share_each_ranks_items_and_come_costliest_first(costs, num_ranks, num_micro):
    rank_of, micro_of = balance_micro_batches(costs, num_ranks, num_micro)
    np.testing.assert_array_equal(rank_of, balance(np.array(costs, np.float64), num_ranks))
    for rank in range(num_ranks):
        mine = np.array(costs, np.float64)[rank_of == rank]
        loads = np.bincount(micro_of[rank_of == rank], weights=mine, minlength=num_micro)
        assert len(loads) == num_micro
        assert (np.diff(loads) <= 0).all()
        # Of any greedy choice: when the fullest got its last item, no other held less than it did.
        assert loads[0] <= mine.sum() / num_micro + (1 - 1 / num_micro) * mine.max(initial=0) + 1e-9


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, capacity=st.integers(1, 40), too_long=st.sampled_from(["split", "truncate", "drop"]))
def test_long_documents_are_treated_as_chosen_and_every_lost_token_is_counted(lengths, capacity, too_long):
    pieces = pack_documents(lengths, capacity, too_long=too_long)
    kept = np.bincount(pieces.doc, weights=pieces.length, minlength=len(lengths)).astype(np.int64)
    is_long = lengths > capacity
    whole = {"split": lengths, "truncate": np.minimum(lengths, capacity), "drop": np.where(is_long, 0, lengths)}
    np.testing.assert_array_equal(kept, whole[too_long])
    assert pieces.num_too_long == is_long.sum()
    assert pieces.num_lost_tokens == (lengths - kept).sum()
    if is_long.any():
        with pytest.raises(PackingError, match="more than the row capacity"):
            pack_documents(lengths, capacity, too_long="error")


def test_a_seed_shuffles_the_rows_and_keeps_them():
    lengths = np.random.default_rng(0).integers(1, 64, 500)
    plain, one, same, other = (pack_documents(lengths, 64, too_long="error", seed=seed) for seed in (None, 1, 1, 2))
    rows = [np.split(packing.doc, packing.row_offsets[1:-1]) for packing in (plain, one, same, other)]
    listed = [[row.tolist() for row in packing] for packing in rows]
    assert sorted(listed[0]) == sorted(listed[1]) == sorted(listed[3])
    assert listed[1] == listed[2] != listed[3] != listed[0]
    with pytest.raises(PackingError, match="seed is -1"):
        pack_documents(lengths, 64, too_long="error", seed=-1)


def test_fill_writes_into_given_memory_whatever_it_held():
    documents = Documents(np.arange(50, dtype=np.int32), np.array([0, 20, 27, 50]))
    packing = pack_documents(np.diff(documents.offsets), 32, too_long="error")
    fresh = fill(documents, packing, 32, pad_id=9)
    size = len(fresh.input_ids)
    memory = np.full(3 * size, 77, np.int32)
    mask = np.full(size, 77, np.uint8)
    out = PackedBatch(*np.split(memory, 3), mask, np.zeros(0, np.int32), 0)
    filled = fill(documents, packing, 32, pad_id=9, out=out)
    for name, value in vars(fresh).items():
        np.testing.assert_array_equal(getattr(filled, name), value)
    assert all(np.shares_memory(part, memory) for part in (filled.input_ids, filled.labels, filled.position_ids))
    assert np.shares_memory(filled.loss_mask, mask)
    short = PackedBatch(*np.split(memory[:-3], 3), mask, np.zeros(0, np.int32), 0)
    with pytest.raises(PackingError, match=f"out.input_ids has {size - 1} entries, the batch has {size} tokens"):
        fill(documents, packing, 32, pad_id=9, out=short)
    mask.flags.writeable = False
    with pytest.raises(PackingError, match=r"out\.loss_mask must be writable"):
        fill(documents, packing, 32, pad_id=9, out=out)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(0, 100), max_size=100),
    window=st.integers(1, 20),
    cut=st.integers(0, 100),
    crop=st.booleans(),
)
def test_a_stream_packs_every_document_once_and_resumes_exactly(lengths, window, cut, crop):
    whole = BestFitStream(64, window=window, too_long="split", crop=crop)
    first = whole.push(lengths[:cut])
    resumed = BestFitStream(64, window=window, too_long="split", crop=crop)
    resumed.resume(whole.state)
    rest = [whole.push(lengths[cut:]), whole.finish()]
    for mine, expected in zip([resumed.push(lengths[cut:]), resumed.finish()], rest, strict=True):
        assert rows_of(mine) == rows_of(expected)
    packed = [first, *rest]
    report = whole.report
    assert sum(int(part.length.sum()) for part in packed) == sum(lengths) - report.num_lost_tokens
    assert report.num_rows == sum(part.num_rows for part in packed)
    assert report.num_rows * 64 == sum(lengths) - report.num_lost_tokens + report.num_padding_tokens
    if not crop:
        assert report.num_lost_tokens == report.num_cropped == 0
        seen = np.zeros(sum(lengths), np.int64)
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        for part in packed:
            for doc, start, length in zip(part.doc, part.start, part.length, strict=True):
                seen[offsets[doc] + start : offsets[doc] + start + length] += 1
        assert (seen == 1).all()


@settings(deadline=None, max_examples=100)
@given(ragged=documents(), capacity=st.integers(20, 40), method=st.sampled_from(["best_fit", "split", "concat"]))
def test_fill_agrees_with_the_oracle(ragged, capacity, method):
    lengths = np.diff(ragged.offsets)
    texts = np.split(ragged.ids, ragged.offsets[1:-1])
    flags = np.ones(len(ragged.ids)) if ragged.loss_mask is None else ragged.loss_mask
    if method == "best_fit":
        packing = pack_best_fit(lengths, capacity)
        placed = [(packing.row_of[doc], doc, 0, lengths[doc]) for doc in packing.order]
        pieces = [piece for piece in placed if piece[3]]
    else:
        split = method == "split"
        packing = pack_documents(lengths, capacity, too_long="split") if split else pack_concat(lengths, capacity)
        pieces = rows_of(packing)
    batch = fill(ragged, packing, capacity, pad_id=7)

    masks = np.split(flags, ragged.offsets[1:-1])
    expected = oracle.fill(texts, masks, pieces, packing.num_rows, capacity, 7)
    found = vars(batch)
    for (name, value), twin in zip(found.items(), expected, strict=True):
        np.testing.assert_array_equal(value, twin, err_msg=name)
    dtypes = {name: str(value.dtype) for name, value in found.items() if name != "max_seqlen"}
    assert dtypes == {name: "uint8" if name == "loss_mask" else "int32" for name in dtypes}
    assert type(batch.max_seqlen) is int


def test_lists_and_other_integers_are_taken_as_lengths():
    for lengths in ([5, 3, 4, 4], np.array([5, 3, 4, 4]), np.array([5, 3, 4, 4], np.uint64)):
        assert pack_best_fit(lengths, 8).row_of.tolist() == [0, 0, 1, 1]
    assert pack_best_fit([], 8).num_rows == 0


def test_a_strided_view_is_refused_instead_of_copied():
    with pytest.raises(PackingError, match="C-contiguous"):
        pack_best_fit(np.zeros(8, np.uint32)[::2], 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_best_fit([3, 9], 8), "document 1 has 9 tokens, more than the row capacity of 8"),
        (lambda: pack_best_fit([3], 0), "capacity is 0, it must be between 1 and 16777216"),
        (lambda: pack_best_fit([3], -1), "capacity is -1, it must be from 0 to 4294967295"),
        (lambda: pack_concat([3], 0), "capacity is 0"),
        (lambda: pack_best_fit([3, -1], 8), "document 1 has length -1, it must be from 0 to"),
        (lambda: pack_best_fit([1.5], 8), "lengths must be integers, got float64"),
        (lambda: pack_best_fit([[1]], 8), "lengths must be 1-D, got 2-D"),
        (lambda: balance([1, -2], 2), "cost 1 is -2, it must be finite and not negative"),
        (lambda: pack_documents([1], 8, too_long="cut"), "too_long is \"cut\", it must be 'error', 'split'"),
        (lambda: BestFitStream(8, window=0, too_long="split"), "a window of 0 pieces cannot hold them"),
        (lambda: BestFitStream(8, window=2, too_long="error").push([9]), "document 0 has 9 tokens"),
        (lambda: balance([1.0], 0), "num_ranks is 0, it must be at least 1"),
        (lambda: balance(["a"], 1), "costs must be a 1-D array of numbers"),
        (
            lambda: pack_concat([9], 8).select_rows(np.array([2], np.uint32)),
            "row 2 does not exist, there are 2",
        ),
    ],
)
def test_wrong_arguments_are_one_clear_line(call, message):
    with pytest.raises(PackingError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, (GlmcoreError, ValueError))


@pytest.mark.parametrize(
    ("ids", "offsets", "mask", "message"),
    [
        (np.zeros(3, np.int64), np.array([0, 3]), None, "ids must be a 1-D int32 array, got 1-D int64"),
        (np.zeros(3, np.int32), np.array([0, 3], np.int32), None, "offsets must be a 1-D int64 array"),
        (np.zeros(3, np.int32), np.array([0, 2]), None, "offsets must rise from 0 to the 3 tokens"),
        (np.zeros(3, np.int32), np.array([0, 3]), [1, 1, 1], "loss_mask must be a 1-D uint8 array, got list"),
        (
            np.zeros(3, np.int32),
            np.array([0, 3]),
            np.ones(2, np.uint8),
            "loss_mask has 2 entries for 3 tokens",
        ),
        (
            np.zeros(2, np.int32),
            np.array([0, 2]),
            None,
            "document 0 has 2 tokens here, but the packing reads",
        ),
        (np.zeros(4, np.int32), np.array([0, 3, 4]), None, "the packing is of 1 documents, but 2 are given"),
    ],
)
def test_documents_that_do_not_fit_the_packing_are_named(ids, offsets, mask, message):
    packing = pack_best_fit([3], 4) if len(offsets) == 3 else pack_concat([3], 4)
    with pytest.raises(PackingError) as caught:
        fill(Documents(ids, offsets, mask), packing, 4, pad_id=0)
    assert message in str(caught.value)


def test_a_row_longer_than_the_capacity_of_the_batch_is_refused():
    documents = Documents(np.zeros(8, np.int32), np.array([0, 8]))
    with pytest.raises(PackingError, match="row 0 holds 8 tokens, more than the row capacity of 7"):
        fill(documents, pack_concat([8], 8), 7, pad_id=0)


def test_the_arrays_of_a_packing_are_read_only_views_that_outlive_it():
    lengths = np.arange(1000, dtype=np.uint32)
    row_of = pack_best_fit(lengths, 1000).row_of
    expected = row_of.copy()
    gc.collect()
    pack_best_fit(lengths[::-1].copy(), 1000)
    np.testing.assert_array_equal(row_of, expected)
    with pytest.raises(ValueError, match="read-only"):
        row_of[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        row_of.flags.writeable = True


def test_packing_leaves_torch_unimported():
    code = "import sys, glmcore.prefixes, glmcore.data.prefetch, glmcore.data.samples, glmcore.data.megatron; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
