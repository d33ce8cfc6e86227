"""Documents to token ids and the mask of what is learned."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from glmcore.chat import apply_chat_template
from glmcore.data.documents import Document
from glmcore.tokenizer import END_OF_TEXT, Tokenizer

_FILL_IN_THE_MIDDLE = ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>")


class EncodedDocument(NamedTuple):
    """Tokens of one document."""

    ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.uint8]
    """1 for each token that is learned."""


def encode_documents(
    tokenizer: Tokenizer, documents: Sequence[Document], *, num_threads: int | None = None
) -> list[EncodedDocument]:
    """Tokens of each document.

    A text ends with `<|endoftext|>`, and all of it is learned. With a `middle` it becomes `<|code_prefix|>` before
    `<|code_suffix|>` after `<|code_middle|>` middle, each part tokenised on its own; the report says that GLM-4.5 uses
    fill-in-the-middle on all source code (arXiv:2508.06471, section 2.2), not in which order: this is the one that its
    tokens' names suggest. Of a conversation only what the assistant said is learned.

    Raises:
        TokenizerError: The vocabulary lacks a special token that is needed.
    """
    end = _special(tokenizer, END_OF_TEXT)
    parts = [part for document in documents for part in _parts(document)]
    encoded = iter(tokenizer.encode_batch(parts, num_threads=num_threads))
    results: list[EncodedDocument] = []
    for document in documents:
        if document.messages is not None:
            chat = apply_chat_template(tokenizer, document.messages)
            results.append(EncodedDocument(chat.ids, chat.loss_mask))
            continue
        if document.middle is None:
            pieces = [next(encoded), end]
        else:
            marks = (_special(tokenizer, mark) for mark in _FILL_IN_THE_MIDDLE)
            pieces = [piece for mark in marks for piece in (mark, next(encoded))] + [end]
        ids = np.concatenate(pieces)
        results.append(EncodedDocument(ids, np.ones(len(ids), np.uint8)))
    return results


def _parts(document: Document) -> tuple[str, ...]:
    """Texts that are tokenised each on its own, in the order of the tokens."""
    text = document.text
    if text is None:
        return ()
    if document.middle is None:
        return (text,)
    start, stop = document.middle
    return (text[:start], text[stop:], text[start:stop])


def _special(tokenizer: Tokenizer, token: str) -> npt.NDArray[np.int32]:
    return np.array([tokenizer.token_to_id(token)], np.int32)
