"""What tokenizer.json files may ask for, beside Hugging Face on the same file."""

import json
import multiprocessing
import os
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from glmcore import Tokenizer, train_tokenizer
from glmcore.errors import TokenizerError
from glmcore.tokenizer import PATTERNS

SOURCE = Path(os.__file__).read_text(encoding="utf-8")
CORPUS = "the cat sat on the mat; the caf\u00e9 of cats, e\u0301 1234 cats\n\n  aaaa aaaa \u4e2d\u6587\u4e2d\u6587"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TEXT = st.lists(
    st.sampled_from(
        [*" \n\taeZ1\u0301\u00e9\u4e2d", "the", "cat", "<a>", "<bb>", "<|user|>", "e\u0301", "\u1100\u1161", "\u0958"]
    ),
    max_size=25,
).map("".join)


@pytest.fixture(scope="module")
def plain() -> dict:
    return json.loads(train_tokenizer([CORPUS], 322, progress=False)._core.to_json())


def both(file: dict, tmp_path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    place = tmp_path / "tokenizer.json"
    place.write_text(json.dumps(file))
    return Tokenizer.from_file(place), tokenizers.Tokenizer.from_file(str(place))


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def added(content: str, **flags: bool) -> dict:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": 0, "content": content} | plain | flags


VARIANTS = {
    "NFC": {"normalizer": {"type": "NFC"}},
    "GPT-2": {"pre_tokenizer": BYTE_LEVEL | {"use_regex": True}},
    "prefix space": {"pre_tokenizer": BYTE_LEVEL | {"use_regex": True, "add_prefix_space": True}},
    "no split": {"pre_tokenizer": BYTE_LEVEL},
    "unknown pattern": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(r"\p{L}{1,2}|\s(?=\S)"), BYTE_LEVEL]}
    },
    "removed": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(r"\w+", "Removed", True), BYTE_LEVEL]}},
    "digits": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, split(PATTERNS["gpt2"]), BYTE_LEVEL],
        }
    },
    "added tokens": {
        "added_tokens": [
            added("<a>", lstrip=True),
            added("<bb>", rstrip=True),
            added("cat", single_word=True, special=False),
            added("e\u0301", normalized=True, special=False),
            added("\u00e9\u00e9"),
        ]
    },
    "added tokens after NFC": {
        "normalizer": {"type": "NFC"},
        "added_tokens": [added("e\u0301", normalized=True, special=False), added("<a>", lstrip=True, rstrip=True)],
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_ids_are_those_of_hugging_face(plain, tmp_path, name):
    ours, theirs = both(plain | VARIANTS[name], tmp_path)
    ours.save(tmp_path / "again.json")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "again.json"))

    @settings(deadline=None, max_examples=150)
    @given(text=TEXT)
    def check(text):
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, special="parse") == expected
        assert again.encode(text, add_special_tokens=False).ids == expected
        assert ours.encode_with_offsets(text, special="parse").ids.tolist() == expected

    check()


def test_added_tokens_are_numbered_in_the_order_of_the_file(plain, tmp_path):
    tokens = [added("<z>") | {"id": 9_999}, added("<y>") | {"id": 5}, added("the") | {"id": 1}]
    ours, theirs = both(plain | {"added_tokens": tokens}, tmp_path)
    for token in ("<z>", "<y>", "the"):
        assert ours.token_to_id(token) == theirs.token_to_id(token)


@settings(deadline=None, max_examples=150)
@given(text=TEXT)
def test_offsets_are_those_of_hugging_face(plain, tmp_path_factory, text):
    ours, theirs = both(plain, tmp_path_factory.mktemp("offsets"))
    theirs.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    expected = theirs.encode(text, add_special_tokens=False)
    offsets = ours.encode_with_offsets(text, special="parse")
    assert list(map(tuple, offsets.spans.tolist())) == expected.offsets
    spans = ours.encode_with_offsets(text, special="parse", unit="bytes").spans
    data = text.encode()
    assert b"".join(data[start:end] for start, end in spans) == data


def test_offsets_lead_to_the_text_before_normalisation(plain, tmp_path):
    ours, _ = both(plain | {"normalizer": {"type": "NFC"}}, tmp_path)
    text = "cat e\u0301 cat"
    offsets = ours.encode_with_offsets(text)
    assert ours.decode(offsets.ids) == unicodedata.normalize("NFC", text)
    composed = [number for number, token in enumerate(offsets.ids) if ours.id_to_token(int(token))[-1:] == b"\xa9"]
    start, end = offsets.spans[composed[0]]
    assert text[start:end].endswith("e\u0301")
    assert offsets.spans[-1][1] == len(text)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=8),
    window=st.integers(1, 12).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))),
)
def test_windows_are_those_of_hugging_face(plain, tmp_path_factory, lengths, window):
    ours, theirs = both(plain, tmp_path_factory.mktemp("windows"))
    max_length, stride = window
    texts = ["1a" * length for length in lengths]
    theirs.enable_truncation(max_length, stride=stride)
    cut = ours.encode_batch(texts).windows(max_length, stride)
    expected = []
    for number, text in enumerate(texts):
        first = theirs.encode(text, add_special_tokens=False)
        expected += [(number, piece.ids) for piece in (first, *first.overflowing)]
    assert list(zip(cut.texts.tolist(), [ids.tolist() for ids in cut.windows], strict=True)) == expected
    short = ours.encode_batch(texts).truncate(max_length)
    assert [ids.tolist() for ids in short] == [ours.encode(text)[:max_length] for text in texts]


