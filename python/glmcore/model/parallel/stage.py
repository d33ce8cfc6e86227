"""One stage of a pipeline: a model of which the parts of all other stages are absent.

Shapes: T tokens of a micro-batch, D hidden size.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm, Output
from glmcore.model.layout import DocumentLayout
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
    layout: DocumentLayout
    with_mtp: bool
    objective: Callable[[Glm, Output], Tensor]
    """Makes the loss, a scalar, of a whole model's output. Given that of a stage, it makes the part of the loss that
    this stage has the figures for, so that the parts of all stages add up to the loss."""

    def run(self, model: Glm) -> Tensor:
        """The loss of a whole model."""
        output = model(self.input_ids, self.position_ids, self.layout, with_mtp=self.with_mtp)
        return self.objective(model, output)


class _AttachLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.dtype = loss.dtype
        return x.view_as(x)

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


class GlmStage(Glm):
    """One stage: some modules of a rank's model, shared with it, and run on micro-batches."""

    def __init__(self, whole: Glm, part: StagePart) -> None:
        with torch.device("meta"):
            super().__init__(whole.config)
        self.part = part
        names = module_names(whole.config, [part])
        keep_modules(self, names)
        for name in names:
            self.set_submodule(name, whole.get_submodule(name))

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
    """The modules of stages. Multi-token prediction and a tied head need the embedding, so the last stage has it too."""
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
    """True where the last stage needs the embedding too."""
    return config.num_nextn_predict_layers > 0 or config.tie_word_embeddings


def keep_modules(model: Glm, names: set[str]) -> None:
    """Leave only some modules in a whole model; in place of an embedding, norm or head comes one that changes nothing.

    Args:
        model: Keeps the numbers of its layers.
        names: What `module_names` gives.
    """
    for index, _ in list(model.model.layers.named_children()):
        if f"model.layers.{index}" not in names:
            delattr(model.model.layers, index)  # unlike `del layers[i]`, this gives the others no new numbers
    for name in {EMBEDDING, NORM, HEAD} - names:
        model.set_submodule(name, nn.Identity())
