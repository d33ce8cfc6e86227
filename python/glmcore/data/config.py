"""Sections of a recipe that describe its own data: where documents come from and which are kept."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config

Format = Literal["auto", "text", "markdown", "lines", "jsonl", "parquet", "arrow", "git"]
BUILT_IN = ("prose", "code", "repository", "reasoning", "sft")
"""Sources of the section `corpus`."""
USER = "user"
"""Source of `corpus.path`."""
HELD_OUT = "held_out"
"""Bucket of the documents of a source that are kept from training."""


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
    tools: str = "tools"
    """Function descriptions of a conversation."""
    metadata: list[str] = Field(default_factory=list)
    """Fields that are kept beside the document in the corpus."""


class BucketConfig(Config):
    """Documents of similar quality, and how often they are seen."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    min_quality: float | None = None
    """Documents of at least this quality that no better bucket takes."""
    min_quantile: NonNegativeFloat | None = Field(default=None, lt=1.0)
    """In its place, the share of the source's documents that is worse, copies not counted: 0.8 is the best fifth.
    Documents of equal quality stay together."""
    epochs: NonNegativeFloat
    """How often a document is seen for each time that one with `epochs = 1` is; 0 drops the bucket. The top bucket of
    GLM-4.5's web text was seen over 3.2 times and the lowest dropped (arXiv:2508.06471, section 2.2)."""

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if self.name == HELD_OUT:
            raise ValueError(f"no bucket may be named {HELD_OUT!r}")
        if (self.min_quality is None) == (self.min_quantile is None):
            raise ValueError(f"bucket {self.name!r} needs either min_quality or min_quantile")
        return self


class RangeConfig(Config):
    """Where a rule of cleaning lets a text pass; a side that is not given has no limit."""

    minimum: float | None = None
    maximum: float | None = None


class SemanticConfig(Config):
    """Copies in meaning (SemDeDup, arXiv:2303.09540), by embeddings of an encoder that you bring."""

    encoder: str = Field(pattern=r"^\w+(\.\w+)*:\w+$")
    """`module:function` of a Python module that can be imported; the function takes a list of texts and gives an array
    of floats, a row for each text. It has to give the same rows for a text in any batch."""
    threshold: float = Field(default=0.95, ge=-1.0, le=1.0)
    """Cosine above which a document is a copy of a better or earlier one."""
    num_clusters: PositiveInt | None = None
    """Only documents of one cluster are compared; None for the square root of their number."""


class CleaningConfig(Config):
    """Which documents of a source are left out; docs/cleaning.md has every definition and its origin."""

    rules: Literal["none", "web", "code"] = "none"
    """Published filters over statistics of a text: `web` for prose, `code` for source files."""
    thresholds: dict[str, RangeConfig | Literal["off"]] = Field(default_factory=dict)
    """Other ranges of single rules by their name, or `off`."""
    languages: list[str] = Field(default_factory=list)
    """Languages that stay, such as `eng` and `cmn` (ISO 639-3); empty for all."""
    quality: Literal["given", "statistics", "classifier"] = "given"
    """Where quality comes from: the field `fields.quality`; 0 to 1 by how far a text's statistics are from what the
    filters reject; or a trained classifier's likelihood."""
    classifier: str | None = None
    """File of a `glmcore.data.cleaning.QualityClassifier`."""
    exact_duplicates: Literal["drop", "keep"] = "drop"
    """What becomes of a document whose text, white space aside, an earlier one has, in this source or in one before it
    that drops them too."""
    near_duplicates: PositiveFloat | None = Field(default=None, le=1.0)
    """Documents that share so much of their runs of five words with a better or earlier one are dropped (0.8 is usual);
    of sources with a different share each only the documents of the same share are compared."""
    semantic_duplicates: SemanticConfig | None = None
    """Drop copies in meaning; documents of all sources with the same settings are compared."""
    evaluations: list[str] = Field(default_factory=list)
    """Files with evaluation texts, in any format; every text field counts. Documents that hold a run of them go."""
    evaluation_run: PositiveInt = 13
    """Words of such a run."""

    @model_validator(mode="after")
    def _has_a_classifier(self) -> Self:
        if (self.quality == "classifier") != (self.classifier is not None):
            raise ValueError("quality = 'classifier' and a classifier's file go together")
        if self.thresholds and self.rules == "none":
            raise ValueError("thresholds are of rules, and rules = 'none'")
        return self


class ProblemsConfig(Config):
    """How problems become conversations."""

    question: str = "question"
    """Fields of a record; a dot leads into a table."""
    reasoning: str | None = "reasoning"
    solution: str = "solution"
    answer: str | None = "answer"
    answer_mark: str | None = None
    """What stands between steps and answer of a solution, such as `####`."""
    thinking_share: NonNegativeFloat = Field(default=1.0, le=1.0)
    """Share of the problems that keep their steps as thinking; the others are answered at once."""
    tasks: dict[str, PositiveInt] = Field(default_factory=dict)
    """Problems to draw from each task of reasoning-gym."""


class RepositoriesConfig(Config):
    """How repositories become documents."""

    max_chars: PositiveInt = 100_000
    """Length of a document at most; 100,000 characters of most code are 32,768 tokens or fewer."""
    history: bool = True
    """Add the commits of a git repository, messages and diffs."""
    max_files: PositiveInt = 50
    """Files that a commit changes at most: more is a move, an import or a release."""
    max_changed_lines: PositiveInt = 3_000
    """Lines that a commit changes at most."""
    min_message_chars: NonNegativeInt = 8
    """Length of a commit's message at least."""
    merges: Literal["skip", "first-parent"] = "skip"
    """Merges, left out or as what they change of their first parent."""


