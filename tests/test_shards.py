import gc
import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmcore.data.shards import ShardWriter, TokenShards
from glmcore.errors import DataError

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


def write(path, documents, vocab_size=1000, **extra):
    with ShardWriter(path, vocab_size, with_loss_mask="loss_mask" in extra) as writer:
        for ids in documents:
            writer.append(ids, **extra)
    return path


@settings(deadline=None, max_examples=50)
@given(
    vocab_size=st.sampled_from([300, 65_536, 65_537, 2**31 - 1]),
    shards=st.lists(st.lists(st.lists(st.integers(0, 299), max_size=12), max_size=6), min_size=1, max_size=3),
    masked=st.booleans(),
    data=st.data(),
)
def test_documents_of_several_shards_are_read_as_written(folder, vocab_size, shards, masked, data):
    paths, masks = [], []
    for documents in shards:
        paths.append(folder / str(next(NUMBERS)))
        with ShardWriter(paths[-1], vocab_size, with_loss_mask=masked) as writer:
            for number, ids in enumerate(documents):
                mask = data.draw(st.none() | st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
                masks.append(mask if masked and mask is not None else [True] * len(ids))
                writer.append(ids, loss_mask=mask if masked else None, source=number, quality=number / 4)
            assert (writer.num_documents, writer.num_tokens) == (len(documents), sum(map(len, documents)))

    opened = TokenShards.open(paths)
    opened.verify()
    expected = [(number, ids) for documents in shards for number, ids in enumerate(documents)]
    assert len(opened) == len(expected)
    assert opened.num_tokens == sum(len(ids) for _, ids in expected)
    assert opened.lengths.tolist() == [len(ids) for _, ids in expected]
    assert opened.vocab_size == vocab_size
    assert opened.has_loss_mask == masked
    for index, (number, ids) in enumerate(expected):
        view = opened[index]
        assert view.dtype == (np.uint16 if vocab_size <= 65_536 else np.int32)
        assert view.tolist() == ids
        assert opened.loss_mask(index).tolist() == masks[index]
        assert (opened.source(index), opened.quality(index)) == (number, number / 4)


def test_a_view_is_read_only_and_keeps_the_file_mapped(tmp_path):
    path = write(tmp_path / "a", [range(500)])
    view = TokenShards.open(path)[0]
    path.unlink()
    gc.collect()
    assert view.tolist() == list(range(500))
    assert not view.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_documents_are_indexed_like_a_list(tmp_path):
    shards = TokenShards.open(write(tmp_path / "a", [[1], [2, 3]]))
    assert [ids.tolist() for ids in shards] == [[1], [2, 3]]
    assert shards[-1].tolist() == [2, 3]
    for index in (2, -3):
        with pytest.raises(IndexError, match=f"document {index} of 2"):
            shards[index]


def test_every_kind_of_ids_is_stored(tmp_path):
    kinds = [[1, 2], np.array([1, 2], np.int32), np.array([1, 2]), np.array([1, 2], np.uint16), range(1, 3)]
    shards = TokenShards.open(write(tmp_path / "a", kinds))
    assert all(ids.tolist() == [1, 2] for ids in shards)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [1, 1000]}, "document 1 has id 1000 at position 1, ids must be from 0 to 999"),
        ({"ids": [-1]}, "document 1 has id -1 at position 0"),
        ({"ids": [2**40]}, "document 1 has id 1099511627776 at position 0"),
        ({"ids": [0.5]}, "ids must be 1-D integers, got 1-D float64"),
        ({"ids": [[1]]}, "ids must be 1-D integers, got 2-D int64"),
        ({"ids": np.zeros(4, np.int32)[::2]}, "ids must be C-contiguous"),
        ({"ids": [1], "loss_mask": [1]}, "document 1 has a loss mask, but the shard was created without"),
        ({"ids": [1], "source": 65_536}, "source is 65536, it must be from 0 to 65535"),
    ],
)
def test_a_document_that_cannot_be_stored_is_named_and_adds_nothing(tmp_path, arguments, message):
    path = tmp_path / "a"
    with ShardWriter(path, 1000) as writer:
        writer.append([7])
        with pytest.raises(DataError) as caught:
            writer.append(**arguments)
        writer.append([8])
    assert message in str(caught.value)
    assert [ids.tolist() for ids in TokenShards.open(path)] == [[7], [8]]


