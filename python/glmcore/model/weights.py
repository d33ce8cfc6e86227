"""Hugging Face checkpoints in and out: one table of names, run both ways."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmcore.durable import atomic_directory, write_file
from glmcore.errors import CheckpointError
from glmcore.fp8 import dequantize_blocks
from glmcore.fp8.checkpoint import quantize_checkpoint
from glmcore.fp8.layout import published_dtype, published_views, read_quantization
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.tensors import open_tensors, write_tensors

MAX_SHARD_BYTES = 5 * 2**30
FP8_BLOCK = (128, 128)


def hf_views(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `Glm.state_dict` under their published names, as views of the same memory."""
    return {published: view for name, tensor in state.items() for published, view in published_views(name, tensor)}


def save_pretrained(model: Glm, directory: Path, *, fp8: bool) -> None:
    """Write config.json and safetensors; see `Glm.save_pretrained`."""
    if directory.exists():
        raise CheckpointError(f"{directory} exists already")
    if fp8:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
            save_pretrained(model, Path(scratch) / "bf16", fp8=False)
            quantize_checkpoint(Path(scratch) / "bf16", directory, block=FP8_BLOCK, progress=False)
        return
    config = model.config.model_copy(update={"rope_theta": model.rope_theta})
    with atomic_directory(directory) as temporary:
        write_file(temporary / "config.json", json.dumps(config.to_hf(), indent=2) + "\n")
        _write_shards(temporary, list(_published(model)))


def _published(model: Glm) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as checkpoints hold them: bfloat16, the router's correction bias float32."""
    for name, view in hf_views(model.state_dict()).items():
        dtype = torch.float32 if published_dtype(name) == "F32" else torch.bfloat16
        yield name, view.detach().to(dtype).contiguous()


def _write_shards(directory: Path, tensors: list[tuple[str, Tensor]]) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors:
        if shards[-1] and size + tensor.nbytes > MAX_SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_tensors(directory / "model.safetensors", shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(directory / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for _, tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_file(directory / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def load_pretrained(directory: Path, dtype: torch.dtype) -> Glm:
    """Read config.json and safetensors; see `Glm.from_pretrained`."""
    config = GlmConfig.from_hf(directory / "config.json")
    model = Glm(config).to(dtype)
    for router in model.routers:
        router.e_score_correction_bias = router.e_score_correction_bias.float()
    with ExitStack() as stack:
        source = Source(directory, stack)
        with torch.no_grad():
            source.fill(model)
    return model


class Source:
    """The tensors of a checkpoint directory, by name."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.quantization = read_quantization(json.loads((directory / "config.json").read_text(encoding="utf-8")))
        self.files: dict[str, Any] = {}
        """Open file of each tensor."""
        self.file_names: dict[str, str] = {}
        index = _read_index(directory)
        for file in sorted(set(index.values())) if index else ["model.safetensors"]:
            handle = stack.enter_context(open_tensors(directory / file))
            for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
                self.files[name] = handle
                self.file_names[name] = file
        for name, file in index.items():
            if name not in self.files:
                raise CheckpointError(f"{directory / file}: tensor {name!r} of the index is missing")

    def fill(self, model: Glm) -> None:
        """Copy every tensor into `model`, or say which one is missing, extra or misshapen."""
        state = model.state_dict()
        targets = hf_views(state)
        fused = {name: tensor for name, tensor in state.items() if ".experts." in name and name in self.files}
        for name, tensor in fused.items():
            for view in hf_views({name: tensor}):
                del targets[view]
        targets |= fused
        if model.config.tie_word_embeddings and "lm_head.weight" not in self.files:
            del targets["lm_head.weight"]
        for name, target in targets.items():
            target.copy_(self._read(name, target))
        known = targets.keys() | _mtp_copies(model.config)
        if self.quantization is not None:
            known |= {name + self.quantization.suffix for name in targets}
        extra = sorted(self.files.keys() - known)
        if extra:
            raise CheckpointError(
                f"{self.directory / self.file_names[extra[0]]}: tensor {extra[0]!r} is not part of the model"
            )

    def codes(self, name: str) -> tuple[Tensor, Tensor]:
        """Codes and float32 scales of a quantised weight."""
        if self.quantization is None or name not in self.files or name + self.quantization.suffix not in self.files:
            raise CheckpointError(f"{self.directory}: tensor {name!r} or its scales are missing")
        q: Tensor = self.files[name].get_tensor(name)
        scale = name + self.quantization.suffix
        return q, self.files[scale].get_tensor(scale).float()

    def _read(self, name: str, target: Tensor) -> Tensor:
        if name not in self.files:
            raise CheckpointError(f"{self.directory}: tensor {name!r} is missing")
        file = self.directory / self.file_names[name]
        tensor: Tensor = self.files[name].get_tensor(name)
        if tensor.shape != target.shape:
            raise CheckpointError(
                f"{file}: tensor {name!r} has shape {list(tensor.shape)}, the model has {list(target.shape)}"
            )
        if tensor.dtype == torch.float8_e4m3fn:
            quantization = self.quantization
            if quantization is None:
                raise CheckpointError(f"{file}: tensor {name!r} is FP8, config.json has no quantization_config")
            scale = name + quantization.suffix
            if scale not in self.files:
                raise CheckpointError(f"{file}: tensor {scale!r} is missing")
            scales = self.files[scale].get_tensor(scale).float()
            return dequantize_blocks(tensor, scales, quantization.block_of(tuple(tensor.shape)), torch.bfloat16)
        return tensor


def _mtp_copies(config: GlmConfig) -> set[str]:
    """Copies of the embedding and the head that GLM-4.5 checkpoints hold in the MTP layer and GLM-4.6's do not."""
    prefix = f"model.layers.{config.num_hidden_layers}."
    return {f"{prefix}embed_tokens.weight", f"{prefix}shared_head.head.weight"}


def _read_index(directory: Path) -> dict[str, str]:
    file = directory / "model.safetensors.index.json"
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{file}: not a safetensors index") from None
