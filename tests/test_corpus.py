import json
from pathlib import Path

import pytest

from glmcore.cli import main
from glmcore.data import manifest
from glmcore.data.config import DataConfig
from glmcore.data.corpus.collect import collect
from glmcore.data.corpus.installed import docstrings
from glmcore.data.documents import Document, read_documents, write_documents
from glmcore.data.parts import plan_parts
from glmcore.data.shards import TokenShards
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


TINY = Path(__file__).parent / "tiny.toml"


def prepare(run, path):
    return main(["data", "prepare", str(TINY), f"run.dir={run}", f'corpus.path="{path}"'])


def test_a_users_files_of_every_kind_are_read(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.md").write_text("# Title\ntext")
    said = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    lines = [json.dumps({"text": "one"}), "not json", json.dumps(said), json.dumps({"other": 1})]
    (files / "b.jsonl").write_text("\n".join(lines))
    (files / "c.txt").write_bytes(b"\xff\xfe")
    (files / "d.bin").write_bytes(b"ignored")
    run = tmp_path / "run"
    assert prepare(run, files) == 0
    documents = list(read_documents(run / "corpus" / "user.jsonl"))
    assert [document.plain_text for document in documents] == ["# Title\ntext", "one", "hi\nho"]
    rejects = [json.loads(line) for line in (run / "rejects" / "user.jsonl").read_text().splitlines()]
    told = [(Path(reject["file"]).name, reject["reason"]) for reject in rejects]
    assert told == [("b.jsonl", "invalid_json"), ("b.jsonl", "missing_field"), ("c.txt", "invalid_utf8")]
    [user] = [source for source in manifest.read(run / "shards")["sources"] if source["name"] == "user"]
    assert (user["kind"], user["records"], user["documents"]) == ("mixed", 6, 3)
    shard = TokenShards.open([run / "shards" / name for name in ("user.tokens", "user.held_out.tokens")])
    learned = sorted((shard.loss_mask(number) == 1).mean() for number in range(3))
    assert 0 < learned[0] < learned[1] == learned[2] == 1
    (files / "a.md").write_text("# Title\nanother text")
    assert prepare(run, files) == 0
    assert next(read_documents(run / "corpus" / "user.jsonl")).plain_text == "# Title\nanother text"


def test_a_named_file_of_any_name_is_a_text(tmp_path):
    (tmp_path / "NOTES").write_text("all that I know")
    [part] = plan_parts(DataConfig.with_user_text(None, str(tmp_path / "NOTES")))
    assert [piece.format for piece in part.pieces] == ["text"]


@pytest.mark.parametrize("content", [None, b"", b"  \n", b"\xff\xff"])
def test_a_corpus_without_text_is_one_clear_line(tmp_path, capsys, content):
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    assert prepare(tmp_path / "run", path) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("glmcore: error:")]
    assert "corpus.txt" in line
    assert not (tmp_path / "run" / "corpus" / "prose.jsonl").exists(), "much work before the mistake was told"
