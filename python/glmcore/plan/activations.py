"""Bytes that a forward pass keeps for the backward pass, layer by layer, as the code of `glmcore.model` keeps them.

Every function gives bytes for one token. `width` is that of a value in the type of computation, 2 or 4 bytes.
"""

from glmcore.model.config import Checkpointing, GlmConfig

FLOAT32, INT64 = 4, 8


def kept_by_layer(
    config: GlmConfig, width: int, checkpointing: Checkpointing, *, dense: bool, tensor: int = 1
) -> float:
    """Of a decoder layer, its input included.

    Args:
        config: The model.
        width: Bytes of a value.
        checkpointing: What blocks keep.
        dense: Whether its feed-forward layer is dense.
        tensor: Ranks that share out heads, widths and experts.
    """
    stream = config.hidden_size * width
    if checkpointing == "full":
        return stream + (0 if dense else _routing(config))
    attention = _attention(config, width, checkpointing) / tensor
    feed_forward = (_dense if dense else _mixture)(config, width, checkpointing, tensor)
    if checkpointing == "selective":
        return stream + attention + stream + feed_forward  # the input, and what the output projection gives
    normed = 2 * (2 * stream + FLOAT32)  # both norms keep their input and a number, the products what the norms give
    return normed + attention + feed_forward


def kept_by_mtp(config: GlmConfig, width: int, checkpointing: Checkpointing, tensor: int = 1) -> float:
    """Of the MTP layer: its block, and around it embedding and hidden state joined, projected, normed at the end."""
    stream = config.hidden_size * width
    if checkpointing == "full":
        return 2 * stream + _routing(config)
    around = 2 * stream if checkpointing == "selective" else 4 * stream + 3 * FLOAT32
    return around + kept_by_layer(config, width, checkpointing, dense=False, tensor=tensor)


def kept_at_the_end(config: GlmConfig, width: int) -> float:
    """Of the final norm and the losses, which keep the gradients of the hidden states they see."""
    losses = 1 + config.num_nextn_predict_layers
    return config.hidden_size * width * (1 + 2 * losses) + FLOAT32


def _attention(config: GlmConfig, width: int, checkpointing: Checkpointing) -> float:
    heads, groups, channels = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    projected = (heads + 2 * groups) * channels * width
    attended = heads * channels * width + heads * FLOAT32
    if checkpointing == "selective":
        return projected + attended
    before_norm = (heads + groups) * (channels * width + FLOAT32) if config.use_qk_norm else 0
    angles = 2 * config.rotary_dim * width if width != FLOAT32 else 0  # of queries and of keys, each its own copy
    return before_norm + projected + attended + angles


def _dense(config: GlmConfig, width: int, checkpointing: Checkpointing, tensor: int) -> float:
    if checkpointing == "selective":
        return 2 * config.intermediate_size * width / tensor + config.hidden_size * width
    return 3 * config.intermediate_size * width / tensor


def _mixture(config: GlmConfig, width: int, checkpointing: Checkpointing, tensor: int) -> float:
    """Rows are `num_experts_per_tok` for a token, of which tensor ranks have their share when the load is even."""
    rows = config.num_experts_per_tok / tensor
    expert, hidden = config.moe_intermediate_size, config.hidden_size
    shared = config.n_shared_experts * expert / tensor
    if checkpointing == "selective":
        routed = rows * (2 * expert + hidden) * width
        return routed + 2 * shared * width + hidden * width + config.n_routed_experts * FLOAT32 + _routing(config)
    wide_input = hidden * FLOAT32 if width != FLOAT32 else 0  # of the router
    routed = rows * (2 * hidden + 3 * expert) * width
    places = 2 * rows * INT64
    return wide_input + routed + places + 3 * shared * width + _routing(config)


def _routing(config: GlmConfig) -> float:
    """Scores of all experts, chosen experts and their weights, before and after they are made to add up."""
    return config.n_routed_experts * FLOAT32 + config.num_experts_per_tok * (INT64 + 2 * FLOAT32) + 2 * FLOAT32
