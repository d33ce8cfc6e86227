"""The GLM mixture-of-experts language model on packed tokens.

Shapes: T tokens of a packed batch, D hidden size, V vocabulary.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from glmcore.errors import ConfigError
from glmcore.model.attention import Attention, Layout
from glmcore.model.blocks import compile_block, run_block
from glmcore.model.config import Checkpointing, GlmConfig
from glmcore.model.layout import DocumentLayout
from glmcore.model.moe import MixtureOfExperts, Mlp, Router, Routing
from glmcore.model.norm import RMSNorm
from glmcore.model.paged import PagedCache, PagedLayout
from glmcore.model.parallel.context import ContextLayout
from glmcore.model.parallel.placement import draw_normal
from glmcore.model.rope import rotary_angles
from glmcore.model.tree import TreeLayout


@dataclass(frozen=True)
class Output:
    """What a forward pass gives."""

    hidden: Tensor
    """Normed hidden state that predicts the next token, [T, D]."""
    mtp_hidden: Tensor | None
    """Normed hidden state that predicts the token after the next one, [T, D]; None without an MTP layer. In a forest
    it stands at the next token, of which there can be several."""
    routings: list[Routing] = field(default_factory=list)
    """Routing of each mixture-of-experts layer, the MTP layer last."""


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: GlmConfig, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        dense = index < config.first_k_dense_replace
        self.mlp = Mlp(config.hidden_size, config.intermediate_size) if dense else MixtureOfExperts(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        layout: Layout,
        cache: PagedCache | None = None,
        recorded: Tensor | None = None,
    ) -> tuple[Tensor, Routing | None]:
        x = x + self.self_attn(self.input_layernorm(x), angles, layout, cache)
        return self._feed_forward(x, recorded)

    def _feed_forward(self, x: Tensor, recorded: Tensor | None) -> tuple[Tensor, Routing | None]:
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MixtureOfExperts):
            y, routing = self.mlp(normed, recorded)
            return x + y, routing
        return x + self.mlp(normed), None


def is_sparse(layer: DecoderLayer) -> bool:
    """Whether a layer has experts to choose from."""
    return isinstance(layer.mlp, MixtureOfExperts)


class SharedHead(nn.Module):
    """The norm before the head that the MTP layer shares with the main model."""

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MtpLayer(DecoderLayer):
    """Multi-token prediction: from the hidden state of token t and the embedding of token t + 1 to token t + 2.

    Source: DeepSeek-V3 report (arXiv:2412.19437), section 2.2; the checkpoint's order is embedding first.
    """

    def __init__(self, config: GlmConfig) -> None:
        super().__init__(config, index=config.num_hidden_layers)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = SharedHead(config)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # a block that is called by Glm alone
        self,
        hidden: Tensor,
        next_embedding: Tensor,
        angles: tuple[Tensor, Tensor],
        layout: Layout,
        cache: PagedCache | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """Hidden states [T, D] that the head turns into logits of token t + 2."""
        x = self.eh_proj(torch.cat((self.enorm(next_embedding), self.hnorm(hidden)), dim=-1))
        x, routing = super().forward(x, angles, layout, cache)
        return self.shared_head.norm(x), routing


class GlmBody(nn.Module):
    """Embedding, decoder layers, the MTP layer as the last entry of `layers`, and the final norm."""

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers: list[DecoderLayer] = [DecoderLayer(config, i) for i in range(config.num_hidden_layers)]
        if config.num_nextn_predict_layers:
            layers.append(MtpLayer(config))
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Glm(nn.Module):
    """A GLM mixture-of-experts model. Parameters carry the names of the published checkpoints.

    The one exception are the routed experts, which are stacked (`mlp.experts.gate_up_proj`); reading and writing
    checkpoints splits and joins them.
    """

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.config = config
        self.model = GlmBody(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.rope_theta = config.rope_theta
        self.checkpointing: Checkpointing = "none"

    def to_empty(self, *, device: torch.device | str | int | None, recurse: bool = True) -> Self:
        """Give memory on `device` to a model of the meta device; see `torch.nn.Module.to_empty`."""
        super().to_empty(device=device, recurse=recurse)
        if self.config.tie_word_embeddings and self.has_head:
            self.lm_head.weight = self.model.embed_tokens.weight
        return self

    @torch.no_grad()
    def init_weights(self, seed: int) -> Self:
        """Draw every matrix from a normal distribution with `initializer_range`; norms become 1, biases 0.

        A matrix has draws of its own, which its name decides, so weights do not depend on how a model is spread over
        ranks, and no rank draws what it does not hold.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                draw_normal(parameter, self.config.initializer_range, f"{seed} {name}")
            else:
                parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
        for buffer in self.buffers():
            buffer.zero_()
        return self

    def set_activation_checkpointing(self, mode: Checkpointing) -> Self:
        """Choose what blocks keep for the backward pass; the rest is computed again, with the same bits.

        Args:
            mode: `none` keeps all that autograd asks for, `selective` the results of matrix products and attention,
                `full` the inputs of the blocks.

        Raises:
            ConfigError: There is no such mode.
        """
        if mode not in get_args(Checkpointing):
            known = ", ".join(get_args(Checkpointing))
            raise ConfigError(f"activation checkpointing is {mode!r}, it must be one of {known}")
        self.checkpointing = mode
        return self

    def compile_blocks(self, device: torch.device | None = None) -> Self:
        """Compile each block with `torch.compile`, in place: results differ by rounding alone.

        Blocks of one kind share their code, and one serves any number of tokens.

        Args:
            device: Where the model will run; by default where it is.

        Raises:
            ConfigError: The model is on a CPU without a C++ compiler.
        """
        for layer in self.model.layers:
            compile_block(layer, device or next(self.parameters()).device)
        return self

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The main model's layers, without the MTP layer."""
        return [layer for layer in self.model.layers if not isinstance(layer, MtpLayer)]  # pyright: ignore[reportReturnType]

    @property
    def mtp_layer(self) -> MtpLayer | None:
        """The multi-token-prediction layer, if there is one."""
        return next((layer for layer in self.model.layers if isinstance(layer, MtpLayer)), None)

    @property
    def routers(self) -> list[Router]:
        """The router of each mixture-of-experts layer, in the order of `Output.routings`."""
        return [module for module in self.modules() if isinstance(module, Router)]

    @property
    def moe_layer_numbers(self) -> list[int]:
        """Number of the layer of each of `routers`, the MTP layer's being `num_hidden_layers`."""
        layers = self.model.layers.named_children()
        return [int(name) for name, layer in layers if isinstance(layer.mlp, MixtureOfExperts)]

    @property
    def has_embedding(self) -> bool:
        """False of a part of a model that begins further on and needs none."""
        return not isinstance(self.model.embed_tokens, nn.Identity)

    @property
    def has_head(self) -> bool:
        """False of a part of a model that ends before its last norm."""
        return not isinstance(self.lm_head, nn.Identity)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        layout: Layout,
        *,
        with_mtp: bool = False,
        caches: list[PagedCache] | None = None,
        inputs_embeds: Tensor | None = None,
        experts: Tensor | None = None,
    ) -> Output:
        """Run packed documents, or samples that share prefixes as a forest.

        Args:
            input_ids: Tokens of all documents, int64 [T]. Also where ranks share them: what comes out is then of this
                rank's tokens, `layout.local` of what a rank on its own would give.
            position_ids: Position of each token in its document, int64 [T].
            layout: What the tokens are.
            with_mtp: Also run the MTP layer. In a forest its state at token t is that of the step to t from the token
                before, so it predicts the tokens after t; at first tokens, which no step leads to, it is zero.
            caches: With a `PagedLayout` alone: one per decoder layer, to which the tokens are added.
            inputs_embeds: What the first layer gets in place of the embeddings of `input_ids`, [T, D].
            experts: What the tokens are to use in each of the L decoder layers with experts, instead of what their
                routers would choose: int [T, L, K], `UNKNOWN` in rows without a record; see `glmcore.model.replay`.
        """
        angles = self._angles(layout.local(position_ids))
        x = self.model.embed_tokens(layout.local(input_ids)) if inputs_embeds is None else inputs_embeds  # [T, D]
        recorded = None if experts is None else layout.local(experts)
        routings = []
        for index, layer in enumerate(self.decoder_layers):
            cache = caches[index] if caches else None
            of_layer = recorded[:, len(routings)] if recorded is not None and is_sparse(layer) else None
            x, routing = run_block(self.checkpointing, layer, x, angles, layout, cache, of_layer)
            if routing is not None:
                routings.append(routing)
        hidden = self.model.norm(x)
        mtp_hidden = None
        if with_mtp and self.mtp_layer is not None:
            if isinstance(layout, PagedLayout):
                raise ValueError("what follows the new tokens of sequences is not known to the MTP layer")
            if isinstance(layout, TreeLayout):
                mtp_hidden, routing = self._predict_in_forest(input_ids, position_ids, hidden, layout)
            else:
                next_embedding = self.model.embed_tokens(layout.local(_next_tokens(input_ids, layout)))
                mtp_hidden, routing = run_block(
                    self.checkpointing, self.mtp_layer, hidden, next_embedding, angles, layout
                )
            if routing is not None:
                routings.append(routing)
        return Output(hidden, mtp_hidden, routings)

    def _predict_in_forest(
        self, input_ids: Tensor, position_ids: Tensor, hidden: Tensor, layout: TreeLayout
    ) -> tuple[Tensor, Routing | None]:
        """MTP states of a forest: one for each step from a token to a next one, whatever number of next ones it has."""
        assert self.mtp_layer is not None
        steps, token = layout.without_first_tokens()
        before = layout.parent[token]
        next_embedding = self.model.embed_tokens(input_ids[token])
        angles = self._angles(position_ids[before])
        states, routing = run_block(self.checkpointing, self.mtp_layer, hidden[before], next_embedding, angles, steps)
        return torch.zeros_like(hidden).index_copy(0, token, states), routing

    def predict_further(
        self, hidden: Tensor, input_ids: Tensor, position_ids: Tensor, layout: Layout, cache: PagedCache
    ) -> Tensor:
        """Run the MTP layer on new tokens of sequences in a cache of its own.

        Args:
            hidden: State of the token before each one, zero before a first one, [T, D].
            input_ids: The tokens, int64 [T].
            position_ids: Their positions, int64 [T].
            layout: What they are.
            cache: Of the MTP layer.

        Returns:
            States that predict the tokens after these, as far as the MTP layer can, [T, D].
        """
        assert self.mtp_layer is not None
        embedding = self.model.embed_tokens(input_ids)
        return self.mtp_layer(hidden, embedding, self._angles(position_ids), layout, cache)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [T, V], in float32 or wider."""
        logits = F.linear(hidden, self.lm_head.weight)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _angles(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return rotary_angles(position_ids, self.config.rotary_dim, self.rope_theta)

    @staticmethod
    def from_pretrained(
        directory: str | Path,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        *,
        check_finite: bool = False,
    ) -> "Glm":
        """Read a Hugging Face checkpoint directory, bfloat16 or block-FP8, experts one by one or in stacks.

        Tensors are read into their places, so the process holds the model once. Where an MTP layer has its own copies
        of embedding and head, as in GLM-4.5's checkpoints, the model's are used; a difference is logged as a warning.

        Args:
            directory: With config.json and safetensors, single or with an index.
            dtype: Type of the weights; the routers' correction biases are float32.
            device: Where the model goes.
            check_finite: Refuse weights that are NaN or infinite.

        Raises:
            CheckpointError: A file is missing or cut short, or a tensor is missing, extra, misshapen, of a type that is
                no float, or not finite; it is named with its file.
            ConfigError: config.json asks for something that the model does not have.
        """
        from glmcore.model.weights import (
            load_pretrained,
        )  # weights knows Glm; imported late to break the circle

        return load_pretrained(Path(directory), dtype, torch.device(device), check_finite=check_finite)

    def save_pretrained(self, directory: str | Path, *, fp8: bool = False) -> None:
        """Write a Hugging Face checkpoint directory, tensor by tensor: bfloat16, or block-FP8 with `fp8`.

        It appears whole or not at all, and has a SHA256SUMS that `glmcore.fp8.verify_checkpoint` reads.

        Raises:
            CheckpointError: The directory exists already or cannot be written, the model is held in FP8 or spread over
                ranks, or a weight to be quantised is not finite.
        """
        from glmcore.model.weights import save_pretrained

        save_pretrained(self, Path(directory), fp8=fp8)


def _next_tokens(input_ids: Tensor, layout: DocumentLayout | ContextLayout) -> Tensor:
    """The token after each one; a document's last token is followed by itself, so documents stay apart."""
    last = layout.cu_seqlens[1:].long() - 1
    following = input_ids.roll(-1)
    following[last] = input_ids[last]
    return following
