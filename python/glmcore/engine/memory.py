"""How many blocks of keys and values fit the memory."""

import os
from pathlib import Path

import torch

from glmcore.engine.config import EngineConfig
from glmcore.errors import RequestError
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


def block_bytes(model: Glm) -> int:
    """Bytes of a block in all layers."""
    config = model.config
    values = 2 * config.num_key_value_heads * config.head_dim * BLOCK * config.num_hidden_layers
    return values * model.lm_head.weight.element_size()


def cache_blocks(model: Glm, config: EngineConfig) -> int:
    """Blocks of an engine's cache.

    Raises:
        RequestError: The memory does not hold one block.
    """
    if config.cache_tokens is not None:
        return -(-config.cache_tokens // BLOCK)
    free, size = free_bytes(model.lm_head.weight.device), block_bytes(model)
    most = config.max_sequences * -(-model.config.max_position_embeddings // BLOCK)
    blocks = min(int(free * config.cache_memory_share) // size, most)
    if blocks < 1:
        raise RequestError(f"a block of {BLOCK} tokens needs {size} bytes of cache, {free} bytes of memory are free")
    return blocks
