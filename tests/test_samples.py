import collections
import itertools
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmcore.data.loader import PackedRows, Source
from glmcore.data.prefetch import Loader, context_slice
from glmcore.data.samples import SampleStream
from glmcore.data.shards import ShardWriter, TokenShards
from glmcore.errors import DataError, PackingError
from glmcore.packing import PackedBatch

TOKENS_PER_SOURCE = 100_000
"""Each token of a source is its own id, so that rows tell where their tokens come from."""


def shards_of(folder, number: int, lengths) -> TokenShards:
    """Source `number`; every fourth token is not learned."""
    first = number * TOKENS_PER_SOURCE
    with ShardWriter(folder / str(number), 1_000_000, with_loss_mask=True) as writer:
        for length in lengths:
            ids = np.arange(first, first + length, dtype=np.int32)
            writer.append(ids, loss_mask=ids % 4 != 0)
            first += length
    return TokenShards.open(folder / str(number))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Source]:
    folder = tmp_path_factory.mktemp("samples")
    generator = np.random.default_rng(0)
    lengths = [generator.integers(0, high, 60).tolist() for high in (100, 300, 50)]
    return [
        Source(name, shards_of(folder, number, lengths[number]), weight)
        for number, (name, weight) in enumerate([("web", 5.0), ("code", 3.0), ("math", 2.0)])
    ]


def test_rows_are_samples_with_the_bounds_masks_and_labels_of_their_documents(sources):
    stream = SampleStream(sources, capacity=64, seed=3)
    batch = stream.batch(5, 40)
    rows = batch.input_ids.reshape(40, 64)
    ahead = stream.tokens(5, 40)
    np.testing.assert_array_equal(rows, ahead[:, :-1])
    np.testing.assert_array_equal(batch.loss_mask, batch.input_ids % 4 != 0)
    starts = {int(ids[0]) for source in sources for ids in source.shards if len(ids)}
    expected_bounds = [0]
    for at, token in enumerate(batch.input_ids.tolist()):
        if at and (at % 64 == 0 or token in starts):
            expected_bounds.append(at)
    np.testing.assert_array_equal(batch.cu_seqlens, [*expected_bounds, 40 * 64])
    following = ahead[:, 1:].reshape(-1)
    same_document = np.array([int(token) not in starts for token in following])
    labels = np.where(same_document & (following % 4 != 0), following, -100)
    np.testing.assert_array_equal(batch.labels, labels)
    bounds = batch.cu_seqlens
    positions = np.concatenate([np.arange(end - start) for start, end in itertools.pairwise(bounds)])
    np.testing.assert_array_equal(batch.position_ids, positions)
    assert batch.max_seqlen == np.diff(bounds).max()


def test_any_part_is_the_same_whatever_was_read_before_and_at_any_distance(sources):
    stream = SampleStream(sources, capacity=16, seed=3)
    whole = stream.batch(0, 50).input_ids.reshape(50, 16)
    fresh = SampleStream(sources, capacity=16, seed=3)
    for first, count in [(49, 1), (0, 3), (20, 30), (7, 0)]:
        part = fresh.batch(first, count).input_ids.reshape(count, 16)
        np.testing.assert_array_equal(part, whole[first : first + count])
    far = 10**15
    np.testing.assert_array_equal(fresh.tokens(far, 4), stream.tokens(far, 4))
    assert fresh.place(far).epoch > 10**11
    assert not np.array_equal(SampleStream(sources, capacity=16, seed=4).tokens(0, 50, 16), whole)


@settings(deadline=None, max_examples=30)
@given(
    weights=st.lists(st.floats(0.01, 100), min_size=3, max_size=3), first=st.integers(0, 10**12), k=st.integers(0, 500)
)
def test_shares_of_any_window_follow_the_weights_within_the_bound(sources, weights, first, k):
    mixed = [Source(source.name, source.shards, weight) for source, weight in zip(sources, weights, strict=True)]
    stream = SampleStream(mixed, capacity=16, seed=1)
    before, after = stream.samples_by_source(first), stream.samples_by_source(first + k)
    counted = collections.Counter(stream.place(n).source for n in range(first, first + k))
    for source, weight in zip(mixed, weights, strict=True):
        count = after[source.name] - before[source.name]
        assert counted[source.name] == count
        # A share of 10^12 samples is known to about 10^12 / 2^52 of a sample.
        assert abs(count - k * weight / sum(weights)) <= 2 * stream.max_deviation + 1e-3


def test_epochs_and_tokens_are_counted_by_source(sources):
    stream = SampleStream(sources, capacity=16, seed=1)
    k = 1000
    tokens = stream.tokens_by_source(k)
    assert sum(tokens.values()) == k * 16
    for source in sources:
        assert abs(tokens[source.name] - k * 16 * source.weight / 10) <= 16 * stream.max_deviation
        per_epoch = source.shards.num_tokens // 16
        assert stream.epochs_by_source(k)[source.name] == pytest.approx(tokens[source.name] / 16 / per_epoch)
    last = {stream.place(n).source: stream.place(n).epoch for n in range(k)}
    for name, epoch in last.items():
        assert epoch == int(np.ceil(stream.epochs_by_source(k)[name])) - 1


