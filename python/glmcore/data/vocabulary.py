"""What of a document a vocabulary is learned from."""

import re
from functools import cache

from glmcore._core import GLM4_SPECIAL_TOKENS
from glmcore.chat import ChatTemplate
from glmcore.data.documents import Document
from glmcore.tokenizer import TEMPLATE_FILE


def vocabulary_text(document: Document) -> str:
    """The text of a document; of a conversation with tools also what the chat template says about them.

    A model reads that before every such conversation, so it should be cut into few tokens. Special tokens are left out.
    """
    if not document.tools:
        return document.plain_text
    prompt = _template().render([], document.tools)
    return "".join(_special().split(prompt)) + "\n" + document.plain_text


@cache
def _template() -> ChatTemplate:
    return ChatTemplate(TEMPLATE_FILE.read_text(encoding="utf-8"))


@cache
def _special() -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, GLM4_SPECIAL_TOKENS)))
