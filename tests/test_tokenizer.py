import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from glmcore import Tokenizer, train_tokenizer
from glmcore._core import GLM4_SPECIAL_TOKENS
from glmcore.errors import TokenizerError

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
STDLIB = sorted(Path(os.__file__).parent.glob("*.py"))
TRICKY = ["'", "'S", "'ll", "'\u017f", "\u00a0", "\u3000", "\r\n", "\n", " ", "  ", "\t", "1", "\u0663", "\u00bd", "\u4f60",
          "\u00e9", "e\u0301", "\U0001f600", "\u200d", "<|user|>", "<think>", "/nothink", "a", "Z", "_", "-", "\x00"]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(TRICKY), max_size=30).map("".join))


def texts() -> list[str]:
    return [file.read_text(encoding="utf-8", errors="replace") for file in STDLIB[:60]]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return train_tokenizer(texts(), vocab_size=2_000, progress=False)


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory) -> tokenizers.Tokenizer:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    ours.save(file)
    return tokenizers.Tokenizer.from_file(str(file))


def test_merges_are_those_of_hugging_faces_trainer(ours):
    reference = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    reference.decoder = decoders.ByteLevel()
    learned = ours.vocab_size - len(GLM4_SPECIAL_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=learned, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    reference.train_from_iterator(texts(), trainer)
    decode = decoders.ByteLevel()
    for token, token_id in reference.get_vocab().items():
        text = ours.id_to_token(token_id)
        assert decode.decode([token]) == text.decode("utf-8", errors="replace")


@settings(deadline=None, max_examples=300)
@given(text=TEXTS)
def test_ids_are_those_of_hugging_face(ours, theirs, text):
    assert ours.encode(text, special="parse") == theirs.encode(text, add_special_tokens=False).ids


def test_every_character_splits_as_at_hugging_face(ours, theirs):
    scalars = [chr(code) for code in itertools.chain(range(0xD800), range(0xE000, 0x110000))]
    for start in range(0, len(scalars), 20_000):
        part = scalars[start : start + 20_000]
        text = "".join(f"a{c}b {c}{c}1{c}\n" for c in part)
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, f"after {start}"


def test_ids_on_the_standard_library_are_those_of_hugging_face(ours, theirs):
    for text in texts():
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_transformers_loads_a_saved_directory(ours, tmp_path):
    ours.save(tmp_path / "saved")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "def f(x):\n    return x + 1234567  # <|user|>\n"
    assert loaded(text, add_special_tokens=False).input_ids == ours.encode(text, special="parse")
    assert loaded.eos_token == "<|endoftext|>"
    again = Tokenizer.from_pretrained(tmp_path / "saved")
    assert again.encode(text) == ours.encode(text)


@settings(deadline=None, max_examples=100)
@given(text=TEXTS)
def test_decoding_gives_the_text_back_and_streams(ours, text):
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    stream = ours.stream_decoder()
    assert "".join(stream.push(i) for i in ids) + stream.finish() == text


def test_lists_and_arrays_hold_the_same_ids_and_decode_to_the_same_text(ours):
    for size in (0, 1, 255, 256, 257, 5_000):
        text = "".join(f"word {number}, 中文\n" for number in range(size))
        ids = ours.encode(text)
        assert ids == ours.encode_to_numpy(text).tolist()
        assert ours.decode(ids) == ours.decode(tuple(ids)) == ours.decode(np.array(ids, np.int32)) == text


def test_ids_of_any_integer_type_decode(ours):
    assert ours.decode([np.int64(40), True, 7]) == ours.decode([40, 1, 7])


def test_special_tokens_in_text_stay_text_unless_asked_for(ours):
    user = ours.token_to_id("<|user|>")
    assert user not in ours.encode("<|user|>")
    assert ours.encode("<|user|>", special="parse") == [user]
    assert user == 2_000 - 36 + 7
    assert ours.special_tokens == list(GLM4_SPECIAL_TOKENS)
    kept = ours.encode("<|user|><think>", special="parse")
    assert ours.decode(kept, skip_special_tokens=True) == "<think>"


def test_a_batch_is_flat_and_its_items_are_views(ours):
    batch = ours.encode_batch(["one two", "", "three"], num_threads=2)
    assert batch.ids.dtype == np.int32
    assert batch.offsets.dtype == np.int64
    assert [item.tolist() for item in batch] == [ours.encode(text) for text in ("one two", "", "three")]
    assert np.shares_memory(batch[0], batch.ids)
    assert ours.decode_batch(batch) == ["one two", "", "three"]
    with pytest.raises(IndexError):
        batch[3]


def test_encoding_lets_other_threads_run(ours):
    text = "word and more words " * 400_000
    counted = []
    worker = threading.Thread(target=lambda: counted.append(ours.encode_to_numpy(text)))
    worker.start()
    turns = 0
    while worker.is_alive():
        turns += 1
    assert turns > 1_000  # a held interpreter lock would allow a handful


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "not a tokenizer.json"), ("{}", "not a tokenizer.json"), ("[1, 2]", "not a tokenizer.json")],
)
def test_a_wrong_file_is_one_line_with_its_name(tmp_path, content, message):
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(TokenizerError, match=rf"^{file}: {message}"):
        Tokenizer.from_file(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"cannot read .*tokenizer.json"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.decode([10**6]), "outside the vocabulary"),
        (lambda t: t.decode([-1]), "is not an id"),
        (lambda t: t.decode([2**40]), "is not an id"),
        (lambda t: t.decode([2**70]), "flat sequence"),
        (lambda t: t.decode(["1"]), "flat sequence"),
        (lambda t: t.decode([[1, 2]]), "flat sequence|dimension"),
        (lambda t: t.id_to_token(2_000), "outside the vocabulary of 2000"),
        (lambda t: t.token_to_id("<|nobody|>"), "no token"),
        (lambda t: t.encode("a", special="maybe"), "special must be"),
    ],
)
def test_wrong_calls_are_named(ours, call, message):
    with pytest.raises((TokenizerError, TypeError), match=message):
        call(ours)


def test_too_little_text_is_an_error():
    with pytest.raises(TokenizerError, match="give more text or a smaller vocabulary"):
        train_tokenizer(["only a few words"], vocab_size=2_000, progress=False)
    with pytest.raises(TokenizerError, match="has no room for 256 bytes"):
        train_tokenizer(["only a few words"], vocab_size=200, progress=False)
