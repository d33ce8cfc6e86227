"""Streaming text and stop strings, against a plain reading of the whole text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glmcore
from glmcore.engine.stopping import TextStream, special_ids

ALPHABET = "ab\n<é日😀"
TEXT = st.text(ALPHABET, max_size=24)
STOP = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4)


@pytest.fixture(scope="module")
def tokenizer():
    return glmcore.train_tokenizer(["abab ab\nba 日日 éé 😀😀 <a>"] * 4, vocab_size=306, progress=False)


def plain(tokenizer, ids: list[int], stop: list[str], min_tokens: int) -> tuple[str, str | None]:
    """Text and stop string, found character by character in what all tokens give."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    decoder, skipped = tokenizer.stream_decoder(), special_ids(tokenizer)
    early = sum(len(decoder.push(token)) for token in ids[:min_tokens] if token not in skipped)
    if len(ids) <= min_tokens:
        return text, None
    for end in range(early + 1, len(text) + 1):
        matching = [each for each in stop if text[:end].endswith(each)]
        if matching:
            longest = max(matching, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=300)
@given(text=TEXT, stop=STOP, cut=st.randoms(use_true_random=False), min_tokens=st.sampled_from([0, 0, 2, 5]))
def test_a_stream_gives_the_text_of_the_plain_twin_however_it_is_cut(tokenizer, text, stop, cut, min_tokens):
    # Random cuts: each piece of bytes is encoded on its own, down to single bytes of a character.
    data, ids = text.encode(), []
    while data:
        size = cut.randint(1, 5)
        piece, data = data[:size], data[size:]
        try:
            ids += tokenizer.encode(piece.decode())
        except UnicodeDecodeError:
            ids += [tokenizer.core.token_to_id(bytes([byte])) for byte in piece]
        if cut.random() < 0.1:
            ids.append(tokenizer.token_to_id("<|user|>"))
    ids = ids[: cut.randint(0, len(ids))]
    expected, ended_by = plain(tokenizer, ids, stop, min_tokens)

    stream = TextStream(tokenizer, special_ids(tokenizer), stop, min_tokens)
    out = ""
    for token in ids:
        out += stream.push(token)
        assert expected.startswith(out)
        if stream.stopped_by is not None:
            break
    out += stream.finish()
    assert (out, stream.stopped_by) == (expected, ended_by)


def test_text_without_stop_strings_is_never_held_back(tokenizer):
    stream = TextStream(tokenizer, special_ids(tokenizer))
    ids = tokenizer.encode("ab <a> é")
    assert "".join(map(stream.push, ids)) == "ab <a> é"
    assert stream.finish() == ""


def test_role_tokens_are_no_text_and_tags_are(tokenizer):
    stream = TextStream(tokenizer, special_ids(tokenizer))
    out = [stream.push(tokenizer.token_to_id(token)) for token in ("<think>", "</think>", "<|observation|>")]
    assert out == ["<think>", "</think>", ""]


def test_half_a_character_at_the_end_becomes_the_replacement_character(tokenizer):
    stream = TextStream(tokenizer, special_ids(tokenizer), ["\ufffd!"])
    assert stream.push(tokenizer.core.token_to_id("é".encode()[:1])) == ""
    assert (stream.finish(), stream.stopped_by) == ("\ufffd", None)
