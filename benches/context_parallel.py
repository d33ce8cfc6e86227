"""Context parallelism: how even the ranks' attention is, and what a training step costs each of them.

The first table is attention forwards and backwards for each rank's queries in turn, in one process: CPU time of the
slowest rank over that of the mean, with the shares of `share_tokens` and with the usual ones (rank r has the r-th and
the r-th last of 2 C chunks of the row, whatever documents are in it), interleaved; and the same ratio counted in keys
that queries see. Documents are log-normal, web-like (median 600 tokens, mean 1,160) or agentic (4,000 and 12,000).

The second table is a training step of a small model on one row with one process and with two that speak through gloo:
CPU time of a rank, and what a forward pass keeps for the backward pass.

The third table is attention to a row of one document in one process: peak resident memory above that before it.

    python benches/context_parallel.py
    python benches/context_parallel.py --tokens 32768 --long 4096 8192 16384 32768
"""

import argparse
import os
import resource
import socket
import time

import numpy as np
import torch
import torch.multiprocessing as mp

from glmcore.model.config import GlmConfig
from glmcore.model.documents import attend_within_documents
from glmcore.model.glm import Glm
from glmcore.model.layout import DocumentLayout
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.context import ContextLayout
from glmcore.model.parallel.ranks import Ranks
from glmcore.model.parallel.share import Share, share_tokens
from glmcore.model.runs import Runs, attend, attend_backward
from glmcore.train.loss import linear_cross_entropy

HEADS, KV_HEADS, HEAD_DIM = 4, 1, 64
"""Small, so that a CPU is done in a minute: what is shown is a ratio."""
DOCUMENTS = {"one document": None, "web": (6.4, 1.15), "agentic": (8.3, 1.5)}
"""Mean and deviation of the logarithm of documents' lengths."""
REPEATS = 3


def row_of(kind: str, num_tokens: int, seed: int = 0) -> np.ndarray:
    """Bounds of documents that fill a row; the last one is cut."""
    if DOCUMENTS[kind] is None:
        return np.array([0, num_tokens])
    generator = np.random.default_rng(seed)
    lengths = generator.lognormal(*DOCUMENTS[kind], num_tokens).astype(int) + 1
    ends = np.cumsum(lengths)
    return np.concatenate(([0], ends[ends < num_tokens], [num_tokens]))


def chunk_shares(bounds: np.ndarray, num_ranks: int) -> list[Share]:
    """The usual shares: two chunks of the row for each rank, cut where documents end."""
    size = int(bounds[-1]) // (2 * num_ranks)
    shares = []
    for rank in range(num_ranks):
        edges = [chunk * size for chunk in (rank, rank + 1, 2 * num_ranks - 1 - rank, 2 * num_ranks - rank)]
        cuts = np.union1d(edges, bounds)
        starts, ends = cuts[:-1], cuts[1:]
        own = ((edges[0] <= starts) & (ends <= edges[1])) | ((edges[2] <= starts) & (ends <= edges[3]))
        shares.append(Share(starts[own], ends[own], np.searchsorted(bounds, starts[own], side="right") - 1))
    return shares


def seconds_of(share: Share, bounds: np.ndarray) -> float:
    """CPU time of a rank's attention forwards and backwards."""
    seen = share.ends - bounds[share.document]
    runs = Runs.of(share.ends - share.starts, seen)
    query, grad = (torch.randn(int(runs.cu_queries[-1]), HEADS, HEAD_DIM) for _ in range(2))
    key, value = (torch.randn(int(runs.cu_keys[-1]), KV_HEADS, HEAD_DIM) for _ in range(2))
    started = time.process_time()
    attend_backward(grad, query, key, value, *attend(query, key, value, runs), runs)
    return time.process_time() - started


def visible_keys(share: Share, bounds: np.ndarray) -> int:
    """Keys that a rank's queries see, summed."""
    return int((share.tokens - bounds[np.repeat(share.document, share.ends - share.starts)] + 1).sum())


