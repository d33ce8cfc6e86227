"""Sections of a recipe that describe its own data: where documents come from and which are kept."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config

Format = Literal["auto", "text", "markdown", "lines", "jsonl", "parquet", "arrow", "git"]
BUILT_IN = ("prose", "code", "repository", "reasoning", "sft", "user")
"""Sources of the section `corpus`."""


class FieldsConfig(Config):
    """Names of the fields of a JSON line or a table's row."""

    text: str = "text"
    """The text of a document."""
    messages: str = "messages"
    """The turns of a conversation."""
    id: str | None = "id"
    """What names a record; one without it is named by its file and place."""
    quality: str | None = None
    """A number, 0 to 1 by custom; a record without it has quality 1."""
    metadata: list[str] = Field(default_factory=list)
    """Fields that are kept beside the document in the corpus."""


class BucketConfig(Config):
    """Documents of similar quality, and how often they are seen."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    min_quality: float
    """Documents of at least this quality that no better bucket takes."""
    epochs: NonNegativeFloat
    """How often a document is seen for each time that one with `epochs = 1` is; 0 drops the bucket. The top bucket of
    GLM-4.5's web text was seen over 3.2 times and the lowest dropped (arXiv:2508.06471, section 2.2)."""


class SourceConfig(Config):
    """One source of documents."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    """What a stage's mixture calls it."""
    kind: Literal["documents", "conversations"] = "documents"
    """`documents` are learned whole; of `conversations` only what the assistant says."""
    paths: list[str] = Field(min_length=1)
    """Files, directories, patterns (`*`, `?`, `[]`, `**`) or fsspec URLs; git repositories with `format = "git"`."""
    format: Format = "auto"
    """`auto` goes by the ends of the names. `text` and `markdown` make a document of a file, `lines` of a line."""
    fields: FieldsConfig = FieldsConfig()
    split: str | None = None
    """Split of a Hugging Face dataset on disk; needed where there are several."""
    revision: str = "HEAD"
    """Commit whose files are read from a git repository."""
    buckets: list[BucketConfig] = Field(default_factory=list)
    """Quality buckets, any order; a document below all of them is dropped. Empty: one bucket of everything."""
    exact_duplicates: Literal["drop", "keep"] = "drop"
    """What becomes of a document whose text an earlier one has, in this source or one before it that drops them too."""
    sample: PositiveFloat = Field(default=1.0, le=1.0)
    """Share of the documents that is taken, drawn by seed and text."""
    max_documents: PositiveInt | None = None
    """At most so many documents, the first in order."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name in BUILT_IN:
            raise ValueError(f"source {self.name!r} is one of the built-in corpus: choose another name")
        for kind in ("name", "min_quality"):
            values = [getattr(bucket, kind) for bucket in self.buckets]
            if len(set(values)) != len(values):
                raise ValueError(f"buckets of source {self.name!r} have the same {kind}: {values}")
        if self.kind == "conversations" and self.format in ("text", "markdown", "lines", "git"):
            raise ValueError(f"source {self.name!r}: conversations cannot be read from {self.format}")
        return self


class DataConfig(Config):
    """Own sources of a run."""

    sources: list[SourceConfig] = Field(min_length=1)
    max_record_bytes: PositiveInt = 16 * 2**20
    """Longer records are rejected."""
    max_text_bytes: PositiveInt = 2**20
    """Text and Markdown files longer than this are cut, at line ends, into several documents."""
    part_bytes: PositiveInt = 64 * 2**20
    """Input that is worked on at once; a part becomes one shard of each quality bucket."""
    on_bad_record: Literal["reject", "stop"] = "reject"
    """`reject` writes a bad record to the rejects and goes on."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"sources have the same name: {names}")
        return self