def test_a_mask_of_another_length_is_refused(tmp_path):
    with (
        ShardWriter(tmp_path / "a", 10, with_loss_mask=True) as writer,
        pytest.raises(DataError, match="2 loss"),
    ):
        writer.append([1], loss_mask=[1, 0])


def test_an_error_in_the_block_leaves_the_old_shard_and_no_other_file(tmp_path):
    path = write(tmp_path / "a", [[1]])

    def interrupted():
        with ShardWriter(path, 1000) as writer:
            writer.append([2])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == [path]
    assert TokenShards.open(path)[0].tolist() == [1]


def test_a_finished_writer_takes_no_more_documents(tmp_path):
    writer = ShardWriter(tmp_path / "a", 10)
    writer.finish()
    for call in (lambda: writer.append([1]), writer.finish):
        with pytest.raises(DataError, match="the shard is closed"):
            call()


def test_a_killed_writer_leaves_no_shard_and_the_next_one_succeeds(tmp_path):
    path = tmp_path / "a"
    code = (
        "import sys; from glmcore.data.shards import ShardWriter; writer = ShardWriter(sys.argv[1], 9)\n"
        "while True: writer.append([1] * 1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as process:
        partial = tmp_path / "a.partial"
        while not (partial.exists() and partial.stat().st_size > 1 << 20):
            time.sleep(0.01)
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    assert not path.exists()
    write(path, [[1]])
    assert list(tmp_path.iterdir()) == [path]
    TokenShards.open(path).verify()


@pytest.mark.parametrize("vocab_size", [0, -1, 2**31])
def test_a_vocabulary_size_out_of_range_is_refused(tmp_path, vocab_size):
    with pytest.raises(DataError, match=f"vocab_size is {vocab_size}, it must be between 1 and 2147483647"):
        ShardWriter(tmp_path / "a", vocab_size)


def test_every_flipped_header_byte_names_the_file(tmp_path):
    path = write(tmp_path / "web.tokens", [[1, 2, 3], [4]], loss_mask=None)
    good = path.read_bytes()
    for byte in range(256):
        path.write_bytes(good[:byte] + bytes([good[byte] ^ 0xFF]) + good[byte + 1 :])
        with pytest.raises(DataError, match=r"web\.tokens"):
            TokenShards.open(path)


def test_a_shard_cut_at_any_length_names_the_file(tmp_path):
    path = write(tmp_path / "web.tokens", [[1, 2, 3], [4]])
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(DataError, match=rf"web\.tokens has {length} bytes, a complete file has"):
            TokenShards.open(path)


def test_every_flipped_byte_behind_the_header_is_found_by_verify(tmp_path):
    path = write(tmp_path / "web.tokens", [[1, 2, 3], [4]])
    good = path.read_bytes()
    for byte in range(256, len(good)):
        path.write_bytes(good[:byte] + bytes([good[byte] ^ 0xFF]) + good[byte + 1 :])
        with pytest.raises(DataError, match=r"web\.tokens is damaged at"):
            TokenShards.open(path).verify()


def test_files_that_are_no_shards_are_named(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("x" * 300)
    with pytest.raises(DataError, match=r"notes\.txt is not a token shard"):
        TokenShards.open(text)
    with pytest.raises(DataError, match=r"cannot open .*missing: No such file"):
        TokenShards.open(tmp_path / "missing")
    with pytest.raises(DataError, match=r"cannot create .*a\.partial: No such file"):
        ShardWriter(tmp_path / "missing" / "a", 10)
    with pytest.raises(DataError, match="no shards are given"):
        TokenShards.open([])


def test_shards_of_two_vocabularies_are_not_mixed(tmp_path):
    paths = [write(tmp_path / str(size), [[1]], vocab_size=size) for size in (10, 20)]
    with pytest.raises(DataError, match="20 has a vocabulary of 20, the shards before it of 10"):
        TokenShards.open(paths)
