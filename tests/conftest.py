"""Fixtures that several test files share."""

import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import settings
from playwright.sync_api import sync_playwright

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm, Output
from glmcore.model.layout import DocumentLayout
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.ranks import Ranks
from glmcore.packing import PackedBatch
from glmcore.train.loss import IGNORED

settings.register_profile("glmcore", deadline=None)  # a busy machine makes no test fail
settings.load_profile("glmcore")

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 128,
    "rope_theta": 10_000.0,
    "eos_token_id": [1, 2],
    "pad_token_id": 1,
}
"""Fields of a model that runs in milliseconds, with every architectural part."""


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


ALONE = Ranks(ParallelConfig())
"""The ranks of a process on its own."""


def batch_of(lengths: list[int], seed: int = 0) -> PackedBatch:
    """A packed batch of random documents with a loss on every token but each document's first."""
    ids = np.random.default_rng(seed).integers(0, TINY["vocab_size"], sum(lengths)).astype(np.int32)
    labels = np.append(ids[1:], IGNORED).astype(np.int32)
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    labels[cu_seqlens[1:] - 1] = IGNORED
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    return PackedBatch(
        input_ids=ids,
        labels=labels,
        position_ids=positions,
        loss_mask=np.ones(len(ids), np.uint8),
        cu_seqlens=cu_seqlens,
        max_seqlen=max(lengths),
    )


def output_of(model: Glm, batch: PackedBatch, *, with_mtp: bool) -> Output:
    """Forward pass of a packed batch."""
    ids, positions = (torch.from_numpy(part.astype(np.int64)) for part in (batch.input_ids, batch.position_ids))
    return model(ids, positions, DocumentLayout.from_cu_seqlens(batch.cu_seqlens), with_mtp=with_mtp)


@pytest.fixture
def tiny_config() -> GlmConfig:
    return GlmConfig(**TINY)


@pytest.fixture(autouse=True)
def _one_thread_and_fixed_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def browser():
    """Chromium; where there is none, a test is skipped, or fails if `GLMCORE_REQUIRE_BROWSER` is 1."""
    if CHROMIUM is None:
        if os.environ.get("GLMCORE_REQUIRE_BROWSER") == "1":
            pytest.fail("no chromium on this machine: install the Debian package")
        pytest.skip("no chromium on this machine")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()
