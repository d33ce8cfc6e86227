"""Documents to token ids and the mask of what is learned."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from glmcore.chat import apply_chat_template
from glmcore.data.documents import Document
from glmcore.tokenizer import END_OF_TEXT, Tokenizer

_PREFIX, _SUFFIX, _MIDDLE = "<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"
_ORDERS = {"psm": (_PREFIX, _SUFFIX, _MIDDLE), "spm": (_SUFFIX, _PREFIX, _MIDDLE)}


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
    `<|code_suffix|>` after `<|code_middle|>` middle, or with `middle_order` `spm` `<|code_suffix|>` after
    `<|code_prefix|>` before `<|code_middle|>` middle; each part is tokenised on its own. Of a conversation only what
    the assistant said is learned.

    Raises:
        RequestError: A conversation cannot be rendered.
        TokenizerError: The vocabulary lacks a special token that is needed.

    Source: GLM-4.5 uses fill-in-the-middle on all source code (arXiv:2508.06471, section 2.2); its order of the parts
    is not published. CodeGeeX4, trained on from GLM-4-9B with the same three tokens, has that of `spm` (its
    guides/Infilling_guideline.md); `psm` is the other order of arXiv:2207.14255.
    """
    end = _special(tokenizer, END_OF_TEXT)
    if all(document.text is not None and document.middle is None for document in documents):
        return _encode_plain(tokenizer, documents, int(end[0]), num_threads)
    parts = [part for document in documents for _, part in _parts(document)]
    encoded = iter(tokenizer.encode_batch(parts, num_threads=num_threads))
    results: list[EncodedDocument] = []
    for document in documents:
        if document.messages is not None:
            chat = apply_chat_template(tokenizer, document.messages, document.tools)
            results.append(EncodedDocument(chat.ids, chat.loss_mask))
            continue
        pieces: list[npt.NDArray[np.int32]] = []
        for mark, _ in _parts(document):
            if mark is not None:
                pieces.append(_special(tokenizer, mark))
            pieces.append(next(encoded))
        ids = np.concatenate([*pieces, end])
        results.append(EncodedDocument(ids, np.ones(len(ids), np.uint8)))
    return results


def _encode_plain(
    tokenizer: Tokenizer, documents: Sequence[Document], end: int, num_threads: int | None
) -> list[EncodedDocument]:
    """Texts alone, all in one array: a copy for the whole batch in place of one for each document."""
    encoded = tokenizer.encode_batch([document.text or "" for document in documents], num_threads=num_threads)
    ends = encoded.offsets[1:] + np.arange(len(documents))
    ids = np.full(len(encoded.ids) + len(documents), end, np.int32)
    is_text = np.ones(len(ids), np.bool_)
    is_text[ends] = False
    ids[is_text] = encoded.ids
    learned = np.ones(len(ids), np.uint8)
    starts = [0, *(ends + 1).tolist()]
    return [EncodedDocument(ids[start:stop], learned[start:stop]) for start, stop in pairwise(starts)]


def _parts(document: Document) -> list[tuple[str | None, str]]:
    """Texts that are tokenised each on its own, in the order of the tokens, each after its mark."""
    text = document.text
    if text is None:
        return []
    if document.middle is None:
        return [(None, text)]
    start, stop = document.middle
    parts = {_PREFIX: text[:start], _SUFFIX: text[stop:], _MIDDLE: text[start:stop]}
    return [(mark, parts[mark]) for mark in _ORDERS[document.middle_order or "psm"]]


def _special(tokenizer: Tokenizer, token: str) -> npt.NDArray[np.int32]:
    return np.array([tokenizer.token_to_id(token)], np.int32)
