import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import packing as oracle

from glmcore import Ragged
from glmcore.data.corpus.collect import collect
from glmcore.data.corpus.installed import docstrings
from glmcore.data.corpus.user_files import collect_user_files
from glmcore.data.documents import Document, read_documents, write_documents
from glmcore.data.loader import PackedRows, Source
from glmcore.data.shards import ShardWriter, TokenShards
from glmcore.errors import DataError, PackingError
from glmcore.packing import balance, fill, pack_best_fit, pack_concat
from glmcore.recipe import CorpusConfig


def write_shard(path, documents, masks=None, vocab_size=1_000):
    with ShardWriter(path, vocab_size, with_loss_mask=masks is not None) as writer:
        for index, ids in enumerate(documents):
            writer.append(np.array(ids, np.int32), None if masks is None else np.array(masks[index], np.uint8))
    return TokenShards.open(path)


LENGTHS = st.lists(st.integers(0, 64), max_size=200)


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, capacity=st.integers(64, 128))
def test_best_fit_agrees_with_the_oracle_and_fills_no_row_past_capacity(lengths, capacity):
    packing = pack_best_fit(lengths, capacity)
    assert packing.row_of.dtype == np.uint32
    np.testing.assert_array_equal(packing.row_of, oracle.best_fit(lengths, capacity))
    assert np.bincount(packing.row_of, weights=lengths).max(initial=0) <= capacity
    assert sorted(packing.order.tolist()) == list(range(len(lengths)))


@settings(deadline=None, max_examples=60)
@given(
    documents=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=20), min_size=1, max_size=12),
    concat=st.booleans(),
)
def test_filled_rows_hold_every_token_once_with_its_own_documents_next_token_as_label(documents, concat):
    capacity = 24
    ids = np.array([token for document in documents for token in document], np.int32)
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    lengths = [len(document) for document in documents]
    packing = pack_concat(lengths, capacity) if concat else pack_best_fit(lengths, capacity)
    batch = fill(Ragged(ids, offsets), packing, capacity, pad_id=-1)
    assert len(batch.input_ids) == packing.num_rows * capacity
    found = []
    for start, end in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
        piece = batch.input_ids[start:end].tolist()
        assert batch.position_ids[start:end].tolist() == list(range(end - start))
        if piece[0] == -1:
            assert set(piece) == {-1}
            assert set(batch.labels[start:end].tolist()) == {-100}
        else:
            found.append(piece)
            assert batch.labels[start:end].tolist() == [*piece[1:], -100]
    if concat:
        assert [token for piece in found for token in piece] == ids.tolist()
    else:
        assert sorted(found) == sorted(documents)


def test_tokens_outside_the_loss_mask_are_no_labels(tmp_path):
    shards = write_shard(tmp_path / "a.tokens", [[1, 2, 3, 4]], [[0, 0, 1, 1]])
    rows = PackedRows([Source("a", shards, 1.0)], capacity=4, num_rows=1, packing="best_fit", seed=0, pad_id=0)
    assert rows.batch(0, 1).labels.tolist() == [-100, 3, 4, -100]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_best_fit(np.zeros(8, np.uint32)[::2], 4), "C-contiguous"),
        (lambda: pack_best_fit([3, 9], 8), "document 1 has 9 tokens, more than the row capacity of 8"),
        (lambda: pack_concat([1], 0), "capacity is 0"),
        (lambda: balance([1.0, float("nan")], 2), "cost 1 is"),
        (lambda: balance([1.0], 0), "num_ranks is 0"),
    ],
)
def test_what_cannot_be_packed_is_named(call, message):
    with pytest.raises(PackingError, match=message):
        call()


def test_balance_gives_the_costliest_to_the_least_loaded():
    assert balance([1.0, 5.0, 4.0], 2).tolist() == [1, 0, 1]


@settings(deadline=None, max_examples=40)
@given(
    documents=st.lists(st.lists(st.integers(0, 999), max_size=30), max_size=20),
    wide=st.booleans(),
    masked=st.booleans(),
)
def test_a_shard_gives_back_what_was_written(tmp_path_factory, documents, wide, masked):
    path = tmp_path_factory.mktemp("shard") / "s.tokens"
    masks = [[token % 2 for token in document] for document in documents] if masked else None
    shards = write_shard(path, documents, masks, vocab_size=100_000 if wide else 1_000)
    assert len(shards) == len(documents)
    assert shards.num_tokens == sum(map(len, documents))
    assert shards.lengths.tolist() == [len(document) for document in documents]
    for index, document in enumerate(documents):
        assert shards[index].tolist() == document
        assert shards.loss_mask(index).tolist() == (masks[index] if masked else [1] * len(document))
    shards.verify()


@settings(deadline=None, max_examples=60)
@given(cut=st.floats(0, 1, exclude_max=True), flip=st.floats(0, 1, exclude_max=True))
def test_a_damaged_shard_is_an_error_with_its_name(tmp_path_factory, cut, flip):
    path = tmp_path_factory.mktemp("shard") / "s.tokens"
    write_shard(path, [[1, 2, 3]] * 20, [[0, 1, 1]] * 20)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(DataError, match=r"s\.tokens"):
        TokenShards.open(path)
    damaged = bytearray(content)
    damaged[int(flip * len(content))] ^= 0x20
    path.write_bytes(damaged)
    if content[int(flip * len(content))] or int(flip * len(content)) < 256:
        # Only the zero bytes between sections are under no checksum.
        with pytest.raises(DataError, match=r"s\.tokens"):
            TokenShards.open(path).verify()


