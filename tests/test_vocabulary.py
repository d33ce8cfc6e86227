"""What a vocabulary is learned from."""

import os
from pathlib import Path

from glmcore.chat import apply_chat_template
from glmcore.data.documents import Document
from glmcore.data.lookups import SEARCH_TOOL
from glmcore.data.vocabulary import vocabulary_text
from glmcore.tokenizer import GLM4_SPECIAL_TOKENS, train_tokenizer

MESSAGES = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]


def test_text_and_conversations_without_tools_are_learned_as_they_are():
    for document in (Document("a", "b", text="some text"), Document("a", "b", messages=MESSAGES)):
        assert vocabulary_text(document) == document.plain_text


def test_what_the_template_says_of_tools_is_learned_without_special_tokens():
    document = Document("a", "b", messages=MESSAGES, tools=[SEARCH_TOOL])
    text = vocabulary_text(document)
    assert '"description": "Find pages."' in text
    assert "You are provided with function signatures" in text
    assert text.endswith(document.plain_text)
    assert not any(token in text for token in GLM4_SPECIAL_TOKENS)


def test_a_prompt_with_tools_is_shorter_in_a_vocabulary_that_knows_it():
    document = Document("a", "b", messages=MESSAGES, tools=[SEARCH_TOOL])
    other = Path(os.__file__).read_text()
    known, unknown = (
        train_tokenizer([other, *[text] * 200], 800, progress=False)
        for text in (vocabulary_text(document), document.plain_text)
    )
    long, short = (len(apply_chat_template(tokenizer, MESSAGES, [SEARCH_TOOL]).ids) for tokenizer in (unknown, known))
    assert short < long * 2 / 3
