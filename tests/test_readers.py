"""Records of every kind of file; what is no record is named and counted."""

import gzip
import json
import random
import subprocess

import fsspec
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmcore.data.config import DataConfig
from glmcore.data.convert import find_documents
from glmcore.data.ingest import IngestJob, ingest
from glmcore.data.parts import WorkPlace, plan_parts
from glmcore.data.readers.record import Limits, Rejects
from glmcore.data.readers.streams import lines
from glmcore.data.readers.text import cut
from glmcore.errors import DataError

HAIKU = "an old silent pond\na frog jumps into the pond\nsplash, silence again\n"


def read(tmp_path, *paths, limits=(), **source):
    """Documents and rejects of a source."""
    config = DataConfig(sources=[{"name": "s", "paths": [str(path) for path in paths], **source}], **dict(limits))
    file = tmp_path / "rejects.out"
    with Rejects(file, stop=config.on_bad_record == "stop") as rejects:
        pieces = [piece for part in plan_parts(config) for piece in part.pieces]
        limits = Limits(config.max_record_bytes, config.max_text_bytes)
        found = [one for piece in pieces for one in find_documents(config.sources[0], piece, limits, 0, rejects)]
        documents = [one.document for one in found]
    told = [json.loads(line) for line in file.read_text().splitlines()]
    assert sum(reject.get("num_records", 1) for reject in told) == sum(rejects.counts.values())
    return documents, told


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as output:
        output.write(data)
    return sink.getvalue().to_pybytes()


def records(count: int) -> list[dict]:
    return [{"id": f"n{i}", "text": f"text {i} \u4f60" * (1 + i % 7), "score": i / count} for i in range(count)]


def as_jsonl(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def save_dataset(directory, rows, batch=7):
    """A dataset as `datasets.Dataset.save_to_disk` lays it out."""
    directory.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(directory / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    (directory / "dataset_info.json").write_text("{}")
    (directory / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow", "dataset", "memory", "file"])
def test_every_form_of_the_same_rows_gives_the_same_documents(tmp_path, kind):
    rows = records(50)
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_bytes(as_jsonl(rows))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(as_jsonl(rows[:20])) + gzip.compress(as_jsonl(rows[20:])) + b"\0" * 100)
    elif kind == "jsonl.zst":
        path.write_bytes(zstd(as_jsonl(rows[:20])) + zstd(as_jsonl(rows[20:])))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=9)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), pa.Table.from_pylist(rows).schema) as writer:
            writer.write_table(pa.Table.from_pylist(rows), max_chunksize=11)
    elif kind == "dataset":
        save_dataset(path, rows)
    else:
        path = {"memory": "memory://rows.jsonl", "file": f"file://{tmp_path}/rows.jsonl"}[kind]
        with fsspec.open(path, "wb") as file:
            file.write(as_jsonl(rows))
    documents, rejects = read(tmp_path, path, fields={"quality": "score", "metadata": ["score"]})
    assert rejects == []
    assert [(d.id, d.text, d.quality, d.metadata) for d in documents] == [
        (row["id"], row["text"], row["score"], {"score": row["score"]}) for row in rows
    ]


@given(
    texts=st.lists(st.text(alphabet="ab\n\u4f60", max_size=30), max_size=12),
    part_bytes=st.integers(1, 200),
    ending=st.sampled_from(["", "\n"]),
)
def test_however_a_file_is_cut_each_line_is_read_once(tmp_path_factory, texts, part_bytes, ending):
    folder = tmp_path_factory.mktemp("cut")
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": "x" + text}) for text in texts) + ending)
    if not texts:
        (folder / "a.jsonl").write_text("\n")
    documents, rejects = read(folder, folder / "a.jsonl", limits={"part_bytes": part_bytes})
    assert [d.text for d in documents] == ["x" + text for text in texts]
    assert rejects == []
    places = [int(d.id.rsplit(" ", 1)[1]) for d in documents]
    content = (folder / "a.jsonl").read_bytes()
    assert [json.loads(content[at:].split(b"\n")[0])["text"] for at in places] == ["x" + text for text in texts]


@given(
    content=st.binary(max_size=200),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=50),
    limit=st.integers(1, 20),
)
def test_lines_agree_with_split_for_any_blocks_and_limit(content, sizes, limit):
    content = content.replace(b"\x00", b"\n")
    chunks, at = [], 0
    while at < len(content):
        chunks.append(content[at : at + sizes[len(chunks) % len(sizes)]])
        at += len(chunks[-1])
    lost = []
    found = list(lines(iter(chunks), 0, -1, limit, lambda place, *rest: lost.append(place)))
    expected, offset = [], 0
    for line in content.split(b"\n"):
        expected.append((offset, line))
        offset += len(line) + 1
    if not expected[-1][1]:
        expected.pop()
    assert found == [(at, line) for at, line in expected if len(line) <= limit]
    assert lost == [f"offset {at}" for at, line in expected if len(line) > limit]


