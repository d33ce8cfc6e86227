"""The wrapper for `transformers`, beside the class whose interface it has."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AddedToken, PreTrainedTokenizerFast

from glmcore import train_tokenizer
from glmcore.integrations.transformers import FastTokenizer

TEXT = st.one_of(st.text(max_size=20), st.sampled_from(["<|user|>hi<think>", "/nothink", "a b  c\n\n", ""]))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["some text to learn merges from, some more text"] * 9, 310, progress=False).save(directory)
    return directory


@pytest.fixture(scope="module")
def pair(directory):
    return FastTokenizer.from_pretrained(directory), PreTrainedTokenizerFast.from_pretrained(directory)


@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
@settings(deadline=None, max_examples=300)
@given(
    texts=st.one_of(TEXT, st.lists(TEXT, min_size=1, max_size=4)),
    options=st.fixed_dictionaries(
        {},
        optional={
            "padding": st.sampled_from([False, True, "longest", "max_length"]),
            "truncation": st.booleans(),
            "max_length": st.integers(1, 12),
            "padding_side": st.sampled_from(["left", "right"]),
            "pad_to_multiple_of": st.just(4),
            "add_special_tokens": st.booleans(),
            "split_special_tokens": st.booleans(),
            "return_attention_mask": st.booleans(),
            "return_token_type_ids": st.booleans(),
            "return_length": st.booleans(),
            "return_offsets_mapping": st.booleans(),
        },
    ),
)
def test_a_call_answers_what_transformers_answers(pair, texts, options):
    ours, theirs = pair
    assume(not (options.get("truncation") and options.get("padding") and options.get("pad_to_multiple_of")))  # refused
    assert dict(ours(texts, **options)) == dict(theirs(texts, **options))


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(TEXT, min_size=1, max_size=4), skip=st.booleans())
def test_tensors_and_decoding_are_those_of_transformers(pair, texts, skip):
    ours, theirs = pair
    batch = ours(texts, padding=True, return_tensors="np")
    expected = theirs(texts, padding=True, return_tensors="np")
    for name, array in expected.items():
        np.testing.assert_array_equal(batch[name], array)
    ids = expected["input_ids"].astype(int)
    assert ours.batch_decode(ids, skip_special_tokens=skip) == theirs.batch_decode(ids, skip_special_tokens=skip)
    assert ours.decode(ids[0].tolist()) == theirs.decode(ids[0].tolist())


def test_a_chat_is_rendered_and_tokenized(pair):
    ours, theirs = pair
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    assert ours.apply_chat_template(messages, tokenize=True) == theirs.apply_chat_template(messages, tokenize=True)


def test_tokens_may_be_added_and_the_tokenizer_copied(directory):
    ours, theirs = FastTokenizer.from_pretrained(directory), PreTrainedTokenizerFast.from_pretrained(directory)
    assert ours.encode("a<|new|>b") == theirs.encode("a<|new|>b")
    for tokenizer in (ours, theirs):
        tokenizer.add_tokens([AddedToken("<|new|>", special=True)])
    for tokenizer in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert tokenizer.encode("a<|new|>b") == theirs.encode("a<|new|>b")
        assert len(tokenizer) == len(theirs)


def test_a_template_of_the_post_processor_stands_around_each_text(directory, tmp_path):
    from tokenizers.processors import TemplateProcessing

    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    special = theirs.convert_tokens_to_ids("<sop>")
    theirs.backend_tokenizer.post_processor = TemplateProcessing(single="<sop> $A", special_tokens=[("<sop>", special)])
    theirs.save_pretrained(tmp_path)
    ours = FastTokenizer.from_pretrained(tmp_path)
    for options in ({}, {"add_special_tokens": False}, {"truncation": True, "max_length": 3}):
        assert ours("some more text", **options)["input_ids"] == theirs("some more text", **options)["input_ids"]
