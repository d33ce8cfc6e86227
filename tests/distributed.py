"""Functions run by several processes that speak through gloo, as torchrun would start them.

    def total(rank, number):                # at the top level of a test module, so that it can be sent
        values = torch.tensor(number + rank)
        dist.all_reduce(values)
        return int(values)

    assert run_ranks(2, total, 5) == [11, 11]

The processes are forked from a server that has imported torch once, so one costs some 50 ms and not seconds.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

_SERVER = get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "torch.distributed.tensor",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint",
        "torch.distributed.checkpoint.state_dict",
        "glmcore.train.stages",
    ]
)


class RanksError(AssertionError):
    """A rank has failed, died or not come to an end; the message holds what it wrote."""


class StartedRanks:
    """Processes that run `function(rank, *args, **kwargs)` in a process group of their own; see `run_ranks`."""

    def __init__(self, num_ranks: int, function: Callable[..., Any], *args: object, **kwargs: object) -> None:
        # The store lives here, so the kernel picks a port that nobody else can take before the ranks do.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._folder = TemporaryDirectory(prefix="ranks-")
        self._pipes: list[connection.Connection] = []
        self.processes = []
        for rank in range(num_ranks):
            receiver, sender = _SERVER.Pipe(duplex=False)
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_ranks),
                "LOCAL_WORLD_SIZE": str(num_ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self._store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "GLOO_SOCKET_IFNAME": "lo",
            }
            process = _SERVER.Process(
                target=_run_one, args=(sender, self._output(rank), environment, function, args, kwargs), daemon=True
            )
            process.start()
            sender.close()
            self._pipes.append(receiver)
            self.processes.append(process)

    def results(self, timeout: float) -> list[Any]:
        """What each rank has returned.

        Raises:
            RanksError: A rank has raised or died, or is not done after `timeout` seconds; none is left running.
        """
        end = time.monotonic() + timeout
        values: dict[int, Any] = {}
        try:
            while len(values) < len(self._pipes):
                waiting = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in values}
                ready = connection.wait(list(waiting), timeout=max(0.0, end - time.monotonic()))
                if not ready:
                    raise RanksError(
                        f"ranks {sorted(waiting.values())} are not done after {timeout} s{self._outputs()}"
                    )
                for pipe in ready:
                    rank = waiting[pipe]  # type: ignore[index]
                    values[rank] = self._receive(rank)
            for process in self.processes:
                process.join(max(1.0, end - time.monotonic()))
        finally:
            self.kill()
        return [values[rank] for rank in range(len(self._pipes))]

    def kill(self) -> None:
        """End all ranks at once with SIGKILL, and whatever they have started."""
        for process in self.processes:
            if process.exitcode is None and process.pid is not None:
                for kill in (os.killpg, os.kill):  # a rank that has only just begun leads no group yet
                    try:
                        kill(process.pid, signal.SIGKILL)
                        break
                    except ProcessLookupError:
                        continue
        for process in self.processes:
            process.join()
        self._folder.cleanup()

    def _receive(self, rank: int) -> Any:
        try:
            done, value = self._pipes[rank].recv()
        except EOFError:
            self.processes[rank].join(5)
            done, value = False, f"died with exit status {self.processes[rank].exitcode}"
        if not done:
            time.sleep(0.2)  # the others may have something to say about it
            raise RanksError(f"rank {rank}: {value}{self._outputs()}")
        return value

    def _output(self, rank: int) -> Path:
        return Path(self._folder.name, f"{rank}.txt")

    def _outputs(self) -> str:
        texts = [(rank, self._output(rank)) for rank in range(len(self.processes))]
        return "".join(
            f"\n--- output of rank {rank}\n{file.read_text()[-4000:]}" for rank, file in texts if file.exists()
        )


def run_ranks(
    num_ranks: int, function: Callable[..., Any], *args: object, timeout: float = 60.0, **kwargs: object
) -> list:
    """Run `function(rank, *args, **kwargs)` in `num_ranks` processes and give what they return, rank 0 first.

    Each has the variables of torchrun, one thread, seed 0 and an initialised gloo group. Function, arguments and
    results go through pickle; the function is imported by name in the rank, so its module should import little.

    Args:
        num_ranks: Processes.
        function: A function at the top level of a module in tests/.
        args: Its arguments after the rank.
        timeout: Seconds after which all ranks are killed.
        kwargs: Its named arguments.

    Raises:
        RanksError: A rank has raised, died or not come to an end. All others are dead by then.
    """
    return StartedRanks(num_ranks, function, *args, **kwargs).results(timeout)


def _run_one(
    sender: connection.Connection,
    output: Path,
    environment: dict[str, str],
    function: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> None:
    os.setsid()
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        dist.init_process_group("gloo")
        value = function(int(environment["RANK"]), *args, **kwargs)
        dist.barrier()  # nobody leaves while another may still read from it
        dist.destroy_process_group()
        sender.send((True, value))
    except BaseException:
        sender.send((False, traceback.format_exc()))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # the group of a failed rank cannot be left in good order
