"""The processes of one run, as torchrun starts them: they begin together and end together.

Everything here also works in a process on its own, which has nobody to speak with.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from glmcore.errors import GlmcoreError, RankError


def num_processes() -> int:
    """Processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_local_processes() -> int:
    """Those of them on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def process_rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_device(device_type: str) -> torch.device:
    """The device of this process; on a machine with GPUs each process has the one of its number there."""
    if device_type == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(device_type)


def start_processes(device_type: str) -> None:
    """Connect this process with the others, if that has not been done; it may be on its own.

    Tensors on the CPU go through gloo, those on GPUs through NCCL.
    """
    if device_type == "cuda":
        torch.cuda.set_device(local_device(device_type))
    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    if num_processes() > 1:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]


@contextmanager
def ending_together() -> Generator[None, None, None]:
    """When one process of the run fails in the block all end, each with an error; the first one's says why.

    A process group that is made in the block ends with it.

    Raises:
        RankError: This process has failed, or another one; `is_news` in the one that is to say so.
        GlmcoreError: What was raised in the block, in a process on its own.
    """
    was_initialized = dist.is_initialized()
    try:
        yield
    except GlmcoreError as error:
        if num_processes() == 1 or not dist.is_initialized():
            raise
        if not _is_first_to_fail():
            raise RankError(f"rank {process_rank()} stops because another has failed") from error
        raise RankError(f"rank {process_rank()}: {error}", is_news=True) from error
    except RuntimeError as error:
        if num_processes() == 1 or not dist.is_initialized() or not _is_about_a_lost_rank(error):
            raise
        if not _is_first_to_fail():
            raise RankError(f"rank {process_rank()} stops because another has failed") from error
        raise RankError(f"rank {process_rank()} lost another rank, which died without a word", is_news=True) from error
    else:
        if dist.is_initialized() and not was_initialized:
            dist.destroy_process_group()


def _is_first_to_fail() -> bool:
    """Whether no other process has said so before; also true where the store has gone down with its process."""
    rank, host, port = str(process_rank()), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))  # pyright: ignore[reportPrivateImportUsage]
        return store.compare_set("glmcore/failed", "", rank).decode() == rank
    except dist.DistNetworkError:
        return True


def _is_about_a_lost_rank(error: RuntimeError) -> bool:
    """Gloo has no class of its own for a connection that the other side has closed."""
    return isinstance(error, (dist.DistBackendError, dist.DistNetworkError)) or "gloo/transport" in str(error)
