"""Kernels of `cuda/` compiled by g++ and run on the CPU, launched as `glmcore.kernels.launch` launches on a GPU."""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from glmcore.kernels.compile import SOURCES, Kernel

HERE = Path(__file__).parent
_FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-gnu-unique", "-fno-strict-aliasing", "-shared", "-fPIC", "-w"]


@functools.cache
def _library(
    source: str,
    element: str | None,
    arch: int,
    kernels: tuple[str, ...],
    edit: tuple[str, str] | None,
    sanitized: bool,
) -> ctypes.CDLL:
    entry = "".join(
        f'extern "C" const char* launch_{name}(const unsigned* grid, const unsigned* block, int reversed, void** args) {{\n'
        f"    return emulator::launch({name}, grid, block, reversed, args);\n}}\n"
        for name in kernels
    )
    text = (SOURCES / f"{source}.cu").read_text()
    if edit:
        assert text.count(edit[0]) == 1
        text = text.replace(*edit)
    flags = [*_FLAGS, f"-D__CUDA_ARCH__={arch}", *([f"-DELEMENT={element}"] if element else [])]
    flags += ["-fsanitize=address"] if sanitized else []
    command = [os.environ.get("CXX", "g++"), *flags, "-include", str(HERE / "emulator.h"), f"-I{HERE}", f"-I{SOURCES}"]
    return ctypes.CDLL(str(_compiled(f"{text}\n{entry}", command)))


def _compiled(text: str, command: list[str]) -> Path:
    """A library of this text, kept in the folder for temporary files: compiling takes longer than the tests."""
    headers = b"".join(file.read_bytes() for folder in (HERE, SOURCES) for file in sorted(folder.glob("*.*h")))
    digest = hashlib.sha256(headers + repr((text, command)).encode()).hexdigest()[:32]
    cache = Path(tempfile.gettempdir()) / f"glmcore-emulator-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    library = cache / f"{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            entry, made = Path(folder) / "entry.cpp", Path(folder) / "kernels.so"
            entry.write_text(text)
            result = subprocess.run(
                [*command, str(entry), "-o", str(made)], capture_output=True, text=True, check=False
            )
            if result.returncode:
                raise RuntimeError(result.stderr)
            made.replace(library)
    return library


_KERNELS = {
    "quantize_blocks": ("quantize_stack", "quantize_table"),
    "quantize_groups": ("quantize_rows",),
    "dequantize": ("dequantize_stack",),
    "gemm": ("multiply_blocks",),
}


class EmulatorError(Exception):
    """A kernel did what a GPU does not define."""


class Emulator:
    """Stands where `glmcore.kernels.launch.launch` does.

    Args:
        arch: `__CUDA_ARCH__`; from 890 on conversions and products in e4m3 are instructions.
        reversed_order: Threads get their turn from the last to the first.
        sanitized: With AddressSanitizer, whose library has to be in the process from its start.
        edit: Text of a source to replace, and by what: to see that a mistake is seen.
    """

    def __init__(
        self,
        arch: int = 900,
        *,
        reversed_order: bool = False,
        sanitized: bool = False,
        edit: tuple[str, str] | None = None,
    ) -> None:
        self.arch = arch
        self.reversed_order = reversed_order
        self.edit = edit
        self.sanitized = sanitized
        self.launches = 0

    def __call__(self, kernel: Kernel, grid, block: int, args, device: torch.device) -> None:
        self.launches += 1
        library = _library(kernel.source, kernel.element, self.arch, _KERNELS[kernel.source], self.edit, self.sanitized)
        values = [self._value(arg) for arg in args]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        dims = [(ctypes.c_uint * 3)(*size) for size in ((*grid, 1, 1)[:3], (block, 1, 1))]
        function = library[f"launch_{kernel.name}"]
        function.restype = ctypes.c_char_p
        failure = function(*dims, int(self.reversed_order), pointers)
        if failure:
            raise EmulatorError(failure.decode())

    @staticmethod
    def _value(arg):
        if arg is None:
            return ctypes.c_uint64(0)
        if isinstance(arg, torch.Tensor):
            return ctypes.c_uint64(arg.data_ptr())
        types = {np.int32: ctypes.c_int32, np.int64: ctypes.c_int64, np.float32: ctypes.c_float}
        return types[type(arg)](arg.item())