def evenness(num_tokens: int, num_ranks: int) -> None:
    """Print the first table."""
    print(f"attention of {num_tokens} tokens on {num_ranks} ranks: slowest over mean, CPU time (keys that queries see)")
    for kind in DOCUMENTS:
        bounds = row_of(kind, num_tokens)
        splits = {"shared": share_tokens(bounds, num_ranks), "chunks": chunk_shares(bounds, num_ranks)}
        times = {name: np.full(num_ranks, np.inf) for name in splits}
        for _ in range(REPEATS):
            for rank in range(num_ranks):
                for name, shares in splits.items():
                    times[name][rank] = min(times[name][rank], seconds_of(shares[rank], bounds))
        cells = []
        for name, shares in splits.items():
            work = np.array([visible_keys(share, bounds) for share in shares])
            ratio, counted = times[name].max() / times[name].mean(), work.max() / work.mean()
            cells.append(f"{name} {ratio:.2f} ({counted:.3f}), slowest {1e3 * times[name].max():.0f} ms")
        print(f"  {kind:<13} {len(bounds) - 1:>4} documents: " + "; ".join(cells))


def step(rank: int, num_ranks: int, port: int, num_tokens: int, results) -> None:
    """Steps of one rank; puts its CPU time of the fastest and the bytes kept."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(num_ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    ranks = Ranks(ParallelConfig(context=num_ranks))
    config = GlmConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, head_dim=32, n_routed_experts=16, num_experts_per_tok=2, moe_intermediate_size=128,
        max_position_embeddings=num_tokens, eos_token_id=[1], pad_token_id=1,
    )  # fmt: skip
    model = Glm(config).init_weights(0)
    bounds = row_of("web", num_tokens)
    axis = ranks.axis("context")
    layout = ContextLayout.from_cu_seqlens(bounds, axis) if num_ranks > 1 else DocumentLayout.from_cu_seqlens(bounds)
    ids = torch.randint(0, 4096, (num_tokens,), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in np.diff(bounds).tolist()])
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    best = float("inf")
    for _ in range(REPEATS):
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        started = time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(ids, positions, layout, with_mtp=True)
        linear_cross_entropy(output.hidden, model.lm_head.weight, layout.local(ids)).backward()
        best = min(best, time.process_time() - started)
    results.put((best, sum(kept.values())))
    if num_ranks > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def steps(num_tokens: int) -> None:
    """Print the second table."""
    print(f"a training step of {num_tokens} tokens: CPU seconds of the slowest rank, MiB kept for the backward pass")
    context = mp.get_context("spawn")
    for num_ranks in (1, 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        results = context.Queue()
        processes = [
            context.Process(target=step, args=(rank, num_ranks, port, num_tokens, results)) for rank in range(num_ranks)
        ]
        for process in processes:
            process.start()
        found = [results.get() for _ in processes]
        for process in processes:
            process.join()
        print(f"  {num_ranks} ranks: {max(s for s, _ in found):.2f} s, {max(b for _, b in found) / 2**20:.0f} MiB")


def long_row(num_tokens: int, results) -> None:
    """Attention forwards and backwards over one document, in a process of its own."""
    torch.set_num_threads(1)
    parts = [torch.randn(num_tokens, heads, 32, requires_grad=True) for heads in (4, 2, 2)]
    used = []
    for length in (64, num_tokens):  # the short one loads the code
        layout = DocumentLayout.from_cu_seqlens(np.array([0, length]))
        started = time.process_time()
        attend_within_documents(*(part[:length] for part in parts), layout).sum().backward()
        used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    results.put((used[1] - used[0], time.process_time() - started))


def long_rows(lengths: list[int]) -> None:
    """Print the third table."""
    print("attention to one document in one process, 4 query and 2 key-value heads of 32 channels, float32")
    context = mp.get_context("spawn")
    for num_tokens in lengths:
        results = context.Queue()
        process = context.Process(target=long_row, args=(num_tokens, results))
        process.start()
        mebibytes, seconds = results.get()
        process.join()
        print(f"  {num_tokens:>6} tokens: peak {mebibytes:.0f} MiB, {seconds:.1f} s of CPU time")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192, help="of a row of the first and second table")
    parser.add_argument("--ranks", type=int, default=8, help="of the first table")
    parser.add_argument("--long", type=int, nargs="*", default=[4096, 8192], help="tokens of the third table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    evenness(args.tokens, args.ranks)
    steps(args.tokens)
    long_rows(args.long)


if __name__ == "__main__":
    main()
