"""How many parameters a model has, from its configuration alone."""

from dataclasses import dataclass, fields

from glmcore.model.config import GlmConfig


@dataclass(frozen=True)
class LayerCounts:
    """Parameters of one decoder layer by what they belong to."""

    attention: int
    """Query, key, value and output projections with their biases."""
    norms: int
    """All RMSNorms: of the stream, of query and key heads, and in the MTP layer its own three."""
    dense: int = 0
    """Dense feed-forward layer."""
    router: int = 0
    """Without the correction bias, which no gradient trains."""
    routed_experts: int = 0
    shared_experts: int = 0
    mtp_projection: int = 0
    """`eh_proj` of the MTP layer."""
    idle_experts: int = 0
    """The part of `routed_experts` that a token does not use."""

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(getattr(self, field.name) for field in fields(self)) - self.idle_experts

    @property
    def active(self) -> int:
        """Parameters that one token uses."""
        return self.total - self.idle_experts


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model. `body` and `mtp` are what published sizes count: neither embedding nor head."""

    embedding: int
    head: int
    """0 where it is the embedding."""
    final_norm: int
    dense_layer: LayerCounts
    moe_layer: LayerCounts
    mtp_layer: LayerCounts
    num_dense_layers: int
    num_moe_layers: int
    """Without the MTP layer."""
    num_mtp_layers: int

    @property
    def body(self) -> int:
        """Decoder layers and the final norm."""
        layers = self.num_dense_layers * self.dense_layer.total + self.num_moe_layers * self.moe_layer.total
        return layers + self.final_norm

    @property
    def mtp(self) -> int:
        """The MTP layer."""
        return self.num_mtp_layers * self.mtp_layer.total

    @property
    def embeddings(self) -> int:
        """Embedding and head."""
        return self.embedding + self.head

    @property
    def total(self) -> int:
        """Everything, as `sum(p.numel() for p in Glm(config).parameters())`."""
        return self.embeddings + self.body + self.mtp

    @property
    def active_body(self) -> int:
        """Of `body`, what one token uses."""
        layers = self.num_dense_layers * self.dense_layer.active + self.num_moe_layers * self.moe_layer.active
        return layers + self.final_norm

    @property
    def active_mtp(self) -> int:
        """Of `mtp`, what one token uses."""
        return self.num_mtp_layers * self.mtp_layer.active

    def component(self, name: str) -> int:
        """Parameters of one component, a field of `LayerCounts`, in all layers with the MTP layer."""
        return (
            self.num_dense_layers * getattr(self.dense_layer, name)
            + self.num_moe_layers * getattr(self.moe_layer, name)
            + self.num_mtp_layers * getattr(self.mtp_layer, name)
        )


def count_parameters(config: GlmConfig) -> ParameterCounts:
    """Count without building the model; torch is not imported. Router correction biases, buffers, are not counted."""
    hidden, head_dim = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    biases = queries + 2 * keys if config.attention_bias else 0
    attention = 2 * hidden * queries + 2 * hidden * keys + biases
    norms = 2 * hidden + (2 * head_dim if config.use_qk_norm else 0)
    expert = 3 * hidden * config.moe_intermediate_size
    mixture = {
        "attention": attention,
        "router": config.n_routed_experts * hidden,
        "routed_experts": config.n_routed_experts * expert,
        "shared_experts": config.n_shared_experts * expert,
        "idle_experts": (config.n_routed_experts - config.num_experts_per_tok) * expert,
    }
    vocabulary = config.vocab_size * hidden
    return ParameterCounts(
        embedding=vocabulary,
        head=0 if config.tie_word_embeddings else vocabulary,
        final_norm=hidden,
        dense_layer=LayerCounts(attention=attention, norms=norms, dense=3 * hidden * config.intermediate_size),
        moe_layer=LayerCounts(**mixture, norms=norms),
        mtp_layer=LayerCounts(**mixture, norms=norms + 3 * hidden, mtp_projection=2 * hidden * hidden),
        num_dense_layers=config.first_k_dense_replace,
        num_moe_layers=config.num_hidden_layers - config.first_k_dense_replace,
        num_mtp_layers=config.num_nextn_predict_layers,
    )
