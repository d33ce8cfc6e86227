"""Section of a recipe that says how a model is spread over ranks."""

from typing import Literal

from pydantic import PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config
from glmcore.errors import ConfigError


class ParallelConfig(Config):
    """How a model is spread over the ranks of a torchrun: `pipeline * data * context * tensor` of them.

    A run may be resumed with other values.
    """

    data: PositiveInt = 1
    """Ranks that take different rows; weights, gradients and optimiser state are sharded over them (FSDP2)."""
    replicas: PositiveInt = 1
    """Groups of data ranks that hold the whole model each (hybrid sharding, HSDP); divides `data`."""
    context: PositiveInt = 1
    """Ranks that share out the tokens of every row."""
    tensor: PositiveInt = 1
    """Ranks that share out the heads and the feed-forward width of every layer."""
    expert: PositiveInt = 1
    """Of the data and context ranks, those that share out the routed experts; divides `data / replicas * context`."""
    pipeline: PositiveInt = 1
    """Ranks that share out the layers."""
    pipeline_schedule: Literal["1f1b", "gpipe", "interleaved"] = "1f1b"
    """Order in which a rank works on the micro-batches of a step: one forward, one backward; all forward, then all
    backward; or one forward, one backward with `stages_per_rank` stages, which leaves a shorter idle time at the ends
    of the step for more communication."""
    stages_per_rank: PositiveInt = 1
    """Stages on each pipeline rank; rank r of p has stages r, r + p, r + 2 p and so on. More than one only with the
    schedule `interleaved`."""
    pipeline_layers: list[PositiveInt] | None = None
    """Decoder layers of each stage, first to last; by default the work is evened out."""

    @model_validator(mode="after")
    def _parts_divide(self) -> Self:
        if self.data % self.replicas:
            raise ValueError(f"replicas={self.replicas} must divide data={self.data}")
        if self.size("shard") % self.expert:
            raise ValueError(
                f"expert={self.expert} must divide data / replicas * context = {self.data} / {self.replicas} * "
                f"{self.context} = {self.size('shard')}"
            )
        if (self.stages_per_rank > 1) != (self.pipeline_schedule == "interleaved"):
            raise ValueError(
                f"pipeline_schedule={self.pipeline_schedule!r} with stages_per_rank={self.stages_per_rank}: "
                "'interleaved' needs several stages a rank, the others have one"
            )
        if (self.stages_per_rank > 1 or self.pipeline_layers is not None) and self.pipeline == 1:
            raise ValueError("stages_per_rank and pipeline_layers need pipeline of at least 2")
        num_stages = self.pipeline * self.stages_per_rank
        if self.pipeline_layers is not None and len(self.pipeline_layers) != num_stages:
            raise ValueError(
                f"pipeline_layers={self.pipeline_layers} must have one entry for each of {num_stages} stages"
            )
        return self

    @property
    def num_ranks(self) -> int:
        """Processes that the run needs."""
        return self.pipeline * self.data * self.context * self.tensor

    def check_row(self, num_tokens: int) -> None:
        """Whether rows of `num_tokens` can be shared out to context ranks.

        Raises:
            ConfigError: They cannot.
        """
        if num_tokens % self.context:
            raise ConfigError(
                f"sequence_length={num_tokens} must be a multiple of parallel.context={self.context}, whose ranks have "
                "the same number of tokens"
            )

    def check_step(self, num_rows: int, rows_per_micro_batch: int | None) -> None:
        """Whether a step can be shared out to the ranks.

        Args:
            num_rows: Rows of the step on all ranks.
            rows_per_micro_batch: Rows of a micro-batch; all of a rank if None.

        Raises:
            ConfigError: It cannot.
        """
        own, rest = divmod(num_rows, self.data)
        if rest:
            raise ConfigError(
                f"a step of {num_rows} rows cannot be shared out to data={self.data} ranks: make "
                "train.batch.rows_multiple a multiple of parallel.data"
            )
        if self.pipeline == 1:
            return
        size = rows_per_micro_batch or own
        if own % size:
            raise ConfigError(
                f"a rank's {own} rows of a step are no multiple of rows_per_micro_batch={size}, and the micro-batches "
                "of a pipeline are of one size: make train.batch.rows_multiple one of rows_per_micro_batch * data"
            )
        self.check_micro_batches(own // size)

    def check_micro_batches(self, count: int) -> None:
        """Whether the pipeline can train in steps of `count` micro-batches.

        Raises:
            ConfigError: It cannot.
        """
        if self.pipeline_schedule == "1f1b" and count < self.pipeline:
            raise ConfigError(
                f"a step has {count} micro-batches, pipeline_schedule='1f1b' needs one for each of pipeline="
                f"{self.pipeline} ranks: lower rows_per_micro_batch, or choose pipeline_schedule='gpipe'"
            )
        if self.pipeline_schedule == "interleaved" and count % self.pipeline:
            raise ConfigError(
                f"a step has {count} micro-batches, pipeline_schedule='interleaved' takes multiples of pipeline="
                f"{self.pipeline}: change rows_per_micro_batch or the rows of a step"
            )

    def size(self, name: str) -> int:
        """Ranks in a dimension: a field, or one that follows from them.

        `batch` are the ranks that hold different tokens, `shard` those that share out the weights of a replica, and
        `expert_shard` those that share out the weights of the experts of one `expert` rank.
        """
        if name == "batch":
            return self.data * self.context
        if name == "shard":
            return self.data // self.replicas * self.context
        if name == "expert_shard":
            return self.data // self.replicas * self.context // self.expert
        return getattr(self, name)