def test_the_template_of_a_post_processor_is_added_on_request(plain, tmp_path):
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[gMASK]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[gMASK]": {"id": "[gMASK]", "ids": [288], "tokens": ["[gMASK]"]}},
    }
    ours, theirs = both(plain | {"post_processor": template}, tmp_path)
    ids = ours.encode("the cat")
    assert ours.with_template(ids).tolist() == theirs.encode("the cat").ids
    ours.save(tmp_path / "again.json")
    assert (
        tokenizers.Tokenizer.from_file(str(tmp_path / "again.json")).encode("the cat").ids
        == theirs.encode("the cat").ids
    )


def test_files_and_bytes(plain, tmp_path):
    ours, _ = both(plain, tmp_path)
    place = tmp_path / "text.txt"
    place.write_text(CORPUS * 50, encoding="utf-8")
    assert ours.encode_file(place).tolist() == ours.encode(CORPUS * 50)
    place.write_bytes(b"")
    assert ours.encode_file(place).tolist() == []
    place.write_bytes(b"abc\xff")
    with pytest.raises(TokenizerError, match="no UTF-8 text at byte 3"):
        ours.encode_file(place)
    assert ours.decode_bytes(ours.encode_bytes(b"the \xff\xfe cat \xe4\xb8")) == b"the \xff\xfe cat \xe4\xb8"


def test_a_long_file_comes_in_parts_that_together_are_the_whole(plain, tmp_path):
    ours, _ = both(plain, tmp_path)
    place = tmp_path / "text.txt"
    place.write_text((CORPUS + "\nthe cat ") * 300_000, encoding="utf-8")
    parts = list(ours.encode_file_parts(place))
    assert len(parts) > 1
    assert sum(size for _, size in parts) == place.stat().st_size
    assert np.array_equal(np.concatenate([ids for ids, _ in parts]), ours.encode_file(place))


def _encode_in_child(ours, texts, results):
    results.put(ours.encode_batch(texts, num_threads=2).ids.tolist())


def test_a_forked_process_can_go_on(plain, tmp_path):
    ours, _ = both(plain, tmp_path)
    texts = [CORPUS * 100] * 40
    expected = ours.encode_batch(texts, num_threads=2).ids.tolist()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_encode_in_child, args=(ours, texts, results))
    child.start()
    assert results.get(timeout=60) == expected
    child.join(60)


def test_never_more_threads_than_asked_for(plain, tmp_path):
    ours, _ = both(plain, tmp_path)
    texts = [CORPUS * 2_000] * 40
    most = 0
    worker = threading.Thread(target=lambda: ours.encode_batch(texts, num_threads=1))
    before = len(list(Path("/proc/self/task").iterdir()))
    worker.start()
    while worker.is_alive():
        most = max(most, len(list(Path("/proc/self/task").iterdir())))
    assert most <= before + 1


@pytest.mark.parametrize("settings_", [{}, {"min_frequency": 3}, {"max_token_length": 5}])
@pytest.mark.parametrize("pattern", ["glm4", "gpt2"])
def test_merges_are_those_of_hugging_faces_trainer_on_files(tmp_path, pattern, settings_):
    place = tmp_path / "corpus.txt"
    place.write_text(f"{CORPUS}\n" * 3 + SOURCE, encoding="utf-8")
    ours = train_tokenizer([place], 500, pattern, [], progress=False, by_line=True, num_threads=2, **settings_)
    reference = tokenizers.Tokenizer(tokenizers.models.BPE())
    pre = tokenizers.pre_tokenizers
    reference.pre_tokenizer = pre.Sequence(
        [pre.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated"), pre.ByteLevel(False, use_regex=False)]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False, **settings_
    )
    reference.train([str(place)], trainer)
    expected = json.loads(reference.to_str())["model"]["merges"]
    assert json.loads(ours._core.to_json())["model"]["merges"] == [list(pair) for pair in expected]


def test_training_does_not_depend_on_threads_or_batches(tmp_path):
    texts = [SOURCE[start : start + 997] for start in range(0, 30_000, 997)]
    one = train_tokenizer(texts, 600, special_tokens=[], progress=False, num_threads=1)
    two = train_tokenizer(iter(texts), 600, special_tokens=[], progress=False, num_threads=2)
    assert one._core.to_json() == two._core.to_json()
    whole = tmp_path / "whole.txt"
    whole.write_text("".join(texts), encoding="utf-8")
    from_file = train_tokenizer([whole], 600, special_tokens=[], progress=False)
    assert (
        from_file._core.to_json()
        == train_tokenizer(["".join(texts)], 600, special_tokens=[], progress=False)._core.to_json()
    )


def test_lone_surrogates_become_replacement_characters(plain, tmp_path):
    ours, _ = both(plain, tmp_path)
    assert "\ufffd" in ours.decode(ours.encode("a\ud800b"))
    batch = ours.encode_batch(["a\ud800b", "c", "中文 é"])
    np.testing.assert_array_equal(batch[0], ours.encode("a\ud800b"))
    assert ours.decode(batch[2]) == "中文 é"
