"""Steps over a paged cache by the Rust core: a model in float32 on the CPU.

Every number of a token is made by the same operations in the same order, whatever else is in the step: see the crate
glmcore-decode. `Glm.forward` with a `PagedLayout` is its plain twin.

Shapes: T new tokens, S of them wanted, D hidden size, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from glmcore import _core
from glmcore.model.config import GlmConfig
from glmcore.model.glm import DecoderLayer, Glm
from glmcore.model.moe import Experts, MixtureOfExperts, Mlp
from glmcore.model.paged import PagedCache, PagedLayout
from glmcore.model.rope import rotary_angles


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    eps: float
    top_k: int
    num_groups: int
    top_groups: int
    normalise: bool
    routed_scale: float
    half_rotary: int

    @classmethod
    def of(cls, config: GlmConfig) -> "_Sizes":
        return cls(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.head_dim**-0.5,
            config.rms_norm_eps,
            config.num_experts_per_tok,
            config.n_group,
            config.topk_group,
            config.norm_topk_prob,
            config.routed_scaling_factor,
            config.rotary_dim // 2,
        )


@dataclass(frozen=True)
class _Layer:
    input_norm: np.ndarray
    query: tuple[np.ndarray, np.ndarray | None]
    key: tuple[np.ndarray, np.ndarray | None]
    value: tuple[np.ndarray, np.ndarray | None]
    output: np.ndarray
    norms: tuple[np.ndarray, np.ndarray] | None
    post_norm: np.ndarray
    experts: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None
    mlp: tuple[np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def of(cls, layer: DecoderLayer) -> "_Layer":
        attention, feed_forward = layer.self_attn, layer.mlp
        experts, mlp = None, feed_forward
        if isinstance(feed_forward, MixtureOfExperts):
            router, stacks = feed_forward.gate, feed_forward.experts
            experts = (
                _flat(router.weight),
                _flat(router.e_score_correction_bias),
                _flat(stacks.gate_up_proj),
                _flat(stacks.down_proj),
            )
            mlp = feed_forward.shared_experts
        assert isinstance(mlp, Mlp)
        norms = (_flat(attention.q_norm.weight), _flat(attention.k_norm.weight)) if attention.use_qk_norm else None
        return cls(
            _flat(layer.input_layernorm.weight),
            _linear(attention.q_proj),
            _linear(attention.k_proj),
            _linear(attention.v_proj),
            _flat(attention.o_proj.weight),
            norms,
            _flat(layer.post_attention_layernorm.weight),
            experts,
            (_flat(mlp.gate_proj.weight), _flat(mlp.up_proj.weight), _flat(mlp.down_proj.weight)),
        )


class DecodeModel:
    """A model for steps over a paged cache, in the memory of its parameters: what replaces their values replaces it.

    Args:
        model: For which `is_supported`.
    """

    def __init__(self, model: Glm) -> None:
        self.model = model
        layers = [_Layer.of(layer) for layer in model.decoder_layers]
        embedding, norm = _flat(model.model.embed_tokens.weight), _flat(model.model.norm.weight)
        self._core = _core.DecodeModel(_Sizes.of(model.config), embedding, norm, layers)
        self._head = _flat(model.lm_head.weight)
        self._angles = self._angles_up_to(1)

    @staticmethod
    def is_supported(model: Glm) -> bool:
        """Whether the Rust core can run a model: float32 on the CPU, not held in FP8, and 16 channels or a multiple."""
        plain = all(isinstance(module, nn.Linear | Experts) for module in _multiplying(model))
        tensors = [*model.parameters(), *model.buffers()]
        on_cpu = all(t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        return plain and on_cpu and model.config.head_dim % 16 == 0

    def hidden(
        self,
        ids: np.ndarray,
        layout: PagedLayout,
        rows: np.ndarray,
        caches: list[PagedCache],
        chosen: np.ndarray | None = None,
    ) -> Tensor:
        """Run the new tokens of a step and add them to the caches.

        Args:
            ids: int32 [T].
            layout: What the tokens are.
            rows: New tokens whose hidden states are wanted, int32 [S].
            caches: One per decoder layer.
            chosen: Gets the experts of each token in each layer that has some, uint16 [T, layers, K]; None for nothing.

        Returns:
            Normed hidden states [S, D].
        """
        longest = int(layout.lengths.max())
        if longest * self._core_half > len(self._angles[0]):
            self._angles = self._angles_up_to(min(2 * longest, self.model.config.max_position_embeddings))
        out = torch.empty(len(rows), self.model.config.hidden_size)
        step = (ids, layout.cu_queries, layout.lengths, layout.tables.ravel(), rows)
        memory = [(_flat(cache.keys), _flat(cache.values)) for cache in caches]
        self._core.run(step, self._angles, memory, _flat(out), None if chosen is None else chosen.reshape(-1))
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """`Glm.logits` of hidden states [S, D], float32 [S, V]."""
        config = self.model.config
        out = torch.empty(len(hidden), config.vocab_size)
        _core.decode_linear(self._head, config.hidden_size, _flat(hidden), _flat(out))
        return out

    @property
    def _core_half(self) -> int:
        return self.model.config.rotary_dim // 2

    def _angles_up_to(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        cos, sin = rotary_angles(torch.arange(length), self.model.config.rotary_dim, self.model.rope_theta)
        return _flat(cos), _flat(sin)


def can_draw(scores: Tensor) -> bool:
    """Whether `draw_tokens` takes these scores: float32 on the CPU."""
    return scores.dtype == torch.float32 and scores.device.type == "cpu"


def draw_tokens(
    scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw a token from each row of scores, each row on its own; see `glmcore.engine.sampling.SamplingParams`.

    Args:
        scores: Of the next tokens, float32 [B, V].
        temperature: float32 [B]; 0 for the most likely token.
        top_k: int64 [B].
        top_p: float32 [B].
        min_p: float32 [B].
        uniform: Random numbers in [0, 1), float64 [B].

    Returns:
        Tokens, int64 [B], and their log-probabilities at the temperature before truncation, float32 [B]; token 0 and
        NaN where scores are no distribution.
    """
    tokens, logprobs = torch.empty(len(scores), dtype=torch.int64), torch.empty(len(scores))
    wishes = (_flat(temperature), _flat(top_k), _flat(top_p), _flat(min_p), _flat(uniform))
    _core.decode_draw(_flat(scores), wishes, _flat(tokens), _flat(logprobs))
    return tokens, logprobs


def _multiplying(model: Glm) -> list[nn.Module]:
    """The modules of the decoder layers that hold matrices."""
    kinds = ("_proj", "experts", "lm_head")
    named = model.named_modules()
    return [module for name, module in named if name.endswith(kinds) and not name.endswith("shared_experts")]


def _linear(linear: nn.Linear) -> tuple[np.ndarray, np.ndarray | None]:
    return _flat(linear.weight), None if linear.bias is None else _flat(linear.bias)


def _flat(tensor: Tensor) -> np.ndarray:
    """The same memory as a numpy array."""
    return tensor.detach().view(-1).numpy()
