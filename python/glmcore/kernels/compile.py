"""CUDA sources to cubins, by NVRTC through `cuda.core`, kept on the disk.

Neither a GPU nor a CUDA toolkit is needed to compile: the sources include no header but their own.
"""

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmcore.errors import KernelError

SOURCES = Path(__file__).parent / "cuda"
"""The sources: the folder `cuda/` of a checkout, by a link, or their copy in a wheel."""
OLDEST = (8, 0)
"""Compute capability of the oldest card that the kernels run on."""
_ARCHITECTURE_SPECIFIC = {90, 100}
"""Cards for which cubins are made with all their instructions (`sm_90a`), which later cards then lack."""


@dataclass(frozen=True)
class Kernel:
    """An `extern "C"` function of a source file."""

    source: str
    """Name of the file, without `.cu`."""
    name: str
    element: str | None = None
    """Type of the values that the file is compiled for: F32, F16 or Bf16; None if it has no such choice."""


def is_available() -> bool:
    """Whether kernels can run here: torch sees a card that is new enough, and `cuda.core` is installed."""
    if importlib.util.find_spec("torch") is None or not _hascuda_core():
        return False
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= OLDEST


def architecture(capability: tuple[int, int]) -> str:
    """Name of the architecture that a card of this compute capability runs, as `sm_90a`.

    Raises:
        KernelError: The card is too old.
    """
    if capability < OLDEST:
        raise KernelError(f"a card of compute capability {capability} is too old, the kernels need {OLDEST}")
    number = 10 * capability[0] + capability[1]
    return f"sm_{number}{'a' if number in _ARCHITECTURE_SPECIFIC else ''}"


def cubin(source: str, element: str | None, arch: str, cache_dir: Path | None = None) -> bytes:
    """Machine code of a source file, from the disk where it has been compiled before.

    The entry's name has a hash of source, headers, flags, architecture and NVRTC's version. Processes may do this at
    the same time: each writes a file of its own and renames it. An entry that is damaged is compiled again.

    Args:
        source: Name of the file in `SOURCES`, without `.cu`.
        element: See `Kernel.element`.
        arch: As `architecture` gives it.
        cache_dir: Where entries are; None for `glmcore/kernels` in the user's cache directory.

    Raises:
        KernelError: `cuda.core` is missing, or the source does not compile.
    """
    folder = cache_dir or default_cache_dir()
    entry = folder / f"{source}-{arch}-{_key(source, element, arch)}.cubin"
    found = _read_entry(entry)
    if found is None:
        found, _ = compile_source(source, element, arch)
        _write_entry(entry, found)
    return found


def compile_source(source: str, element: str | None, arch: str) -> tuple[bytes, str]:
    """Machine code of a source file, compiled now, and what the compiler said about it: warnings, or nothing.

    Raises:
        KernelError: `cuda.core` is missing, or the source does not compile; the message has the compiler's log.
    """
    core = cuda_core()
    log = io.StringIO()
    text = (SOURCES / f"{source}.cu").read_text(encoding="utf-8")
    options = core.ProgramOptions(name=f"{source}.cu", arch=arch, include_path=[str(SOURCES)], **_flags(element))
    try:
        code = core.Program(text, "c++", options).compile("cubin", logs=log)
    except Exception as error:  # cuda.core and NVRTC have several kinds, all of which mean this
        raise KernelError(f"{source}.cu does not compile for {arch}: {error}\n{log.getvalue()}") from None
    return bytes(code.code), log.getvalue()


def default_cache_dir() -> Path:
    """`glmcore/kernels` in XDG_CACHE_HOME, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glmcore" / "kernels"


def _flags(element: str | None) -> dict[str, Any]:
    """All options that change the code but the architecture. Fast arithmetic is never among them."""
    flags: dict[str, Any] = {
        "std": "c++17",
        "ftz": False,
        "prec_div": True,
        "fma": True,
        "ptxas_options": "-warn-spills",
    }
    return flags | ({"define_macro": [("ELEMENT", element)]} if element else {})


def _key(source: str, element: str | None, arch: str) -> str:
    digest = hashlib.sha256()
    for part in (source, repr(_flags(element)), arch, repr(_nvrtc_version())):
        digest.update(part.encode() + b"\0")
    for file in sorted(SOURCES.glob("*.cuh")):
        digest.update(file.read_bytes() + b"\0")
    digest.update((SOURCES / f"{source}.cu").read_bytes())
    return digest.hexdigest()[:32]


def _read_entry(entry: Path) -> bytes | None:
    """The code of an entry: 32 bytes of checksum, then the code. None if it is missing or damaged."""
    try:
        content = entry.read_bytes()
    except OSError:
        return None
    checksum, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == checksum else None


def _write_entry(entry: Path, code: bytes) -> None:
    """Make an entry appear whole; a disk that cannot be written to costs compiling again, nothing else."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=entry.parent, suffix=".part", delete=False) as file:
            try:
                file.write(hashlib.sha256(code).digest() + code)
                file.close()
                Path(file.name).replace(entry)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError:
        return


def _hascuda_core() -> bool:
    try:
        return importlib.util.find_spec("cuda.core") is not None
    except ModuleNotFoundError:  # there is no package `cuda` at all
        return False


@functools.cache
def cuda_core() -> Any:
    """The module `cuda.core`, with NVRTC found.

    Raises:
        KernelError: It is not installed.
    """
    if not _hascuda_core():
        raise KernelError("CUDA kernels need cuda.core: pip install 'glmcore[cuda]'")
    _load_nvrtc()
    return importlib.import_module("cuda.core")


@functools.cache
def _nvrtc_version() -> tuple[int, int]:
    cuda_core()
    _, major, minor = importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    return major, minor


def _load_nvrtc() -> None:
    """Load NVRTC from the wheel `nvidia-cuda-nvrtc` wherever Python finds it; cuda.core looks in fewer places."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder).glob("c*/lib/libnvrtc.so.*")):  # cu13, cuda_nvrtc
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
            return
