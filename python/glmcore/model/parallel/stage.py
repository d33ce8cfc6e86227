"""One stage of a pipeline: a model of which the parts of all other stages are absent.

Shapes: T tokens of a micro-batch, D hidden size.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmcore.errors import CheckpointError
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm, Output
from glmcore.model.layout import DocumentLayout
from glmcore.model.parallel.context import ContextLayout
from glmcore.model.parallel.split import StagePart

EMBEDDING = "model.embed_tokens"
NORM = "model.norm"
HEAD = "lm_head"


@dataclass(frozen=True)
class MicroBatch:
    """T tokens of an optimiser step that go through a model together, and what becomes of the output."""

    input_ids: Tensor
    """int64 [T]."""
    position_ids: Tensor
    """int64 [T]."""
    layout: DocumentLayout | ContextLayout
    with_mtp: bool
    objective: Callable[[Glm, Output], Tensor]
    """Makes the loss, a scalar, of a whole model's output. Given that of a stage, it makes the part of the loss that
    this stage has the figures for, so that the parts of all stages add up to the loss."""

    @property
    def num_tokens(self) -> int:
        """Tokens that this rank computes; a part of T where context ranks share them."""
        return len(self.layout.local(self.input_ids))

    def run(self, model: Glm) -> Tensor:
        """The loss of a whole model."""
        output = model(self.input_ids, self.position_ids, self.layout, with_mtp=self.with_mtp)
        return self.objective(model, output)


class _AttachLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.dtype = loss.dtype
        return x.detach()  # not a view: FSDP hangs hooks on what a stage gives, which a view could lose

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0].new_ones((), dtype=ctx.dtype)


def attach_loss(x: Tensor, loss: Tensor) -> Tensor:
    """`x` as it is; when a gradient comes back to it, `loss` is differentiated as if it had been added to the total.

    So a loss that is known in the middle of a model need not be carried to its end.

    Args:
        x: Any shape.
        loss: Scalar.
    """
    return _AttachLoss.apply(x, loss)  # pyright: ignore[reportReturnType]


class GlmPart(Glm):
    """Some stages of a model, as a model that shares their modules with it and keeps their names.

    Args:
        whole: The model.
        parts: The stages.
    """

    def __init__(self, whole: Glm, parts: Sequence[StagePart]) -> None:
        with torch.device("meta"):
            super().__init__(whole.config)
        names = module_names(whole.config, parts)
        for index, _ in list(self.model.layers.named_children()):
            if f"model.layers.{index}" not in names:
                delattr(self.model.layers, index)  # unlike `del layers[i]`, this gives the others no new numbers
        for name in names | {EMBEDDING, NORM, HEAD}:  # an absent embedding, norm or head lets pass what it gets
            self.set_submodule(name, whole.get_submodule(name) if name in names else nn.Identity())
        self.follow(whole)

    def save_pretrained(self, directory: str | Path, *, fp8: bool = False) -> None:
        """Not for parts.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(f"{directory}: a rank of a pipeline has a part of the model; load it whole to save it")

    def follow(self, whole: Glm) -> None:
        """Take over what can be set of a model and is not in its modules."""
        self.rope_theta = whole.rope_theta
        self.checkpointing = whole.checkpointing


class GlmStage(GlmPart):
    """One stage, run on micro-batches."""

    def __init__(self, whole: Glm, part: StagePart) -> None:
        super().__init__(whole, [part])
        self.part = part

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # a schedule calls it, with what stages pass on
        self, x: Tensor | None = None, *, micro_batch: MicroBatch
    ) -> Tensor:
        """Activations for the next stage, [T, D]; of the last stage the loss, a scalar.

        Args:
            x: Activations of the stage before, [T, D]; None in the first stage.
            micro_batch: The tokens. Every stage has them, only activations are passed on.
        """
        output = super().forward(
            micro_batch.input_ids,
            micro_batch.position_ids,
            micro_batch.layout,
            with_mtp=micro_batch.with_mtp,
            inputs_embeds=x,
        )
        loss = micro_batch.objective(self, output)
        if self.part.is_last:
            return loss
        return attach_loss(output.hidden, loss) if loss.requires_grad else output.hidden


def module_names(config: GlmConfig, parts: Iterable[StagePart]) -> set[str]:
    """The modules of stages; the last stage has an embedding too where it needs one."""
    names: set[str] = set()
    for part in parts:
        names |= {f"model.layers.{index}" for index in part.layers}
        if part.is_last:
            names |= {NORM, HEAD}
            names |= {f"model.layers.{config.num_hidden_layers + i}" for i in range(config.num_nextn_predict_layers)}
        if part.is_first or (part.is_last and has_two_embeddings(config)):
            names.add(EMBEDDING)
    return names


def has_two_embeddings(config: GlmConfig) -> bool:
    """True where the last stage has a copy of the embedding, for multi-token prediction or as its head."""
    return config.num_nextn_predict_layers > 0 or config.tie_word_embeddings
