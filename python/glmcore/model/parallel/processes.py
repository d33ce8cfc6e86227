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
    """Connect this process with the others, if there are any and that has not been done.

    Tensors on the CPU go through gloo, those on GPUs through NCCL.
    """
    if device_type == "cuda":
        torch.cuda.set_device(local_device(device_type))
    if num_processes() > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo")


@contextmanager
def ending_together() -> Generator[None, None, None]:
    """When one process of the run fails in the block all end, each with an error; the first one's says why.

    Raises:
        RankError: Another process has failed; `is_news` where it died without a word.
        GlmcoreError: What this process has raised, if it was the first to fail.
    """
    try:
        yield
    except GlmcoreError as error:
        if not dist.is_initialized():
            raise
        if not _is_first_to_fail():
            raise RankError(f"rank {process_rank()} stops because another has failed") from error
        raise type(error)(f"rank {process_rank()}: {error}") from error
    except RuntimeError as error:
        if not dist.is_initialized() or not _is_about_a_lost_rank(error):
            raise
        if not _is_first_to_fail():
            raise RankError(f"rank {process_rank()} stops because another has failed") from error
        raise RankError(f"rank {process_rank()} lost another rank, which died without a word", is_news=True) from error


def _is_first_to_fail() -> bool:
    """Whether no other process has said so before; also true where the store has gone down with its process."""
    rank, host, port = str(process_rank()), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        return store.compare_set("glmcore/failed", "", rank).decode() == rank
    except dist.DistNetworkError:
        return True


def _is_about_a_lost_rank(error: RuntimeError) -> bool:
    """Gloo has no class of its own for a connection that the other side has closed."""
    return isinstance(error, (dist.DistBackendError, dist.DistNetworkError)) or "gloo/transport" in str(error)