def test_bad_lines_are_rejected_with_their_place_and_reason(tmp_path):
    good = b'{"text": "fine"}\n'
    bad = {
        "invalid_json": b'{"text": "torn',
        "invalid_utf8": b'{"text": "\xff"}',
        "missing_field": b'{"txt": "x"}',
        "wrong_type": b'{"text": 5}',
        "empty": b'{"text": " \\n"}',
        "too_long": b'{"text": "' + b"x" * 300 + b'"}',
    }
    content, places = good, {}
    for reason, line in bad.items():
        places[reason] = f"offset {len(content)}"
        content += line + b"\n\n" + good
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + content)
    documents, rejects = read(tmp_path, tmp_path / "a.jsonl", limits={"max_record_bytes": 200})
    assert len(documents) == 7
    assert {r["reason"]: r["place"] for r in rejects} == {
        reason: f"offset {int(place.split()[1]) + 3}" for reason, place in places.items()
    }
    assert all(r["file"] == str(tmp_path / "a.jsonl") and len(r["sample"]) <= 1_000 for r in rejects)
    with pytest.raises(DataError, match=r"a\.jsonl: offset 20: invalid_json"):
        read(tmp_path, tmp_path / "a.jsonl", limits={"on_bad_record": "stop"})


@pytest.mark.parametrize(("kind", "damage"), [("gz", "cut"), ("gz", "flip"), ("zst", "cut")])
def test_what_comes_before_the_damage_of_a_compressed_file_is_read(tmp_path, kind, damage):
    draw = random.Random(0)
    rows = [{"text": f"{i} {draw.getrandbits(64)}"} for i in range(20_000)]
    packed = bytearray((gzip.compress if kind == "gz" else zstd)(as_jsonl(rows)))
    if damage == "cut":
        del packed[-len(packed) // 3 :]
    else:
        packed[-len(packed) // 3] ^= 0xFF
    (tmp_path / f"a.jsonl.{kind}").write_bytes(packed)
    documents, rejects = read(tmp_path, tmp_path / f"a.jsonl.{kind}")
    assert len(documents) > 5_000
    reasons = [r["reason"] for r in rejects]
    assert "damaged_file" in reasons
    assert damage == "flip" or sorted(reasons) == ["damaged_file", "invalid_json"]  # the damage, and the torn line
    assert [d.text for d in documents[:5_000]] == [row["text"] for row in rows[:5_000]]


def test_a_damaged_row_group_costs_its_rows_and_no_others(tmp_path):
    rows = records(40)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=10, compression="zstd")
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    for column in range(3):
        start = metadata.row_group(1).column(column).data_page_offset
        content[start : start + 30] = b"\xff" * 30
    (tmp_path / "a.parquet").write_bytes(content)
    documents, rejects = read(tmp_path, tmp_path / "a.parquet")
    assert [d.id for d in documents] == [row["id"] for row in rows[:10] + rows[20:]]
    assert [(r["place"], r["reason"], r["num_records"]) for r in rejects] == [("row 10", "damaged_file", 10)]
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    documents, rejects = read(tmp_path, tmp_path / "b.parquet")
    assert (documents, [r["reason"] for r in rejects]) == ([], ["damaged_file"])


def test_bad_rows_of_a_table_are_rejected_one_by_one(tmp_path):
    texts = pa.array([b"good", b"\xff\xfe", None, b"x" * 500], pa.binary()).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, texts.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    documents, rejects = read(tmp_path, tmp_path / "a.parquet", limits={"max_record_bytes": 100})
    assert [d.text for d in documents] == ["good"]
    assert [(r["place"], r["reason"]) for r in rejects] == [
        ("row 1", "invalid_utf8"),
        ("row 2", "missing_field"),
        ("row 3", "too_long"),
    ]


def test_parquet_files_are_cut_at_row_groups(tmp_path):
    rows = records(100)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=10)
    config = DataConfig(sources=[{"name": "s", "paths": [str(tmp_path / "a.parquet")]}], part_bytes=2_000)
    assert len(plan_parts(config)) > 3
    documents, _ = read(tmp_path, tmp_path / "a.parquet", limits={"part_bytes": 2_000})
    assert [d.id for d in documents] == [row["id"] for row in rows]