def test_buckets_are_read_as_often_as_asked_or_left_out(sources):
    shards = {source.name: source.shards for source in sources}
    mixed = Source.by_epochs(shards, {"web": 3.2, "code": 1.0, "math": 0})
    assert [source.name for source in mixed] == ["web", "code"]
    stream = SampleStream(mixed, capacity=16, seed=1)
    total = int((3.2 * shards["web"].num_tokens + shards["code"].num_tokens) / 16)
    epochs = stream.epochs_by_source(total)
    # Each epoch leaves out less than a sample, and the order is off by less than two.
    assert epochs["web"] == pytest.approx(3.2, abs=3.2 * 5 * 16 / shards["web"].num_tokens)
    assert epochs["code"] == pytest.approx(1.0, abs=5 * 16 / shards["code"].num_tokens)
    with pytest.raises(DataError, match="source 'math' has -1 epochs"):
        Source.by_epochs(shards, {"web": 1, "code": 1, "math": -1})
    with pytest.raises(DataError, match="source 'math' has None epochs"):
        Source.by_epochs(shards, {"web": 1, "code": 1})


def test_batches_are_written_into_given_memory(sources):
    stream, packed = SampleStream(sources, capacity=16, seed=3), None
    packed = PackedRows(sources, capacity=16, num_rows=8, packing="best_fit", seed=1, pad_id=0)
    for rows in (stream, packed):
        fresh = rows.batch(2, 4)
        out = PackedBatch(*(np.full(64, 7, np.int32) for _ in range(3)), np.full(64, 7, np.uint8), fresh.cu_seqlens, 0)
        filled = rows.batch(2, 4, out=out)
        for name in ("input_ids", "labels", "position_ids", "loss_mask"):
            np.testing.assert_array_equal(getattr(out, name), getattr(fresh, name))
            assert np.shares_memory(getattr(filled, name), getattr(out, name))
        np.testing.assert_array_equal(filled.cu_seqlens, fresh.cu_seqlens)
    ids = np.zeros((3, 17), np.int32)
    assert stream.tokens(0, 3, out=ids) is not None
    np.testing.assert_array_equal(ids, stream.tokens(0, 3))


