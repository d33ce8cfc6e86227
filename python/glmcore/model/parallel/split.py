"""Which layers each stage of a pipeline holds."""

from dataclasses import dataclass
from itertools import accumulate

from glmcore.errors import ConfigError
from glmcore.model.config import GlmConfig
from glmcore.model.flops import head_flops, layer_flops
from glmcore.model.parallel.config import ParallelConfig

DOCUMENT_TOKENS = 4096
"""Length of the documents for which the work of the stages is evened out. It weighs attention against the rest, which
matters little: all layers have the same attention."""


@dataclass(frozen=True)
class StagePart:
    """What one of the stages of a pipeline holds of a model."""

    index: int
    """Place in the pipeline, from 0."""
    num_stages: int
    layers: range
    """Decoder layers, numbered as in the whole model."""

    @property
    def is_first(self) -> bool:
        """True of the stage with the embedding."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """True of the stage with the final norm, the head and the multi-token-prediction layer."""
        return self.index == self.num_stages - 1


def split_layers(model: GlmConfig, parallel: ParallelConfig) -> list[StagePart]:
    """The stages of a pipeline, first to last: as `pipeline_layers` says, else with the slowest as fast as can be.

    The work of a stage is that of `TrainingFlops`; the head and the multi-token-prediction layer are the last stage's,
    which has fewer decoder layers for it.

    Raises:
        ConfigError: There are fewer layers than stages, or `pipeline_layers` is of another model.
    """
    num_stages = parallel.pipeline * parallel.stages_per_rank
    num_layers = model.num_hidden_layers
    if num_stages > num_layers:
        raise ConfigError(
            f"parallel asks for {num_stages} stages (pipeline={parallel.pipeline} x "
            f"stages_per_rank={parallel.stages_per_rank}), the model has {num_layers} layers: each stage needs one"
        )
    counts = parallel.pipeline_layers
    if counts is None:
        costs = [layer_flops(model, index)(DOCUMENT_TOKENS) for index in range(num_layers)]
        after = range(num_layers, num_layers + model.num_nextn_predict_layers)
        tail = head_flops(model)(DOCUMENT_TOKENS) + sum(layer_flops(model, i)(DOCUMENT_TOKENS) for i in after)
        counts = balanced_counts([*costs[:-1], costs[-1] + tail], num_stages)
    if sum(counts) != num_layers:
        raise ConfigError(f"parallel.pipeline_layers={counts} are {sum(counts)} layers, the model has {num_layers}")
    ends = list(accumulate(counts))
    return [
        StagePart(index, num_stages, range(end - count, end))
        for index, (count, end) in enumerate(zip(counts, ends, strict=True))
    ]


def balanced_counts(costs: list[float], num_parts: int) -> list[int]:
    """Numbers of neighbours in each of `num_parts` parts, none empty, so that the costliest part costs least.

    Of equally good splits one with a small sum of squares is taken.

    Args:
        costs: Cost of each item, at least `num_parts` of them.
        num_parts: At least 1.
    """
    sums = [0.0, *accumulate(costs)]
    # best[n]: (costliest part, sum of squares, counts) of the first n items
    best = {n: (sums[n], sums[n] ** 2, [n]) for n in range(1, len(sums))}
    for parts in range(2, num_parts + 1):
        best = {
            n: min(
                (max(best[k][0], sums[n] - sums[k]), best[k][1] + (sums[n] - sums[k]) ** 2, [*best[k][2], n - k])
                for k in range(parts - 1, n)
            )
            for n in range(parts, len(sums))
        }
    return best[len(costs)][2]
