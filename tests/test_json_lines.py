import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmcore import Tokenizer, train_tokenizer
from glmcore.cli import main
from glmcore.data.json_lines import tokenize_json_lines
from glmcore.data.megatron import MegatronWriter
from glmcore.data.shards import ShardWriter, TokenShards
from glmcore.errors import DataError, TokenizerError
from glmcore.tokenizer import END_OF_TEXT

TOKENIZER = train_tokenizer(["the cat sat on the mat, the dog did not; 你好世界"] * 20, 320, progress=False)
END = TOKENIZER.token_to_id(END_OF_TEXT)


def tokenize(path, out, field="text", threads=1):
    with ShardWriter(out, TOKENIZER.vocab_size) as writer:
        done = tokenize_json_lines([path], writer, TOKENIZER, field=field, num_threads=threads)
    shards = TokenShards.open(out)
    shards.verify()
    return done, [ids.tolist() for ids in shards]


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUE = TEXT | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.lists(TEXT)


@given(
    st.lists(st.tuples(st.dictionaries(TEXT, VALUE | st.none(), max_size=3), TEXT), max_size=8),
    st.booleans(),
    st.sampled_from([1, 3]),
)
def test_every_json_text_becomes_the_tokens_of_its_text(tmp_path_factory, records, ascii_only, threads):
    folder = tmp_path_factory.mktemp("lines")
    objects = [{**others, "text": text} for others, text in records]
    lines = "\r\n\n".join(json.dumps(record, ensure_ascii=ascii_only) for record in objects)
    (folder / "a.jsonl").write_bytes(lines.encode())
    done, documents = tokenize(folder / "a.jsonl", folder / "a.tokens", threads=threads)
    assert documents == [[*TOKENIZER.encode(text), END] for _, text in records]
    assert (done.num_documents, done.num_tokens) == (len(records), sum(map(len, documents)))


def test_a_large_file_in_steps_is_the_same_for_any_number_of_threads(tmp_path):
    words = ["the", "cat", "sat\n", '"mat"', "\\", "世界", "\t\u0001"]
    chosen = random.Random(0)
    texts = [" ".join(chosen.choices(words, k=chosen.randrange(400))) for _ in range(8_000)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"n": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    assert path.stat().st_size > 3 * (2 << 20)
    done, one = tokenize(path, tmp_path / "one.tokens", threads=1)
    _, three = tokenize(path, tmp_path / "three.tokens", threads=3)
    assert one == three
    assert one == [[*ids, END] for ids in TOKENIZER.encode_batch(texts)]
    assert done.num_documents == len(texts)


def test_megatron_files_hold_the_same_documents(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "the cat"}\n{"content": ""}\n')
    with MegatronWriter(tmp_path / "a", TOKENIZER.vocab_size) as writer:
        tokenize_json_lines([path, path], writer, TOKENIZER, field="content")
    found = TokenShards.open_megatron(tmp_path / "a", TOKENIZER.vocab_size)
    assert [ids.tolist() for ids in found] == [[*TOKENIZER.encode("the cat"), END], [END]] * 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": 5}', "invalid type: integer `5`, expected a string"),
        (b'{"other": "a"}', 'the object has nothing under "text"'),
        (b'["text"]', 'expected an object with a string under "text"'),
        (b'{"text": "a"', "EOF while parsing an object"),
        (b'{"text": "a"} x', "trailing characters"),
        (b'{"text": "a\tb"}', "control character"),
        (b'{"text": "a\\q"}', "invalid escape"),
        (b'{"text": "\\ud800"}', "surrogate|unexpected end of hex escape"),
        (b'{"text": "\xe4"}', "the text is no UTF-8"),
        (b'{"text": "\xe4\\u0041"}', "invalid unicode code point"),
        (b'{"text": 05}', "invalid number"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_bad_line_is_named_and_no_file_is_left(tmp_path, line, problem, threads):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n')
    with pytest.raises(DataError, match=rf"a\.jsonl:3: .*({problem})"):
        tokenize(path, tmp_path / "a.tokens", threads=threads)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_broken_characters_of_two_texts_do_not_make_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\xc3"}\n{"text": "\xa4"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: the text is no UTF-8"):
        tokenize(path, tmp_path / "a.tokens")


def test_of_equal_keys_the_last_counts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "the dog", "text": "cat"}\n{"text": "\\u0041 mat", "n": 1.5, "te\\u0078t": "the"}\n')
    _, documents = tokenize(path, tmp_path / "a.tokens")
    assert documents == [[*TOKENIZER.encode("cat"), END], [*TOKENIZER.encode("the"), END]]


def test_a_batch_is_stored_as_its_documents_one_by_one(tmp_path):
    batch = TOKENIZER.encode_batch(["the cat", "", "世界"])
    with ShardWriter(tmp_path / "a", TOKENIZER.vocab_size, with_loss_mask=True) as writer:
        writer.append_batch(batch, source=3, quality=0.5)
        with pytest.raises(DataError, match="source is 65536"):
            writer.append_batch(batch, source=65_536)
    shards = TokenShards.open(tmp_path / "a")
    assert [ids.tolist() for ids in shards] == [ids.tolist() for ids in batch]
    assert (shards.source(2), shards.quality(2), shards.loss_mask(2).tolist()) == (3, 0.5, [1] * len(batch[2]))


def test_a_vocabulary_without_an_end_is_refused(tmp_path):
    plain = train_tokenizer(["a b"], 256, special_tokens=[], progress=False)
    with ShardWriter(tmp_path / "a", 256) as writer, pytest.raises(TokenizerError, match="endoftext"):
        tokenize_json_lines([], writer, plain)


def test_the_command_writes_a_shard_and_tells_what(tmp_path, capsys):
    TOKENIZER.save(tmp_path / "tokenizer")
    (tmp_path / "a.jsonl").write_text('{"text": "the cat"}\n')
    (tmp_path / "empty.jsonl").touch()
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "empty.jsonl")]
    out = str(tmp_path / "a.tokens")
    assert (
        main(["data", "tokenize", *files, "--tokenizer", str(tmp_path / "tokenizer"), "--output", out, "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told == {"output": out, "num_documents": 1, "num_tokens": len(TOKENIZER.encode("the cat")) + 1}
    np.testing.assert_array_equal(TokenShards.open(out)[0], [*TOKENIZER.encode("the cat"), END])
    assert main(["data", "tokenize", str(tmp_path), "--tokenizer", str(tmp_path / "tokenizer"), "--output", out]) == 1
    assert "is a directory" in capsys.readouterr().err
    assert Tokenizer.open(tmp_path / "tokenizer").encode("the cat") == TOKENIZER.encode("the cat")