@pytest.mark.parametrize("too_long", ["truncate", "drop"])
def test_packed_rows_truncate_or_drop_long_documents_as_chosen(sources, too_long):
    rows = PackedRows(sources, capacity=64, num_rows=30, packing="best_fit", seed=1, pad_id=0, too_long=too_long)
    batch = rows.batch(0, 30)
    starts = {int(ids[0]): len(ids) for source in sources for ids in source.shards if len(ids)}
    for start, end in itertools.pairwise(batch.cu_seqlens):
        if batch.loss_mask[start:end].any():
            length = starts[int(batch.input_ids[start])]
            assert end - start == min(length, 64)
            assert too_long == "truncate" or length <= 64
    assert rows.num_lost_tokens > 0
    assert rows.num_split_documents == 0 or too_long == "truncate"
    with pytest.raises(PackingError, match="less than one token in 64 is left"):
        PackedRows(sources[1:2], capacity=1, num_rows=9, packing="best_fit", seed=1, pad_id=0, too_long="drop")


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_the_rows_of_a_step_do_not_depend_on_ranks_threads_or_where_a_loader_began(sources, num_ranks):
    stream = SampleStream(sources, capacity=16, seed=3)
    for step in range(3):
        parts = []
        for rank in range(num_ranks):
            arguments = {"rows_per_step": 8, "rank": rank, "num_ranks": num_ranks, "num_threads": 1 + rank}
            with Loader(stream, first_step=step, rows_per_micro_batch=min(3, 8 // num_ranks), **arguments) as loader:
                parts += [batch.input_ids for batch in next(loader)]
                assert loader.state == step + 1
        np.testing.assert_array_equal(np.concatenate(parts), stream.batch(8 * step, 8).input_ids)


def test_a_loader_ends_at_the_last_step_and_resumes_from_its_state(sources):
    stream = SampleStream(sources, capacity=16, seed=3)
    with Loader(stream, rows_per_step=2, num_steps=7, depth=3, num_threads=2) as loader:
        first = [batches[0].input_ids for batches in itertools.islice(loader, 3)]
        state = loader.state
    with Loader(stream, rows_per_step=2, num_steps=7, first_step=state) as loader:
        rest = [batches[0].input_ids for batches in loader]
    assert (state, len(rest)) == (3, 4)
    np.testing.assert_array_equal(np.concatenate(first + rest), stream.batch(0, 14).input_ids)


def test_steps_are_prepared_ahead_and_an_error_arrives_at_its_step(sources):
    asked = []
    ready = threading.Event()

    class Counting:
        capacity = 16

        def batch(self, first_row, num_rows):
            asked.append(first_row)
            if first_row == 4:
                ready.set()
            if first_row == 6:
                raise DataError("row 6 is damaged")
            return SampleStream(sources, capacity=16, seed=3).batch(first_row, num_rows)

    with Loader(Counting(), rows_per_step=2, depth=3) as loader:
        next(loader)
        assert ready.wait(10)  # prepared without being asked for
        next(loader)
        next(loader)
        for _ in range(2):  # the step is not passed over
            with pytest.raises(DataError, match="row 6 is damaged"):
                next(loader)
            assert loader.state == 3
    assert max(asked) <= 10


def test_two_threads_read_at_once(sources):
    stream = SampleStream(sources, capacity=16, seed=3)
    running = threading.Event()

    def read():
        running.set()
        stream.tokens(0, 300_000, 17)

    thread = threading.Thread(target=read)
    thread.start()
    running.wait()
    turns = 0
    while thread.is_alive():
        turns += 1  # only moves on while the reader does not hold the interpreter
        time.sleep(0)
    assert turns > 100


@settings(deadline=None, max_examples=30)
@given(num_ranks=st.integers(1, 4), zigzag=st.booleans(), num_rows=st.integers(1, 3))
def test_context_slices_hold_every_token_once_with_its_label(sources, num_ranks, zigzag, num_rows):
    capacity = 8 * num_ranks
    batch = SampleStream(sources, capacity=capacity, seed=3).batch(0, num_rows)
    split = "zigzag" if zigzag else "contiguous"
    slices = [context_slice(batch, capacity, rank, num_ranks, split) for rank in range(num_ranks)]
    places = np.concatenate([part.token_index for part in slices])
    np.testing.assert_array_equal(np.sort(places), np.arange(num_rows * capacity))
    for part in slices:
        for name in ("input_ids", "labels", "position_ids", "loss_mask"):
            np.testing.assert_array_equal(getattr(part, name), getattr(batch, name)[part.token_index])
        np.testing.assert_array_equal(part.cu_seqlens, batch.cu_seqlens)
    pairs = [int((part.token_index % capacity + 1).sum()) for part in slices]
    if zigzag:  # of a causal mask over the row
        assert len(set(pairs)) == 1
    elif num_ranks > 1:
        assert pairs[-1] > pairs[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: SampleStream(s, capacity=0, seed=0), "capacity is 0, it must be from 1"),
        (lambda s: SampleStream(s, capacity=10**6, seed=0), 'source "web" has'),
        (lambda s: SampleStream(s, capacity=4, seed=-1), "seed is -1"),
        (lambda s: SampleStream([], capacity=4, seed=0), "no sources are given"),
        (lambda s: SampleStream(s, capacity=4, seed=0).place(-1), "k is -1, it must be from 0 to"),
        (lambda s: SampleStream(s, capacity=4, seed=0).batch(-1, 2), "there are no rows -1 to 1"),
        (lambda s: SampleStream(s, capacity=4, seed=0).batch(0, 2**30), "are more than the"),
        (
            lambda s: SampleStream(s, capacity=4, seed=0).tokens(0, 2, out=np.zeros((2, 4), np.int32)),
            "out must be C-contiguous [2, 5]",
        ),
        (lambda s: SampleStream(s, capacity=4, seed=0).tokens(0, 2, out=np.zeros((2, 5))), "out must be int32"),
        (lambda s: Loader(SampleStream(s, capacity=4, seed=0), rows_per_step=3, num_ranks=2), "must be a multiple"),
        (lambda s: Loader(SampleStream(s, capacity=4, seed=0), rows_per_step=4, rank=1), "rank 1 is not one of 1"),
        (lambda s: Loader(SampleStream(s, capacity=4, seed=0), rows_per_step=4, depth=0), "depth=0"),
        (
            lambda s: Loader(SampleStream(s, capacity=4, seed=0), rows_per_step=4, rows_per_micro_batch=0),
            "rows_per_micro_batch is 0, it must be at least 1",
        ),
        (lambda s: context_slice(SampleStream(s, capacity=4, seed=0).batch(0, 1), 4, 2, 2), "is not one of 2"),
        (
            lambda s: context_slice(SampleStream(s, capacity=4, seed=0).batch(0, 1), 4, 0, 3),
            "rows of 4 tokens cannot be cut into 6 equal stretches",
        ),
    ],
)
def test_wrong_arguments_are_one_clear_line(sources, call, message):
    with pytest.raises((DataError, PackingError)) as caught:
        call(sources)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_code_of_the_guide_runs_without_torch():
    guide = Path(__file__).parents[1] / "docs" / "packing.md"
    [code] = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), flags=re.DOTALL)
    check = "import sys\nassert 'torch' not in sys.modules\n"
    check += "assert samples.samples_by_source(4_000_000) == {'web': 3_000_000, 'code': 1_000_000}\n"
    check += "assert (loader.state, len(batches[0].input_ids)) == (101, 4 * 64)\n"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
