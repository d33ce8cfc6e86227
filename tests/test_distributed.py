"""The helper that the distributed tests stand on."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from distributed import RanksError, StartedRanks, run_ranks


def total(rank: int, number: int) -> tuple[int, int, int]:
    values = torch.tensor(number + rank)
    dist.all_reduce(values)
    return int(values), dist.get_rank(), int(os.environ["WORLD_SIZE"])


def fail_on_one(rank: int) -> None:
    print(f"rank {rank} was here", flush=True)
    if rank == 1:
        raise ValueError("no more of this")
    time.sleep(60)


def hang(rank: int) -> None:
    time.sleep(60)


def test_ranks_speak_with_each_other_and_give_back_what_they_return():
    assert run_ranks(2, total, 5) == [(11, 0, 2), (11, 1, 2)]
    assert run_ranks(4, total, number=1) == [(10, rank, 4) for rank in range(4)]


def test_a_failed_rank_ends_all_and_is_quoted():
    with pytest.raises(RanksError, match=r"(?s)rank 1: .*no more of this.*rank 0 was here"):
        run_ranks(2, fail_on_one)


def test_ranks_that_hang_are_killed():
    ranks = StartedRanks(2, hang)
    with pytest.raises(RanksError, match=r"ranks \[0, 1\] are not done after 1.0 s"):
        ranks.results(timeout=1.0)
    assert all(process.exitcode is not None for process in ranks.processes)
