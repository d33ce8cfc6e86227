"""What the ranks of tests/test_context_parallel.py do."""

import numpy as np
import torch
import torch.distributed as dist

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.ranks import Ranks
from glmcore.packing import PackedBatch
from glmcore.train.config import StageConfig
from glmcore.train.step import train_step


def random_model(fields: dict, dtype: torch.dtype = torch.float64) -> Glm:
    """A model whose weights are all large enough to matter, norms and biases too, the same in every process."""
    model = Glm(GlmConfig(**fields)).to(dtype)
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


def gradients_of_step(model: Glm, batches: list[PackedBatch], stage: StageConfig, ranks: Ranks) -> dict:
    """Loss, MTP loss, load and summed gradients of a step."""
    for parameter in model.parameters():
        parameter.grad = None
    result = train_step(model, batches, stage, ranks)
    grads = {
        name: parameter.grad.double() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    grads = {name: ranks.sum_over_batch(grad).numpy() for name, grad in grads.items()}
    return {"loss": result.loss, "mtp_loss": result.mtp_loss, "load": result.load.numpy(), "grads": grads}


def ctx_steps(rank: int, fields: dict, cases: list) -> list[dict]:
    ranks = Ranks(ParallelConfig(context=dist.get_world_size()))
    out = []
    for batches, stage, dtype in cases:
        out.append(gradients_of_step(random_model(fields, dtype), batches, stage, ranks))
    return out
