"""Launch a kernel on the current stream of a torch device."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glmcore.errors import KernelError
from glmcore.kernels.compile import Kernel, architecture, cubin, cuda_core, is_available

Argument = Tensor | np.int32 | np.int64 | np.float32 | None
"""A pointer to a tensor's memory, a number of the width that the kernel declares, or a null pointer."""


def launch(kernel: Kernel, grid: tuple[int, ...], block: int, args: Sequence[Argument], device: torch.device) -> None:
    """Start `kernel` behind what torch's current stream of `device` has been given so far; does not wait for it.

    Args:
        kernel: What to run; compiled now if it is the first time.
        grid: Blocks of threads, one to three sizes, none of them 0.
        block: Threads of a block.
        args: As the kernel declares them; checked by the caller, who knows their names.
        device: A CUDA device.

    Raises:
        KernelError: There is no such device, `cuda.core` is missing, or compiling or launching fails.
    """
    if device.type != "cuda" or not is_available():
        raise KernelError(
            f"kernel {kernel.name} needs an NVIDIA GPU of compute capability 8.0 or newer and glmcore[cuda], "
            f"got device {device}"
        )
    core = cuda_core()
    values = [_value(arg) for arg in args]
    with torch.cuda.device(device):
        index = torch.cuda.current_device()
        core.Device(index).set_current()
        handle = torch.cuda.current_stream().cuda_stream
        stream = core.Stream.from_handle(handle) if handle else core.LEGACY_DEFAULT_STREAM  # 0 to torch
        config = core.LaunchConfig(grid=grid, block=block)
        try:
            core.launch(stream, config, _load(index, kernel), *values)
        except Exception as error:  # cuda.core has several kinds, all of which mean this
            raise KernelError(f"kernel {kernel.name} on {device}: {error}") from error


@functools.cache
def _load(index: int, kernel: Kernel) -> Any:
    """The kernel, loaded on a device."""
    arch = architecture(torch.cuda.get_device_capability(index))
    return cuda_core().ObjectCode.from_cubin(cubin(kernel.source, kernel.element, arch)).get_kernel(kernel.name)


def _value(arg: Argument) -> Any:
    """What `cuda.core` takes as a kernel's argument: an int is a pointer to it."""
    if arg is None:
        return 0
    return arg.data_ptr() if isinstance(arg, Tensor) else arg
