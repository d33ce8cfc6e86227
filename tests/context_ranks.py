"""What the ranks of tests/test_context_parallel.py do."""

from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm, Output
from glmcore.model.layout import DocumentLayout
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.context import ContextLayout, attend_over_ranks, layout_of
from glmcore.model.parallel.ranks import Ranks
from glmcore.packing import PackedBatch
from glmcore.train.schedule import LossWeights
from glmcore.train.step import train_step


def random_model(fields: dict) -> Glm:
    """A float64 model whose weights are all large enough to matter, norms and biases too, the same in every process."""
    model = Glm(GlmConfig(**fields)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
        for router in model.routers:
            router.e_score_correction_bias.copy_(0.05 * torch.randn(len(router.weight), generator=generator))
    return model


def packed(lengths: list[int], vocab_size: int, seed: int) -> PackedBatch:
    """Random documents, some of whose tokens are not learned."""
    generator = np.random.default_rng(seed)
    num_tokens = sum(lengths)
    ids = generator.integers(0, vocab_size, num_tokens).astype(np.int32)
    mask = (generator.random(num_tokens) < 0.8).astype(np.uint8)
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    labels = np.append(np.where(mask[1:], ids[1:], -100), -100).astype(np.int32)
    labels[cu_seqlens[1:] - 1] = -100
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    return PackedBatch(ids, labels, positions, mask, cu_seqlens, max(lengths))


def gradients_of_step(model: Glm, batches: list[PackedBatch], weights: LossWeights, ranks: Ranks) -> dict:
    """Loss, MTP loss, load and summed gradients of a step."""
    for parameter in model.parameters():
        parameter.grad = None
    result = train_step(model, batches, weights, ranks)
    grads = {
        name: parameter.grad.double() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    grads = {name: ranks.sum_over_batch(grad).numpy() for name, grad in grads.items()}
    return {"loss": result.loss, "mtp_loss": result.mtp_loss, "load": result.routers.share.numpy(), "grads": grads}


def forward(model: Glm, batch: PackedBatch, ranks: Ranks) -> tuple[Output, DocumentLayout | ContextLayout]:
    """Output for this rank's tokens, and where they lie."""
    layout = layout_of(batch.cu_seqlens, ranks.axis("context"))
    ids, positions = (torch.from_numpy(values.astype(np.int64)) for values in (batch.input_ids, batch.position_ids))
    return model(ids, positions, layout, with_mtp=True), layout


def logits_of(model: Glm, batch: PackedBatch, ranks: Ranks) -> tuple[np.ndarray, np.ndarray]:
    """Places of this rank's tokens in the batch, and the scores after each of them."""
    output, layout = forward(model, batch, ranks)
    places = layout.local(torch.arange(len(batch.input_ids)))
    return places.numpy(), model.logits(output.hidden).detach().numpy()


def saved_bytes(model: Glm, batch: PackedBatch, ranks: Ranks) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    tensors = []  # held, so that no memory is counted under two addresses

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(model, batch, ranks)
    return sum(kept.values())


def attention_in_bfloat16(lengths: list[int], ranks: Ranks) -> list[float]:
    """Errors of attention over ranks and its three gradients, as shares of their norms, against float64."""
    generator = torch.Generator().manual_seed(5)
    sizes = [(sum(lengths), heads, 16) for heads in (4, 2, 2, 4)]
    *inputs, grad = (torch.randn(size, generator=generator).bfloat16() for size in sizes)
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    exact = [x.double().requires_grad_() for x in inputs]
    parts = [
        F.scaled_dot_product_attention(*(x[a:b].transpose(0, 1)[None] for x in exact), is_causal=True, enable_gqa=True)
        for a, b in pairwise(bounds.tolist())
    ]
    expected = torch.cat([part[0].transpose(0, 1) for part in parts])
    layout = ContextLayout.from_cu_seqlens(bounds, ranks.axis("context"))
    own = [layout.local(x).requires_grad_() for x in inputs]
    mixed = attend_over_ranks(*own, layout)
    grads = torch.autograd.grad(mixed, own, layout.local(grad))
    expected_grads = torch.autograd.grad(expected, exact, grad.double())
    pairs = zip((mixed, *grads), (expected, *expected_grads), strict=True)
    return [float((got - layout.local(true)).norm() / layout.local(true).norm()) for got, true in pairs]


def check_operator(ranks: Ranks) -> tuple[bool, bool]:
    """Raise where torch finds a fault in the operator; say whether results and gradients are the same when compiled."""
    layout = ContextLayout.from_cu_seqlens(np.array([0, 50, 64]), ranks.axis("context"))
    inputs = [torch.randn(len(layout.tokens), heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    runs = layout.runs
    plan = (layout.key_place, runs.cu_queries, runs.cu_keys, runs.max_queries, runs.max_keys, layout.group.group_name)
    torch.library.opcheck(torch.ops.glmcore.attend_over_ranks.default, (inputs[0], torch.cat(inputs[1:], 1), *plan))
    compiled = torch.compile(attend_over_ranks, backend="aot_eager", fullgraph=True)
    results = [run(*inputs, layout) for run in (attend_over_ranks, compiled)]
    grads = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    return torch.equal(*results), all(map(torch.equal, *grads))


def has_the_same_gradients_checkpointed(fields: dict, case: tuple, mode: str, ranks: Ranks) -> bool:
    """Whether a step in which blocks are computed again for the backward pass gives the same bits."""
    plain, again = random_model(fields), random_model(fields).set_activation_checkpointing(mode)
    grads, others = (gradients_of_step(model, *case, ranks)["grads"] for model in (plain, again))
    return all(np.array_equal(others[name], grad) for name, grad in grads.items())


def everything(rank: int, fields: dict, cases: list, long_batch: PackedBatch) -> dict:
    """All that the tests look at, so that processes are started once."""
    ranks = Ranks(ParallelConfig(context=dist.get_world_size()))
    return {
        "steps": [gradients_of_step(random_model(fields), batches, weights, ranks) for batches, weights in cases],
        "logits": [logits_of(random_model(fields), batches[0], ranks) for batches, _ in cases],
        "saved_bytes": saved_bytes(random_model(fields), long_batch, ranks),
        "bfloat16": attention_in_bfloat16([150, 9, 33], ranks),
        "checkpointed": [
            has_the_same_gradients_checkpointed(fields, cases[3], mode, ranks) for mode in ("selective", "full")
        ],
        "operator": check_operator(ranks) if dist.get_world_size() == 2 else (True, True),
    }
