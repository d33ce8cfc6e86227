"""How long an optimiser step takes on a layout, from the operations and bytes of its parts."""

from dataclasses import dataclass

from glmcore.model.config import Checkpointing, GlmConfig
from glmcore.model.counts import LayerCounts, ParameterCounts, count_parameters
from glmcore.model.parallel.config import ParallelConfig
from glmcore.plan.hardware import Assumptions, Gpu
from glmcore.plan.links import Links

BF16, FLOAT32 = 2, 4
NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True)
class Load:
    """What one GPU works on at a time."""

    sequence_length: int
    rows_per_micro_batch: int
    num_micro_batches: int
    """Micro-batches of a step that every data rank runs one after the other."""
    checkpointing: Checkpointing
    """What blocks keep for the backward pass; the rest they compute again."""
    width: int = BF16
    """Bytes of a value in the type of computation."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they go into."""

    products: float
    """Matrix products outside of attention."""
    attention: float
    elementwise: float
    sharding: float
    """Gathering of weights and summing of gradients that computing does not hide."""
    tensor: float
    context: float
    expert: float
    bubble: float
    """Waiting of pipeline ranks at the beginning and end of a step, and their messages."""
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(vars(self).values())


class StepModel:
    """Times of the steps of one model on one layout.

    Args:
        model: The model.
        layout: How it is spread.
        gpu: The GPUs.
        assumptions: Which shares of their rates are reached.
    """

    def __init__(self, model: GlmConfig, layout: ParallelConfig, gpu: Gpu, assumptions: Assumptions) -> None:
        self.model, self.layout, self.gpu, self.assumptions = model, layout, gpu, assumptions
        self.counts = count_parameters(model)
        self.links = Links.of(layout, gpu, assumptions)

    def time(self, load: Load) -> StepTime:
        """Seconds of a step. Pipeline ranks share the layers out evenly; `bubble` holds what that leaves idle."""
        layout, assumptions = self.layout, self.assumptions
        again = load.checkpointing == "full"
        passes = 4 if again else 3  # a backward pass computes twice what a forward pass does,
        exchanges = passes - 1  # and exchanges as much
        tokens = load.rows_per_micro_batch * load.sequence_length / layout.context
        share = load.num_micro_batches / layout.pipeline
        products = passes * share * self._forward_products(tokens)
        attention = passes * share * self._forward_attention(tokens, load.sequence_length)
        elementwise = (3 if load.checkpointing == "none" else 4) * share * self._forward_elementwise(tokens)
        tensor = exchanges * share * self._forward_tensor(tokens)
        expert = exchanges * share * self._forward_expert(tokens)
        context = exchanges * share * self._forward_context(tokens)
        busy = products + attention + elementwise + tensor + expert + context
        sharding = max(0.0, self._sharding(load) - assumptions.overlap * (products + attention + elementwise))
        bubble = 0.0
        if layout.pipeline > 1:
            idle = (layout.pipeline - 1) / load.num_micro_batches
            message = self.links.pipeline.send(tokens * self.model.hidden_size * BF16)
            bubble = busy * idle + 2 * message * load.num_micro_batches
        return StepTime(
            products, attention, elementwise, sharding, tensor, context, expert, bubble, self._optimizer_step()
        )

    def _layers(self) -> list[tuple[int, LayerCounts]]:
        counts = self.counts
        return [
            (counts.num_dense_layers, counts.dense_layer),
            (counts.num_moe_layers, counts.moe_layer),
            (counts.num_mtp_layers, counts.mtp_layer),
        ]

    def _forward_products(self, tokens: float) -> float:
        dense = grouped = 0.0
        for number, layer in self._layers():
            routed = layer.routed_experts - layer.idle_experts
            dense += number * (layer.active - routed - layer.norms)
            grouped += number * routed
        heads = (1 + self.counts.num_mtp_layers) * self.model.vocab_size * self.model.hidden_size
        rate = self.gpu.bf16_flops * self.layout.tensor
        assumptions = self.assumptions
        return 2 * tokens * ((dense + heads) / assumptions.matmul + grouped / assumptions.grouped) / rate

    def _forward_attention(self, tokens: float, sequence_length: int) -> float:
        """Documents are taken to fill their rows: shorter ones cost less."""
        model = self.model
        num_layers = model.num_hidden_layers + model.num_nextn_predict_layers
        operations = 2 * tokens * sequence_length * model.num_attention_heads * model.head_dim * num_layers
        return operations / (self.gpu.bf16_flops * self.assumptions.attention * self.layout.tensor)

    def _forward_elementwise(self, tokens: float) -> float:
        """Norms, residuals, rotations, SwiGLU and the sorting of tokens: each value is read and written once a use."""
        model = self.model
        heads = (model.num_attention_heads + model.num_key_value_heads) * model.head_dim
        routed = model.num_experts_per_tok * (2 * model.hidden_size + 3 * model.moe_intermediate_size)
        shared = 3 * model.n_shared_experts * model.moe_intermediate_size
        whole = 6 * model.hidden_size
        split = (2 * heads + routed + shared) / self.layout.tensor
        num_layers = model.num_hidden_layers + model.num_nextn_predict_layers
        moved = 2 * BF16 * tokens * num_layers * (whole + split)
        return moved / (self.gpu.memory_bandwidth * self.assumptions.memory)

    def _forward_tensor(self, tokens: float) -> float:
        """Two all-reduces a layer: after attention and after the feed-forward layer."""
        num_layers = self.model.num_hidden_layers + self.model.num_nextn_predict_layers
        return 2 * num_layers * self.links.tensor.all_reduce(tokens * self.model.hidden_size * BF16)

    def _forward_expert(self, tokens: float) -> float:
        """Tokens go to their experts and come back."""
        counts = self.counts
        sent = tokens * self.model.num_experts_per_tok * self.model.hidden_size * BF16 / self.layout.tensor
        return 2 * (counts.num_moe_layers + counts.num_mtp_layers) * self.links.expert.all_to_all(sent)

    def _forward_context(self, tokens: float) -> float:
        """Keys and values of all context ranks are gathered in every layer; their gradients are scattered likewise."""
        model = self.model
        num_layers = model.num_hidden_layers + model.num_nextn_predict_layers
        gathered = tokens * self.layout.context * 2 * model.num_key_value_heads * model.head_dim * BF16
        return num_layers * self.links.context.gather(gathered / self.layout.tensor)

    def _sharding(self, load: Load) -> float:
        """Weights are gathered for both passes of each micro-batch, and its gradients summed; in a pipeline once."""
        counts, layout, links = self.counts, self.layout, self.links
        experts = counts.component("routed_experts") / (layout.expert * layout.tensor * layout.pipeline)
        others = (counts.total - counts.component("routed_experts")) / (layout.tensor * layout.pipeline)
        seconds = 0.0
        for parameters, link in ((experts, links.expert_shard), (others, links.shard)):
            gathering = load.num_micro_batches * 2 * link.gather(parameters * BF16)
            sums = load.num_micro_batches if layout.pipeline == 1 else 1
            seconds += gathering + sums * link.gather(parameters * FLOAT32)
            seconds += links.replicas.all_reduce(parameters / link.size * FLOAT32)
        return seconds

    def _optimizer_step(self) -> float:
        """Newton-Schulz iterations of the matrices that a rank owns, moving them there and back, and AdamW's bytes."""
        counts, layout = self.counts, self.layout
        ranks = layout.tensor * layout.pipeline * self.links.shard.size
        operations = newton_schulz_operations(self.model, counts) / ranks
        products = operations / (self.gpu.bf16_flops * self.assumptions.matmul)
        matrices = counts.total - counts.embeddings
        moved = (matrices - counts.component("routed_experts")) / (
            layout.tensor * layout.pipeline * self.links.shard.size
        )
        sending = 2 * self.links.shard.all_to_all(moved * FLOAT32)
        touched = (5 * matrices + 7 * counts.embeddings) * FLOAT32 / ranks
        return products + sending + touched / (self.gpu.memory_bandwidth * self.assumptions.memory)


def newton_schulz_operations(model: GlmConfig, counts: ParameterCounts) -> float:
    """Operations of Muon's five iterations on all matrices: three products each, `2 a^2 (2 b + a)` for `a <= b`."""

    def matrix(rows: int, columns: int) -> float:
        a, b = min(rows, columns), max(rows, columns)
        return NEWTON_SCHULZ_STEPS * 2.0 * a * a * (2 * b + a)

    hidden, expert = model.hidden_size, model.moe_intermediate_size
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    attention = 2 * matrix(queries, hidden) + 2 * matrix(keys, hidden)
    dense = 3 * matrix(model.intermediate_size, hidden)
    experts = 3 * (model.n_routed_experts * matrix(expert, hidden) + matrix(model.n_shared_experts * expert, hidden))
    mixture = experts + matrix(model.n_routed_experts, hidden)
    num_moe = counts.num_moe_layers + counts.num_mtp_layers
    layers = counts.num_dense_layers * (attention + dense) + num_moe * (attention + mixture)
    return layers + counts.num_mtp_layers * matrix(hidden, 2 * hidden)