def test_an_error_while_writing_leaves_no_file(tmp_path):
    with pytest.raises(DataError, match="document 1 has id 50 at position 1"):
        write_shard(tmp_path / "s.tokens", [[1], [2, 50]], vocab_size=10)
    assert list(tmp_path.iterdir()) == []


def make_rows(tmp_path, packing="concat", num_rows=40, seed=3, weights=(3.0, 1.0)):
    rng = np.random.default_rng(0)
    sources = []
    for number, (name, weight) in enumerate(zip("ab", weights, strict=True)):
        path = tmp_path / f"{name}.tokens"
        documents = [np.full(rng.integers(1, 20), number) for _ in range(30)]
        shards = TokenShards.open(path) if path.exists() else write_shard(path, documents)
        sources.append(Source(name, shards, weight))
    return PackedRows(sources, capacity=16, num_rows=num_rows, packing=packing, seed=seed, pad_id=9)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_rows_are_a_pure_function_of_their_arguments_and_keep_the_mixture(tmp_path, packing):
    rows = make_rows(tmp_path, packing, num_rows=400)
    again = make_rows(tmp_path, packing, num_rows=400)
    for start in range(0, 400, 100):
        np.testing.assert_array_equal(rows.batch(start, 100).input_ids, again.batch(start, 100).input_ids)
    whole, part = rows.batch(0, 10).input_ids, rows.batch(4, 2).input_ids
    np.testing.assert_array_equal(whole[4 * 16 : 6 * 16], part)
    other = make_rows(tmp_path, packing, num_rows=400, seed=4)
    assert not np.array_equal(rows.batch(0, 50).input_ids, other.batch(0, 50).input_ids)
    share = rows.tokens_by_source["a"] / sum(rows.tokens_by_source.values())
    assert share == pytest.approx(0.75, abs=0.02)
    assert rows.epochs_by_source["a"] > 5
    assert rows.padding_fraction == (0 if packing == "concat" else pytest.approx(0, abs=0.1))


def test_documents_survive_the_disk_and_broken_lines_are_named(tmp_path):
    documents = [
        Document("a", "prose", "text \u4f60\n"),
        Document("b", "sft", messages=[{"role": "user", "content": "x"}], quality=0.5),
    ]
    stats = write_documents(tmp_path / "d.jsonl", documents)
    assert list(read_documents(tmp_path / "d.jsonl")) == documents
    assert stats.num_documents == 2
    with (tmp_path / "d.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match=r"d.jsonl:3: not a document"):
        list(read_documents(tmp_path / "d.jsonl"))


def test_the_corpus_is_real_bounded_and_the_same_every_time():
    config = CorpusConfig(
        prose_bytes=200_000,
        code_bytes=200_000,
        repository_bytes=200_000,
        git_bytes=20_000,
        reasoning_tasks=["chain_sum"],
        problems_per_task=50,
    )
    first = {name: list(documents) for name, documents in collect(config, seed=0).items()}
    second = {name: list(documents) for name, documents in collect(config, seed=0).items()}
    assert first == second
    assert set(first) == {"prose", "code", "repository", "reasoning", "sft"}
    for name in ("prose", "code", "repository"):
        size = sum(len(document.plain_text) for document in first[name])
        assert 100_000 < size < 500_000, name
    assert any("def " in document.text for document in first["code"])
    assert any(document.text.startswith("# file: ") for document in first["repository"])
    thinking = [bool(document.messages[1]["reasoning_content"]) for document in first["sft"]]
    assert 0.2 < sum(thinking) / len(thinking) < 0.8


def test_docstrings_come_with_their_names():
    source = 'def f():\n    """' + "What f does, at some length so that it counts as prose." * 2 + '"""\n'
    assert docstrings(source).startswith("f\nWhat f does")
    assert docstrings("this is no python") == ""


def test_a_users_files_of_every_kind_are_read(tmp_path, capsys):
    (tmp_path / "a.md").write_text("# Title\ntext")
    (tmp_path / "b.jsonl").write_text(
        json.dumps({"text": "one"})
        + "\nnot json\n"
        + json.dumps({"messages": [{"role": "user", "content": "hi"}]})
        + "\n"
    )
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "d.bin").write_bytes(b"ignored")
    documents = collect_user_files(tmp_path)
    assert [document.plain_text for document in documents] == ["# Title\ntext", "one", "hi"]
    said = capsys.readouterr().err
    assert "b.jsonl:2" in said
    assert "c.txt: not UTF-8" in said


@pytest.mark.parametrize("content", [None, b"", b"  \n", b"\xff\xff"])
def test_a_corpus_without_text_is_one_clear_line(tmp_path, content):
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"corpus.txt"):
        collect_user_files(path)
