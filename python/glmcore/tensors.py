"""safetensors files, with errors that name the file. torch is loaded at the first call, not with the module."""

from pathlib import Path
from typing import Any

from glmcore.errors import CheckpointError


def open_tensors(path: Path) -> Any:
    """A file's tensors by name, read one at a time: `safetensors.safe_open`, to be used in a `with` block.

    Raises:
        CheckpointError: The file is missing or cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: file is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read, it may be cut short: {error}") from None


def read_tensors(path: Path) -> dict[str, Any]:
    """All tensors of a file; errors as `open_tensors`."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Write contiguous tensors, marked as PyTorch's; one that is stored under two names is written twice.

    Raises:
        CheckpointError: The file cannot be written, for want of space for example.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    distinct: dict[str, Any] = {}
    for name, tensor in tensors.items():
        distinct[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    try:
        save_file(distinct, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from None
