"""The ways in which a model can be spread over a number of GPUs."""

from collections.abc import Iterator

from glmcore.model.config import GlmConfig
from glmcore.model.parallel.config import ParallelConfig
from glmcore.plan.hardware import GPUS_PER_NODE


def layouts(model: GlmConfig, num_gpus: int, sequence_length: int, rows_per_step: int) -> Iterator[ParallelConfig]:
    """Every layout of `num_gpus` GPUs that divides the model and the step.

    Tensor ranks stay within a node, and every data rank has a row. Replicas are tried as one group of all and as one
    for each node or few nodes, since more copies cost memory and fewer gather over more GPUs.
    """
    for tensor in _divisors(num_gpus, GPUS_PER_NODE):
        if model.num_attention_heads % tensor or model.num_key_value_heads % tensor:
            continue
        for pipeline in _divisors(num_gpus // tensor, model.num_hidden_layers):
            for context in _divisors(num_gpus // tensor // pipeline, sequence_length // 2048):
                data = num_gpus // tensor // pipeline // context
                if rows_per_step % data or sequence_length % (2 * context):
                    continue
                for expert in _divisors(data * context, model.n_routed_experts):
                    if model.n_routed_experts % (expert * tensor):
                        continue
                    for replicas in _divisors(data, data):
                        shard = data // replicas * context
                        if shard % expert == 0 and (replicas == 1 or shard >= GPUS_PER_NODE):
                            yield ParallelConfig(
                                data=data,
                                replicas=replicas,
                                context=context,
                                tensor=tensor,
                                expert=expert,
                                pipeline=pipeline,
                            )


def _divisors(number: int, largest: int) -> list[int]:
    """Divisors of `number` up to `largest`, at least 1."""
    return [divisor for divisor in range(1, max(min(number, largest), 1) + 1) if number % divisor == 0]


def describe(layout: ParallelConfig) -> str:
    """The sizes that are not 1, as a recipe or `--parallel` takes them."""
    named = [f"{name}={size}" for name, size in layout.model_dump().items() if isinstance(size, int) and size != 1]
    return " ".join(named) or "data=1"
