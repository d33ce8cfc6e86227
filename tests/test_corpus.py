import json

import pytest

from glmcore.data.corpus.collect import collect
from glmcore.data.corpus.installed import docstrings
from glmcore.data.corpus.user_files import collect_user_files
from glmcore.data.documents import Document, read_documents, write_documents
from glmcore.errors import DataError
from glmcore.recipe import CorpusConfig


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
        problems={"chain_sum": 50},
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
