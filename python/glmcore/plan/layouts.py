"""The ways in which a model can be spread over a number of GPUs."""

from collections.abc import Iterator

from glmcore.model.config import GlmConfig
from glmcore.model.parallel.config import ParallelConfig
from glmcore.plan.hardware import GPUS_PER_NODE


def layouts(model: GlmConfig, num_gpus: int, sequence_length: int, rows_per_step: int) -> Iterator[ParallelConfig]:
    """Every layout of `num_gpus` GPUs that divides the model and the step.

    Tensor ranks stay within a node, context ranks have 2,048 tokens of a row at least, and replicas are not smaller
    than a node.
    """
    for tensor in _divisors(num_gpus, GPUS_PER_NODE):
        for pipeline in _divisors(num_gpus // tensor, model.num_hidden_layers):
            for context in _divisors(num_gpus // tensor // pipeline, sequence_length // 2048):
                data = num_gpus // tensor // pipeline // context
                for replicas in _divisors(data, data):
                    shard = data // replicas * context
                    if replicas > 1 and shard < GPUS_PER_NODE:
                        continue
                    for expert in _divisors(shard, model.n_routed_experts):
                        layout = ParallelConfig(
                            data=data,
                            replicas=replicas,
                            context=context,
                            tensor=tensor,
                            expert=expert,
                            pipeline=pipeline,
                        )
                        if misfit(model, layout, sequence_length, rows_per_step) is None:
                            yield layout


def misfit(model: GlmConfig, layout: ParallelConfig, sequence_length: int, rows_per_step: int) -> str | None:
    """What a layout does not divide, for people; None where it fits. `parallelize` refuses the same layouts."""
    splits = (
        ("data", layout.data, "rows of a step", rows_per_step),
        ("context", layout.context, "tokens of a row", sequence_length),
        ("tensor", layout.tensor, "num_attention_heads", model.num_attention_heads),
        ("tensor", layout.tensor, "num_key_value_heads", model.num_key_value_heads),
        ("tensor", layout.tensor, "intermediate_size", model.intermediate_size),
        ("tensor", layout.tensor, "width of the shared expert", model.n_shared_experts * model.moe_intermediate_size),
        ("tensor", layout.tensor, "vocab_size", model.vocab_size),
        ("expert * tensor", layout.expert * layout.tensor, "n_routed_experts", model.n_routed_experts),
    )
    for name, ranks, what, size in splits:
        if size % ranks:
            return f"{name}={ranks} does not divide {what} {size:,}"
    if layout.pipeline > model.num_hidden_layers:
        return f"pipeline={layout.pipeline} exceeds num_hidden_layers {model.num_hidden_layers}"
    return None


def _divisors(number: int, largest: int) -> list[int]:
    """Divisors of `number` up to `largest`, at least 1."""
    return [divisor for divisor in range(1, max(min(number, largest), 1) + 1) if number % divisor == 0]


def describe(layout: ParallelConfig) -> str:
    """The sizes that are not 1, as a recipe or `--parallel` takes them."""
    named = [f"{name}={size}" for name, size in layout.model_dump().items() if isinstance(size, int) and size != 1]
    return " ".join(named) or "data=1"