class DiscussionsConfig(Config):
    """How issues and pull requests become documents."""

    repository: str = ""
    """`owner/name` for records that do not say theirs."""
    checkouts: dict[str, str] = Field(default_factory=dict)
    """Git repositories by `owner/name`, to read the files that a pull request changes from, as they were before."""
    max_chars: PositiveInt = 100_000
    """Length of a document at most."""

    min_chars: NonNegativeInt = 200
    """Text of an issue with its comments at least, bots' left out."""
    max_single_chars: PositiveInt = 7_000
    """The same at most, if nobody but its author wrote: longer ones are mostly logs."""
    merged_only: bool = True
    """Leave out pull requests that were not merged."""
    max_files: PositiveInt = 50
    """Files that a pull request changes at most."""


class ConversationsConfig(Config):
    """Which conversations are learned from."""

    min_assistant_messages: PositiveInt = 1
    drop_truncated: bool = True
    """Leave out those that do not end with an answer: their last call was never answered, or they were cut off."""
    max_failed_calls: NonNegativeFloat = Field(default=1.0, le=1.0)
    """Share of the calls whose result is an error, at most; known for layouts that mark errors."""
    max_chars: PositiveInt = 4_000_000
    """Text of a conversation at most."""
    side_chains: bool = True
    """Whether what sub-agents did is learned, of `claude-code` and `cc-bench`."""
    models: list[str] = Field(default_factory=list)
    """Models whose trajectories are learned from, of `cc-bench`; empty for all."""
    max_failure_rate: NonNegativeFloat = Field(default=100.0, le=100.0)
    """Percentage of failed calls at most, of `cc-bench`, by its column."""


class FillInTheMiddleConfig(Config):
    """Fill-in-the-middle (arXiv:2207.14255); GLM-4.5 uses it on all source code, at a rate that is not published."""

    rate: NonNegativeFloat = Field(default=0.0, le=1.0)
    """Share of the documents."""
    span: Literal["characters", "lines", "blocks"] = "characters"
    """What the middle is bounded by."""
    spm_share: NonNegativeFloat = Field(default=0.5, le=1.0)
    """Share of those with the suffix first."""


class SourceConfig(Config):
    """One source of documents."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    """What a stage's mixture calls it."""
    kind: Literal["documents", "repositories", "discussions", "problems", "conversations", "mixed"] = "documents"
    """`documents`, `repositories` and `discussions` are learned whole; of `problems` and `conversations`, which are
    rendered as chats, only what the assistant says. `mixed` takes each record for what it is, a text or a conversation
    in OpenAI's form, and a named file of an unknown kind for a text. A repository is one document, or several for a
    long one, its files in the order of their imports, and its commits. Discussions are issues and pull requests: what
    belongs together stands in one file of JSON lines in the shape of GitHub's API."""
    paths: list[str] = Field(default_factory=list)
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
    cleaning: CleaningConfig = CleaningConfig()
    problems: ProblemsConfig = ProblemsConfig()
    repositories: RepositoriesConfig = RepositoriesConfig()
    discussions: DiscussionsConfig = DiscussionsConfig()
    conversations: ConversationsConfig = ConversationsConfig()
    layout: Literal["openai", "anthropic", "claude-code", "cc-bench"] = "openai"
    """Form of conversations: messages of OpenAI's or Anthropic's interface, a session log of Claude Code, or the
    columns of CC-Bench."""
    fill_in_the_middle: FillInTheMiddleConfig = FillInTheMiddleConfig()
    sample: PositiveFloat = Field(default=1.0, le=1.0)
    """Share of the documents that is taken, drawn by seed and text."""
    max_documents: PositiveInt | None = None
    """At most so many documents, the first in order."""
    shuffle: bool = True
    """Whether the documents of each part are written in an order drawn by the seed, so that neighbours in a row of
    training are not neighbours in a file; else in the order of the files."""

    @property
    def by_quantile(self) -> bool:
        """Whether the buckets are by quantile."""
        return any(bucket.min_quantile is not None for bucket in self.buckets)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len({bucket.min_quality is None for bucket in self.buckets}) > 1:
            raise ValueError(f"buckets of source {self.name!r} mix min_quality and min_quantile")
        for kind in ("name", "min_quality", "min_quantile"):
            values = [value for bucket in self.buckets if (value := getattr(bucket, kind)) is not None]
            if len(set(values)) != len(values):
                raise ValueError(f"buckets of source {self.name!r} have the same {kind}: {values}")
        records = ("conversations", "discussions", "problems")
        if self.kind in records and self.format in ("text", "markdown", "lines", "git"):
            raise ValueError(f"source {self.name!r}: {self.kind} cannot be read from {self.format}")
        if not self.paths and not (self.kind == "problems" and self.problems.tasks):
            raise ValueError(f"source {self.name!r} has no paths")
        return self


class HeldOutConfig(Config):
    """Documents that nothing is trained on, for the validation loss."""

    share: NonNegativeFloat = Field(default=0.0, le=0.5)
    """Share of the documents of each part of each source, at even distances in the order in which they are written: one
    at least, unless the part has only one. 0 for none."""


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
        for name in sorted({*BUILT_IN, USER}.intersection(names)):
            raise ValueError(f"source {name!r} is one of the built-in corpus: choose another name")
        return self

    @classmethod
    def with_user_text(cls, data: "DataConfig | None", path: str) -> "DataConfig":
        """Own sources, if there are any, and behind them a user's text as source `user`."""
        user = SourceConfig(name=USER, kind="mixed", paths=[path])
        if data is None:
            return cls.model_construct(sources=[user])
        return data.model_copy(update={"sources": [*data.sources, user]})
