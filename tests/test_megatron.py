import struct

import numpy as np
import pytest

from glmcore.data.loader import Source
from glmcore.data.megatron import MegatronWriter, megatron_to_shard, shards_to_megatron
from glmcore.data.samples import SampleStream
from glmcore.data.shards import ShardWriter, TokenShards
from glmcore.errors import DataError


def documents(vocab_size: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, vocab_size, length, np.int32) for length in (5, 0, 100, 1, 37)]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_499, np.uint16), (65_500, np.int32)])
def test_shards_survive_the_way_to_megatron_and_back(tmp_path, vocab_size, dtype):
    texts = documents(vocab_size)
    with ShardWriter(tmp_path / "web.tokens", vocab_size) as writer:
        for ids in texts:
            writer.append(ids)
    shards_to_megatron(TokenShards.open(tmp_path / "web.tokens"), tmp_path / "web")
    found = TokenShards.open_megatron(tmp_path / "web", vocab_size)
    found.verify()
    assert len(found) == len(texts)
    assert found.lengths.tolist() == [len(ids) for ids in texts]
    for ids, expected in zip(found, texts, strict=True):
        assert ids.dtype == dtype
        np.testing.assert_array_equal(ids, expected)
        assert not ids.flags.writeable
    assert (found.source(0), found.quality(0), found.has_loss_mask) == (0, 1.0, False)
    assert found.loss_mask(0).tolist() == [1] * 5

    megatron_to_shard(tmp_path / "web", tmp_path / "back.tokens", vocab_size, source=3, quality=0.5)
    back = TokenShards.open(tmp_path / "back.tokens")
    back.verify()
    assert [ids.tolist() for ids in back] == [ids.tolist() for ids in texts]
    assert (back.source(4), back.quality(4)) == (3, 0.5)


def test_the_index_is_the_bytes_that_megatron_writes(tmp_path):
    with MegatronWriter(tmp_path / "web", 100) as writer:
        writer.append([1, 2, 3])
        writer.append(np.array([7], np.uint64))
    expected = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 2, 3)
    expected += struct.pack("<2i", 3, 1) + struct.pack("<2q", 0, 6) + struct.pack("<3q", 0, 1, 2)
    assert (tmp_path / "web.idx").read_bytes() == expected
    assert (tmp_path / "web.bin").read_bytes() == struct.pack("<4H", 1, 2, 3, 7)


def test_megatron_core_reads_what_we_write(tmp_path):
    module = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed")
    texts = documents(1000)
    with MegatronWriter(tmp_path / "web", 1000) as writer:
        for ids in texts:
            writer.append(ids)
    found = module.IndexedDataset(str(tmp_path / "web"))
    assert len(found) == len(texts)
    for index, expected in enumerate(texts):
        np.testing.assert_array_equal(found[index], expected)
    assert found.document_indices.tolist() == list(range(len(texts) + 1))


def test_both_formats_of_the_same_documents_give_the_same_samples(tmp_path):
    with ShardWriter(tmp_path / "web.tokens", 1000) as writer:
        for ids in documents(1000):
            writer.append(ids)
    shards = TokenShards.open(tmp_path / "web.tokens")
    shards_to_megatron(shards, tmp_path / "web")
    formats = (shards, TokenShards.open_megatron([tmp_path / "web"], 1000))
    ours, theirs = (SampleStream([Source("web", part, 1.0)], capacity=16, seed=1).batch(0, 30) for part in formats)
    for name, value in vars(ours).items():
        np.testing.assert_array_equal(getattr(theirs, name), value)


def test_what_is_wrong_is_one_clear_line(tmp_path):
    def message(call) -> str:
        with pytest.raises(DataError) as caught:
            call()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    prefix = tmp_path / "web"
    assert "cannot open" in message(lambda: TokenShards.open_megatron(prefix, 100))
    with MegatronWriter(prefix, 100) as writer:
        writer.append([1, 2, 3])
        assert "document 1 has id 100 at position 0" in message(lambda: writer.append([100]))
        assert "ids must be 1-D integers" in message(lambda: writer.append([[1]]))
    assert "closed" in message(writer.finish)
    assert "vocab_size is 0" in message(lambda: TokenShards.open_megatron(prefix, 0))
    good = (tmp_path / "web.idx").read_bytes()
    (tmp_path / "web.idx").write_bytes(good[:-1])
    assert f"web.idx has {len(good) - 1} bytes, a complete file has {len(good)}" in message(
        lambda: TokenShards.open_megatron(prefix, 100)
    )
    (tmp_path / "web.idx").write_bytes(good)
    (tmp_path / "web.bin").write_bytes(b"\0\0")
    assert "web.bin has 2 bytes, a complete file has 6" in message(lambda: TokenShards.open_megatron(prefix, 100))


def test_a_failed_block_leaves_no_files(tmp_path):
    def fail(writer: MegatronWriter) -> None:
        with writer:
            writer.append([1])
            raise KeyError

    with pytest.raises(KeyError):
        fail(MegatronWriter(tmp_path / "web", 100))
    assert list(tmp_path.iterdir()) == []
