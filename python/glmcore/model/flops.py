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
    hidden = config.hidden_size
    query = config.num_attention_heads * config.head_dim
    attention = hidden * (2 * query + 2 * config.num_key_value_heads * config.head_dim)
    dense = 3 * hidden * config.intermediate_size
    experts = config.num_experts_per_tok + config.n_shared_experts
    mixture = hidden * (config.n_routed_experts + 3 * experts * config.moe_intermediate_size)
    num_mtp = config.num_nextn_predict_layers
    num_layers = config.num_hidden_layers + num_mtp
    num_dense = config.first_k_dense_replace
    heads = (1 + num_mtp) * config.vocab_size * hidden
    parameters = num_layers * attention + num_dense * dense + (num_layers - num_dense) * mixture + heads
    parameters += num_mtp * 2 * hidden * hidden
    return TrainingFlops(6.0 * parameters, 6.0 * num_layers * query)
