import ast
import os
import random
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmcore.data.builders.fim import fill_in_middle
from glmcore.data.documents import Document, read_documents, write_documents
from glmcore.data.encode import encode_documents
from glmcore.tokenizer import train_tokenizer

SPANS = ("characters", "lines", "blocks")
SOURCE = """import os

@wraps
def first(x):
    if x:
        y = 1

        return y
    return 2


class Second:
    def method(self):
        pass
"""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([Path(os.__file__).read_text()], 600, progress=False)


TEXTS = st.text(alphabet="ab \n\r\t(:\u4f60\U0001f600e\u0301", max_size=120) | st.just(SOURCE)


@given(
    text=TEXTS,
    name=st.sampled_from(["a.py", "a.c"]),
    seed=st.integers(0, 9),
    span=st.sampled_from(SPANS),
    spm=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_three_parts_give_the_source_back(tokenizer, text, name, seed, span, spm):
    document = Document(name, "code", text)
    [drawn] = fill_in_middle([document], rate=1.0, seed=seed, spm_share=spm, span=span)
    assert drawn.text == text
    if drawn.middle is None:
        assert drawn == document
        assert span == "blocks" or not text
        return
    start, stop = drawn.middle
    assert 0 <= start < stop <= len(text)
    if span != "characters":
        borders = {0, len(text)} | {at + 1 for at, char in enumerate(text) if char in "\r\n"}
        assert {start, stop} <= borders
    [encoded] = encode_documents(tokenizer, [drawn])
    assert encoded.loss_mask.all()
    marks = {tokenizer.token_to_id(f"<|code_{part}|>"): part for part in ("prefix", "suffix", "middle")}
    parts, order = {}, []
    for token in encoded.ids[:-1].tolist():
        if token in marks:
            order.append(marks[token])
            parts[order[-1]] = []
        else:
            parts[order[-1]].append(token)
    assert order == (["prefix", "suffix", "middle"] if drawn.middle_order == "psm" else ["suffix", "prefix", "middle"])
    decoded = {part: tokenizer.decode_bytes(ids) for part, ids in parts.items()}
    assert decoded["prefix"] + decoded["middle"] + decoded["suffix"] == text.encode()
    assert encoded.ids[-1] == tokenizer.token_to_id("<|endoftext|>")


def test_the_draw_depends_on_seed_and_id_alone_and_keeps_the_shares():
    documents = [Document(f"f{at}.c", "code", SOURCE) for at in range(2_000)]
    drawn = {document.id: document for document in fill_in_middle(documents, rate=0.6, seed=1, spm_share=0.25)}
    shuffled = random.Random(0).sample(documents, 500)
    for document in fill_in_middle(shuffled, rate=0.6, seed=1, spm_share=0.25):
        assert document == drawn[document.id]
    taken = [document for document in drawn.values() if document.middle is not None]
    assert 0.55 < len(taken) / 2_000 < 0.65
    assert 0.20 < sum(document.middle_order == "spm" for document in taken) / len(taken) < 0.30
    other = {document.id: document for document in fill_in_middle(documents, rate=0.6, seed=2)}
    assert sum(drawn[name].middle != other[name].middle for name in drawn) > 1_000


def test_cuts_at_characters_are_spread_evenly():
    documents = (Document(str(at), "code", "x" * 100) for at in range(4_000))
    middles = np.array([document.middle for document in fill_in_middle(documents, rate=1.0, seed=0)])
    # Of two different cuts out of 101 the lesser is on average at 33 and the greater at 67.
    assert abs(middles[:, 0].mean() - 33) < 1.5
    assert abs(middles[:, 1].mean() - 67) < 1.5
    assert middles.min() == 0
    assert middles.max() == 100


def test_blocks_of_python_are_statements_and_bodies():
    found = set()
    for seed in range(400):
        [document] = fill_in_middle([Document("m.py", "code", SOURCE)], rate=1.0, seed=seed, span="blocks")
        found.add(SOURCE[slice(*document.middle)])
    assert "import os\n" in found
    assert "        return y\n" in found
    assert "@wraps\ndef first(x):\n    if x:\n        y = 1\n\n        return y\n    return 2\n" in found
    assert "        y = 1\n\n        return y\n" in found
    for text in found:
        ast.parse(textwrap.dedent(text))


def test_blocks_of_other_languages_are_what_is_indented_deeper():
    text = "int f() {\n    if (x) {\n        y();\n\n    }\n    z();\n}\n\nint g;\n"
    found = set()
    for seed in range(200):
        [document] = fill_in_middle([Document("m.c", "code", text)], rate=1.0, seed=seed, span="blocks")
        found.add(text[slice(*document.middle)])
    assert found == {"    if (x) {\n        y();\n\n    }\n    z();\n", "        y();\n"}
    [flat] = fill_in_middle([Document("m.c", "code", "a;\nb;\n")], rate=1.0, seed=0, span="blocks")
    assert flat.middle is None


def test_conversations_and_chosen_middles_stay():
    documents = [
        Document("a", "sft", messages=[{"role": "user", "content": "x"}]),
        Document("b", "code", "text", middle=(1, 2)),
        Document("c", "code", ""),
    ]
    assert list(fill_in_middle(documents, rate=1.0, seed=0)) == documents
    [never] = fill_in_middle([Document("d", "code", "text")], rate=0.0, seed=0)
    assert never.middle is None


def test_all_fields_survive_the_disk(tmp_path):
    tools = [{"type": "function", "function": {"name": "f"}}]
    documents = [
        Document("a", "code", "text", middle=(1, 2), middle_order="spm", licence="MIT"),
        Document("b", "agent", messages=[{"role": "user", "content": "x"}], tools=tools),
    ]
    write_documents(tmp_path / "d.jsonl", documents)
    assert list(read_documents(tmp_path / "d.jsonl")) == documents
