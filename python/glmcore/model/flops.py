"""What a training step on a document costs, from the model's configuration."""

from dataclasses import dataclass

from glmcore.model.config import GlmConfig


@dataclass(frozen=True)
class TrainingFlops:
    """Floating-point operations of forward and backward pass: `linear * T + quadratic * T**2` for T tokens."""

    linear: float
    """Per token: 6 for every parameter that a token is multiplied with."""
    quadratic: float
    """Per squared token: 6 for every channel of every query head, half a square being masked."""

    def __call__(self, num_tokens: float) -> float:
        """Operations of a document."""
        return self.linear * num_tokens + self.quadratic * num_tokens**2


def training_flops(config: GlmConfig) -> TrainingFlops:
    """Operations of one training step on one document; embeddings, norms, rotations and the loss are left out.

    A product of a token with a matrix takes 2 operations per parameter, and twice that in the backward pass.
    Attention takes 4 per channel of a query head for each pair of tokens, and a causal mask leaves half of them.

    Args:
        config: The model; a multi-token-prediction layer counts as one more layer and its projection.
    """
    num_layers = config.num_hidden_layers + config.num_nextn_predict_layers
    parts = [*(layer_flops(config, index) for index in range(num_layers)), head_flops(config)]
    return TrainingFlops(sum(part.linear for part in parts), sum(part.quadratic for part in parts))


def layer_flops(config: GlmConfig, index: int) -> TrainingFlops:
    """The part of one decoder layer; that of index `num_hidden_layers` is the multi-token-prediction layer."""
    hidden = config.hidden_size
    query = config.num_attention_heads * config.head_dim
    parameters = hidden * (2 * query + 2 * config.num_key_value_heads * config.head_dim)
    if index < config.first_k_dense_replace:
        parameters += 3 * hidden * config.intermediate_size
    else:
        experts = config.num_experts_per_tok + config.n_shared_experts
        parameters += hidden * (config.n_routed_experts + 3 * experts * config.moe_intermediate_size)
    if index == config.num_hidden_layers:
        parameters += 2 * hidden * hidden
    return TrainingFlops(6.0 * parameters, 6.0 * query)


def head_flops(config: GlmConfig) -> TrainingFlops:
    """The part of the output head, which a multi-token-prediction layer uses once more."""
    return TrainingFlops(6.0 * (1 + config.num_nextn_predict_layers) * config.vocab_size * config.hidden_size, 0.0)
