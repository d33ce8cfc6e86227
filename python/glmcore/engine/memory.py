"""How many blocks of keys and values fit the memory."""

import math
import os
from pathlib import Path

import torch

from glmcore.engine.config import EngineConfig
from glmcore.errors import CheckpointError, RequestError
from glmcore.fp8.layout import SCALE_SUFFIX
from glmcore.model.checkpoint import Checkpoint
from glmcore.model.glm import Glm
from glmcore.model.paged import BLOCK


def free_bytes(device: torch.device) -> int:
    """Memory of a device that nobody uses."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def block_bytes(model: Glm, *, with_mtp: bool = False) -> int:
    """Bytes of a block in all layers, with or without the MTP layer."""
    config = model.config
    values = 2 * config.num_key_value_heads * config.head_dim * BLOCK * (config.num_hidden_layers + with_mtp)
    return values * model.lm_head.weight.element_size()


def cache_blocks(model: Glm, config: EngineConfig) -> int:
    """Blocks of an engine's cache.

    Raises:
        RequestError: The memory does not hold one block.
    """
    if config.cache_tokens is not None:
        return -(-config.cache_tokens // BLOCK)
    free, size = free_bytes(model.lm_head.weight.device), block_bytes(model, with_mtp=config.num_draft_tokens > 0)
    most = config.max_sequences * -(-model.config.max_position_embeddings // BLOCK)
    blocks = min(int(free * config.cache_memory_share) // size, most)
    if blocks < 1:
        raise RequestError(f"a block of {BLOCK} tokens needs {size} bytes of cache, {free} bytes of memory are free")
    return blocks


def check_fits(directory: Path, dtype: torch.dtype) -> None:
    """Refuse a checkpoint that the memory cannot hold, by the headers of its files and before anything is read.

    Args:
        directory: Hugging Face layout.
        dtype: Type that the weights will have.

    Raises:
        CheckpointError: The weights need more than the memory that is free.
    """
    with Checkpoint(directory) as checkpoint:
        shapes = [
            checkpoint.place_of(name).shape for name in checkpoint.names if not name.endswith(SCALE_SUFFIX["fp8"])
        ]
    needed = dtype.itemsize * sum(math.prod(shape) for shape in shapes)
    free = free_bytes(torch.device("cpu"))
    if needed > free:
        raise CheckpointError(
            f"{directory}: its weights need {needed / 2**30:.1f} GiB as {dtype}, {free / 2**30:.1f} GiB of memory are "
            "free: load it where there is more, or as a smaller type"
        )
