"""A bfloat16 checkpoint as block-wise FP8, in the layout of the published GLM FP8 checkpoints."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from glmcore.durable import atomic_directory, write_file
from glmcore.errors import CheckpointError
from glmcore.fp8.quantize import quantize_blocks
from glmcore.progress import progress as show_progress
from glmcore.tensors import open_tensors, write_tensors

_QUANTIZED = re.compile(
    r"\.(self_attn\.[qkvo]_proj|mlp\.(experts\.\d+\.|shared_experts\.)?(gate|up|down)_proj)\.weight$"
)


def is_quantized(name: str) -> bool:
    """Whether a tensor of a checkpoint is kept in FP8.

    True for attention projections, dense feed-forward layers, routed and shared experts, those of the MTP layer among
    them; embeddings, head, norms, routers, biases and `eh_proj` keep their precision. Source: slime, quantizer_fp8.py.
    """
    return _QUANTIZED.search(name) is not None


def quantize_checkpoint(
    src_dir: str | Path, dst_dir: str | Path, block: tuple[int, int] = (128, 128), progress: bool = True
) -> None:
    """Write a block-FP8 copy of a Hugging Face checkpoint, one file of weights at a time.

    Every quantised `X.weight` gets an `X.weight_scale_inv`; config.json gets a `quantization_config`; other files are
    copied. The directory appears whole or not at all.

    Args:
        src_dir: Checkpoint with config.json and safetensors, single or with an index.
        dst_dir: Directory to make; its parent must exist.
        block: Rows and columns of a block.
        progress: Show a progress bar.

    Raises:
        CheckpointError: A file is missing or cut short, the target exists, or a weight is not finite.
    """
    source, target = Path(src_dir), Path(dst_dir)
    config = _read_json(source / "config.json")
    if "quantization_config" in config:
        raise CheckpointError(f"{source} is quantised already")
    if target.exists():
        raise CheckpointError(f"{target} exists already")
    if not target.absolute().parent.is_dir():
        raise CheckpointError(f"{target.absolute().parent} does not exist")
    files = sorted(source.glob("*.safetensors"))
    _check_complete(source, files)
    with (
        atomic_directory(target) as temporary,
        show_progress("quantize", unit="tensors", shown=progress) as bar,
    ):
        weight_map: dict[str, str] = {}
        kept: list[str] = []
        total = 0
        for file in files:
            written, high_precision = _quantize_file(file, temporary / file.name, block, bar)
            weight_map |= dict.fromkeys(written, file.name)
            kept += high_precision
            total += sum(written.values())
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(block),
            "modules_to_not_convert": sorted(kept),
        }
        for file in source.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
                shutil.copyfile(file, temporary / file.name)
        write_file(temporary / "config.json", json.dumps(config, indent=2) + "\n")
        if len(files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_file(temporary / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def _quantize_file(source: Path, target: Path, block: tuple[int, int], bar: Any) -> tuple[dict[str, int], list[str]]:
    """Bytes of each tensor written, and the modules whose matrices keep their precision."""
    tensors: dict[str, Any] = {}
    kept: list[str] = []
    with open_tensors(source) as file:
        for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            tensor: Any = file.get_tensor(name)
            if is_quantized(name):
                tensors[name], tensors[f"{name}_scale_inv"] = _quantize_tensor(source, name, tensor, block)
            else:
                tensors[name] = tensor
                if name.endswith(".weight") and tensor.ndim == 2:
                    kept.append(name.removesuffix(".weight"))
            bar.advance(1)
    write_tensors(target, tensors)
    return {name: tensor.nbytes for name, tensor in tensors.items()}, kept


def _quantize_tensor(source: Path, name: str, tensor: Any, block: tuple[int, int]) -> tuple[Any, Any]:
    try:
        return quantize_blocks(tensor, block=block)
    except ValueError as error:
        raise CheckpointError(f"{source}: tensor {name!r}: {error}") from None


def _check_complete(source: Path, files: list[Path]) -> None:
    if not files:
        raise CheckpointError(f"{source} has no safetensors file")
    index = source / "model.safetensors.index.json"
    if index.exists():
        named: dict[str, str] = _read_json(index).get("weight_map", {})
        for name, file in named.items():
            if not (source / file).is_file():
                raise CheckpointError(f"{source / file}: file is missing, the index has tensor {name!r} in it")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise CheckpointError(f"{path}: not a JSON object") from None
