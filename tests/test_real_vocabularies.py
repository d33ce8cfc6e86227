"""Real vocabularies against Hugging Face `tokenizers` and `tiktoken`; skipped where no package carries them."""

import base64
import os
import random
from pathlib import Path

import pytest
import tiktoken
import tokenizers
import vocabularies

from glmcore import Tokenizer
from glmcore.tokenizer import PATTERNS

NAMES = list(vocabularies.PACKAGES)
PIECES = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "a", "B", "\u00e9", "\u4e2d", "\u6587", "\u017f", "'s", "'S",
          "'\u017f", "'ll", "'LL", "'re", "'", "\u2019", "!", "!!", "/", "1", "22", "\u0663", "\u2167", "\u00bd", "\u0301", "\U0001f642",
          "\u01c5", "\u02b0", "\x00", "\x85", "A", "bc", "D\u00e9"]  # fmt: skip


def place_of(name: str, find) -> Path:
    try:
        return find(name)
    except vocabularies.NotInstalledError as error:
        pytest.skip(str(error))


def texts() -> list[str]:
    rng = random.Random(0)
    mixed = ["".join(rng.choices(PIECES, k=rng.randint(1, 60))) for _ in range(1_000)]
    sources = [file.read_text(encoding="utf-8") for file in sorted(Path(os.__file__).parent.glob("*.py"))[:20]]
    scalars = [chr(code) for code in range(0x11_0000) if not 0xD800 <= code < 0xE000]
    groups = [scalars[start : start + 4_000] for start in range(0, len(scalars), 4_000)]
    return mixed + sources + [between.join(group) for group in groups for between in (" ", "", "a")]


def worst_cases() -> list[str]:
    rng = random.Random(1)
    alphabets = [
        "a",
        " ",
        "=",
        "\n",
        "ab",
        "\U0001f642",
        "\u4e2d",
        "abcdefgh",
        "\u4e2d\u6587\u5b57\u7b26",
        "\u0301a",
        "=-+*",
    ]
    return ["".join(rng.choices(alphabet, k=length)) for alphabet in alphabets for length in (60, 130, 700, 30_000)]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_hugging_face(name):
    place = place_of(name, vocabularies.tokenizer_json)
    ours, theirs = Tokenizer.from_file(place), tokenizers.Tokenizer.from_file(str(place))
    cases = texts() + worst_cases()
    got = ours.encode_batch(cases, special="parse")
    for ids, expected in zip(got, theirs.encode_batch_fast(cases, add_special_tokens=False), strict=True):
        assert ids.tolist() == expected.ids


@pytest.mark.parametrize("name", [name for name in NAMES if name != "deepseek"])
def test_ids_are_those_of_tiktoken(name):
    place = place_of(name, vocabularies.rank_file)
    lines = place.read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    theirs = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens={})
    ours = Tokenizer.from_tiktoken(place, PATTERNS[name], [])
    cases = texts() + [text for text in worst_cases() if len(text) < 10_000]
    for text, ids in zip(cases, ours.encode_batch(cases), strict=True):
        assert ids.tolist() == theirs.encode_ordinary(text)


def test_merging_by_rank_alone_differs_and_is_followed(tmp_path):
    place = place_of("glm4", vocabularies.tokenizer_json)
    text = place.read_text(encoding="utf-8")
    without = tmp_path / "tokenizer.json"
    without.write_text(text.replace('"ignore_merges": true', '"ignore_merges": false'), encoding="utf-8")
    ours, theirs = Tokenizer.from_file(without), tokenizers.Tokenizer.from_file(str(without))
    cases = [*texts()[:1_050], "\u8bf7 \u53c2\u8003 \u800c \u4e14"]
    expected = theirs.encode_batch_fast(cases, add_special_tokens=False)
    for ids, other in zip(ours.encode_batch(cases, special="parse"), expected, strict=True):
        assert ids.tolist() == other.ids
    assert ours.encode(" \u53c2\u8003") != Tokenizer.from_file(place).encode(" \u53c2\u8003")


def test_the_compiled_form_gives_the_same_ids(tmp_path):
    ours = Tokenizer.from_file(place_of("glm4", vocabularies.tokenizer_json))
    ours.save(tmp_path / "glm4.glmtok")
    compiled = Tokenizer.from_file(tmp_path / "glm4.glmtok")
    cases = texts()[:1_100]
    assert (compiled.encode_batch(cases).ids == ours.encode_batch(cases).ids).all()
    assert compiled.special_tokens == ours.special_tokens