def test_a_directory_gives_its_text_files_in_order(tmp_path):
    folder = tmp_path / "notes"
    (folder / "deep" / ".git").mkdir(parents=True)
    (folder / "b.md").write_text("---\ntitle: B\n---\n# B\n")
    (folder / "a.txt").write_text("A")
    (folder / "deep" / "c.py").write_text("pass\n")
    (folder / "deep" / ".git" / "config.txt").write_text("hidden")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    (folder / "bad.txt").write_bytes(b"caf\xe9")
    documents, rejects = read(tmp_path, folder)
    assert [d.text for d in documents] == ["A", "# B\n", "pass\n"]
    assert [(r["file"], r["reason"]) for r in rejects] == [(str(folder / "bad.txt"), "invalid_utf8")]
    documents, _ = read(tmp_path, folder / "**" / "*.py")
    assert [d.text for d in documents] == ["pass\n"]
    documents, _ = read(tmp_path, folder / "a.txt", folder / "b.md", format="lines")
    assert [d.text for d in documents] == ["A", "---", "title: B", "---", "# B"]


@given(content=st.text(alphabet="ab\n\u4f60\U0001f600", max_size=80), limit=st.integers(8, 20), block=st.integers(1, 9))
def test_a_long_text_is_cut_at_line_ends_and_characters(content, limit, block):
    data = content.encode()
    pieces = list(cut((data[i : i + block] for i in range(0, len(data), block)), limit))
    assert b"".join(pieces) == data
    for piece, following in zip(pieces, [*pieces, None][1:], strict=True):
        assert 0 < len(piece) <= limit
        piece.decode()
        assert following is None or piece.endswith(b"\n") or b"\n" not in piece


def test_a_commit_of_a_git_repository_is_read_without_a_checkout(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()

    def git(*arguments):
        command = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        subprocess.run(command, check=True, capture_output=True)

    git("init", "-q")
    (folder / "b.py").write_text("b = 1\n")
    (folder / "a.bin").write_bytes(b"\0\1")
    (folder / "a.py").write_text("a = 1\n")
    (folder / "link").symlink_to("a.py")
    git("add", ".")
    git("commit", "-qm", "one")
    (folder / "a.py").write_text("a = 2\n")
    git("commit", "-qam", "two")
    (folder / "a.py").write_text("not committed")
    documents, rejects = read(tmp_path, folder, format="git")
    assert [d.text for d in documents] == ["a = 2\n", "b = 1\n"]
    assert [(r["place"], r["reason"]) for r in rejects] == [("a.bin", "binary_file")]
    documents, _ = read(tmp_path, folder, format="git", revision="HEAD~1")
    assert documents[0].text == "a = 1\n"
    with pytest.raises(DataError, match="no commit 'nowhere'"):
        read(tmp_path, folder, format="git", revision="nowhere")


def test_the_split_of_a_dataset_has_to_be_chosen(tmp_path):
    for split in ("train", "test"):
        save_dataset(tmp_path / "set" / split, [{"text": f"of {split}"}])
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"the splits train, test: choose one with `split`"):
        read(tmp_path, tmp_path / "set")
    documents, _ = read(tmp_path, tmp_path / "set", split="test")
    assert [d.text for d in documents] == ["of test"]


def test_conversations_that_cannot_be_rendered_are_rejected(tmp_path):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [{"messages": chat}, {"messages": []}, {"messages": [{"role": "poet"}]}, {"messages": "hi"}, {"text": HAIKU}]
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(rows))
    documents, rejects = read(tmp_path, tmp_path / "a.jsonl", kind="conversations")
    assert [[(m["role"], m["content"]) for m in d.messages] for d in documents] == [
        [("user", "hi"), ("assistant", "hello")]
    ]
    assert [r["reason"] for r in rejects] == ["bad_conversation"] * 4


def test_a_path_that_leads_nowhere_is_named(tmp_path):
    with pytest.raises(DataError, match=r"source 's': .*nowhere\.jsonl holds nothing to read"):
        read(tmp_path, tmp_path / "nowhere.jsonl")
    (tmp_path / "strange.xyz").write_text("x")
    with pytest.raises(DataError, match=r"cannot tell the format of .*strange\.xyz"):
        read(tmp_path, tmp_path / "strange.xyz")


def test_a_file_that_vanishes_is_a_reject(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    config = DataConfig(sources=[{"name": "s", "paths": [str(tmp_path / "a.txt")]}])
    [part] = plan_parts(config)
    (tmp_path / "a.txt").unlink()
    job = IngestJob(part, "key", config, 0, WorkPlace(str(tmp_path / "run")))
    assert ingest(job)["rejects"] == {"unreadable_file": 1}
