"""glmcore's tokenizer behind the interface of `transformers`, for TRL, vLLM and whatever else takes that."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy

from glmcore._core import CoreTokenizer
from glmcore.tokenizer import Tokenizer

_LEFT = (
    "is_split_into_words",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_offsets_mapping",
    "sanitize_control_tokens",
)
"""Requests that are left to Hugging Face's own tokenizer, at its own speed."""


class FastTokenizer(PreTrainedTokenizerFast):
    """A `PreTrainedTokenizerFast` whose texts become ids, and ids text, in glmcore.

    `FastTokenizer.from_pretrained(directory)` takes what `PreTrainedTokenizerFast` takes, and gives the same ids. Pairs
    of texts, words that are split already, offsets, overflowing parts, masks of special tokens and texts whose special
    tokens are to be split go to `tokenizers`.
    The answers hold no `encodings`, so `char_to_token` and its like are not there.

    Raises:
        TokenizerError: On first use, if tokenizer.json asks for something that glmcore cannot honour exactly.
    """

    _glmcore: Tokenizer | None = None

    @property
    def glmcore(self) -> Tokenizer:
        """The tokenizer that does the work; read anew after tokens have been added."""
        if self._glmcore is None:
            self._glmcore = Tokenizer(CoreTokenizer.from_json(self.backend_tokenizer.to_str()))
        return self._glmcore

    def _add_tokens(self, *args: Any, **kwargs: Any) -> int:
        self._glmcore = None
        return super()._add_tokens(*args, **kwargs)

    def update_post_processor(self) -> None:
        self._glmcore = None
        super().update_post_processor()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_glmcore": None}  # another process reads it anew

    def _encode_plus(  # pyright: ignore[reportIncompatibleMethodOverride]: the rest are options
        self, text: Any, text_pair: Any = None, **options: Any
    ) -> BatchEncoding:
        texts: Any = [text] if isinstance(text, str) else text
        splits = options.get("split_special_tokens")
        plain = isinstance(texts, list | tuple) and texts and all(isinstance(item, str) for item in texts)
        splits = self.split_special_tokens if splits is None else splits
        if not plain or text_pair is not None or splits or any(options.get(name) for name in _LEFT):
            return super()._encode_plus(text, text_pair, **options)
        rows = self._rows(list(texts), options)
        for row in rows:
            self._eventual_warn_about_too_long_sequence(row, options.get("max_length"), options.get("verbose", True))
        fields = self._fields(rows, options)
        if isinstance(text, str) and options.get("return_tensors") is None:
            return BatchEncoding(
                {name: field[0] if isinstance(field[0], list) else field for name, field in fields.items()}
            )
        return BatchEncoding(fields, tensor_type=options.get("return_tensors"))

    def _fields(self, rows: list[list[int]], options: dict[str, Any]) -> dict[str, Any]:
        """What was asked for, padded."""
        strategy = options.get("padding_strategy", PaddingStrategy.DO_NOT_PAD)
        missing = [0] * len(rows)
        if strategy != PaddingStrategy.DO_NOT_PAD:
            longest = max(map(len, rows))
            length = options["max_length"] if strategy == PaddingStrategy.MAX_LENGTH else longest
            multiple = options.get("pad_to_multiple_of") or 1
            missing = [max(-(-length // multiple) * multiple - len(row), 0) for row in rows]
        on_the_left = (options.get("padding_side") or self.padding_side) == "left"

        def padded(values: list[list[int]], value: Any) -> list[list[Any]]:
            if not any(missing):
                return values
            if on_the_left:
                return [[value] * count + row for row, count in zip(values, missing, strict=True)]
            return [row + [value] * count for row, count in zip(values, missing, strict=True)]

        fields: dict[str, Any] = {"input_ids": padded(rows, self.pad_token_id)}
        if self._wants("token_type_ids", options):
            fields["token_type_ids"] = padded([[0] * len(row) for row in rows], self.pad_token_type_id)
        if self._wants("attention_mask", options):
            fields["attention_mask"] = padded([[1] * len(row) for row in rows], 0)
        if options.get("return_length"):
            fields["length"] = [len(row) for row in fields["input_ids"]]
        return fields

    def _wants(self, name: str, options: dict[str, Any]) -> bool:
        asked = options.get(f"return_{name}")
        return name in self.model_input_names if asked is None else asked

    def _rows(self, texts: Sequence[str], options: dict[str, Any]) -> list[list[int]]:
        """Ids of each text, with what the post-processor puts around them, cut to `max_length`."""
        batch = self.glmcore.encode_batch(texts, special="parse")
        before, after = self.glmcore.core.template if options.get("add_special_tokens", True) else ([], [])
        template = len(before) + len(after) > 0
        strategy = options.get("truncation_strategy", TruncationStrategy.DO_NOT_TRUNCATE)
        limit = None
        if strategy != TruncationStrategy.DO_NOT_TRUNCATE and options.get("max_length") is not None:
            limit = max(options["max_length"] - len(before) - len(after), 0)
        rows = []
        for ids in batch:
            kept = ids if limit is None or len(ids) <= limit else self._cut(ids, limit)
            rows.append([*before, *kept.tolist(), *after] if template else kept.tolist())
        return rows

    def _cut(self, ids: np.ndarray, limit: int) -> np.ndarray:
        return ids[:limit] if self.truncation_side == "right" else ids[len(ids) - limit :]

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **_: Any,
    ) -> str:
        ids = np.atleast_1d(np.asarray(token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids))
        return self.glmcore.decode(ids.astype(np.int32), skip_special_tokens=skip_special_tokens)
