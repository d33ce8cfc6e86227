"""The most memory that a rank needs at any moment of a step, by what it is needed for."""

from dataclasses import dataclass

from glmcore.model.config import GlmConfig
from glmcore.model.counts import LayerCounts, ParameterCounts
from glmcore.model.parallel.config import ParallelConfig
from glmcore.plan.activations import FLOAT32, kept_at_the_end, kept_by_layer, kept_by_mtp
from glmcore.plan.hardware import Assumptions
from glmcore.plan.step_time import Load

CHUNK_BYTES, MIN_CHUNK_TOKENS = 2**24, 256
"""As `glmcore.train.loss` cuts the logits."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest rank at the fullest moment, in a micro-batch that is not the step's first."""

    weights: float
    """Float32 weights, this rank's shard."""
    gradients: float
    """Float32, this rank's shard."""
    optimizer: float
    """Momentum of matrices; mean and square of the rest."""
    activations: float
    """What the forward pass keeps."""
    head: float
    """Gradients of the output head, which the losses form in the forward pass."""
    working: float
    """Logits of a chunk, or what one block needs to go back beyond `head`, whichever is more."""
    gathered: float
    """Weights of two blocks and of the embedding and head in the type of computation, gradients of one block; in a
    pipeline weights and gradients of the whole stage."""
    reserved: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(vars(self).values())


def peak_memory(
    model: GlmConfig, counts: ParameterCounts, layout: ParallelConfig, load: Load, assumptions: Assumptions
) -> Memory:
    """Memory of the fullest rank.

    Layers are taken to be shared out evenly among pipeline ranks, and tokens among experts. The first pipeline rank
    keeps the activations of as many micro-batches as there are ranks (1F1B); the last also has head and MTP layer,
    which are counted on the same rank, so that the sum is an upper bound.
    """
    batch = layout.data // layout.replicas * layout.context
    local = _local_parameters(counts, layout)
    matrices = local.matrices / batch
    rest = local.rest / batch
    tokens = load.rows_per_micro_batch * load.sequence_length / layout.context
    in_flight = min(layout.pipeline, load.num_micro_batches)
    kept = _kept(model, counts, layout, load)
    losses = 1 + model.num_nextn_predict_layers
    head = losses * model.vocab_size / layout.tensor * model.hidden_size * FLOAT32
    backward = tokens * _backward_of_block(model, load, layout.tensor) - head  # blocks follow when the head is through
    return Memory(
        weights=FLOAT32 * (matrices + rest),
        gradients=FLOAT32 * (matrices + rest),
        optimizer=FLOAT32 * (matrices + 2 * rest),
        activations=tokens * in_flight * kept,
        head=head,
        working=max(_logits(model, tokens, load, layout.tensor), backward),
        gathered=0.0 if layout.num_ranks == 1 else _gathered(counts, layout, load),
        reserved=assumptions.reserved_gb * 1e9,
    )


@dataclass(frozen=True)
class _Local:
    """Parameters of a pipeline and tensor rank before they are sharded over data and context ranks."""

    matrices: float
    rest: float


def _local_parameters(counts: ParameterCounts, layout: ParallelConfig) -> _Local:
    body = counts.body + counts.mtp
    vectors = counts.component("norms") + counts.final_norm
    split = layout.tensor * layout.pipeline
    # Embedding and head lie on the first and the last pipeline rank; with one rank on both.
    embeddings = counts.embeddings / layout.tensor / (1 if layout.pipeline == 1 else 2)
    return _Local((body - vectors) / split, embeddings + vectors / layout.pipeline)


def _kept(model: GlmConfig, counts: ParameterCounts, layout: ParallelConfig, load: Load) -> float:
    width, mode, tensor = load.width, load.checkpointing, layout.tensor
    layers = counts.num_dense_layers * kept_by_layer(model, width, mode, dense=True, tensor=tensor)
    layers += counts.num_moe_layers * kept_by_layer(model, width, mode, dense=False, tensor=tensor)
    layers += counts.num_mtp_layers * kept_by_mtp(model, width, mode, tensor)
    return layers / layout.pipeline + kept_at_the_end(model, width)


def _backward_of_block(model: GlmConfig, load: Load, tensor: int) -> float:
    """What a block computes again, and the gradients on its way back, for a token."""
    again = 0.0
    if load.checkpointing != "none":
        whole = kept_by_layer(model, load.width, "none", dense=False, tensor=tensor)
        again = whole - kept_by_layer(model, load.width, load.checkpointing, dense=False, tensor=tensor)
    rows = model.num_experts_per_tok / tensor
    on_the_way = rows * (2 * model.hidden_size + 3 * model.moe_intermediate_size) + 2 * model.hidden_size
    return again + on_the_way * load.width


def _logits(model: GlmConfig, tokens: float, load: Load, tensor: int) -> float:
    """Of a chunk, in float32 and in the type of computation."""
    vocabulary = model.vocab_size / tensor
    chunk = min(tokens, max(MIN_CHUNK_TOKENS, CHUNK_BYTES / (FLOAT32 * vocabulary)))
    return chunk * vocabulary * (FLOAT32 + (load.width if load.width != FLOAT32 else 0))


def _gathered(counts: ParameterCounts, layout: ParallelConfig, load: Load) -> float:
    """FSDP gathers the next block while one is at work, and holds the root's weights between the passes.

    In a pipeline a rank has its whole stage gathered, gradients too, until the end of the step
    (`torch.distributed.pipelining` sums them over data ranks once).
    """
    if layout.pipeline > 1:
        experts = counts.component("routed_experts") / (layout.expert * layout.tensor)
        body = counts.body + counts.mtp - counts.component("routed_experts")
        stage = (experts + body / layout.tensor) / layout.pipeline + counts.embeddings / layout.tensor / 2
        return stage * (load.width + FLOAT32)

    def block(layer: LayerCounts) -> float:
        return (layer.total - layer.routed_experts) / layout.tensor + layer.routed_experts / (
            layout.expert * layout.tensor
        )

    largest = max(block(counts.moe_layer), block(counts.mtp_layer) if counts.num_mtp_layers else 0.0)
    root = counts.embeddings / layout.tensor
    return 2 * largest * load.width + largest * FLOAT32 + root * (load.width + FLOAT32)
