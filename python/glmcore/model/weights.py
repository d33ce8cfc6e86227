"""Hugging Face checkpoints in and out: one table of names, run both ways."""

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glmcore.durable import atomic_directory, atomic_file, write_file
from glmcore.errors import CheckpointError
from glmcore.fp8.checkpoint import CHECKSUMS, INDEX, checksum_lines, sha256
from glmcore.fp8.layout import SCALE_SUFFIX, Quantization, describe, is_quantized, published_dtype, published_views
from glmcore.fp8.quantize import quantize_blocks, scales_shape
from glmcore.model.checkpoint import SINGLE, Checkpoint
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.tensor_stream import TensorWriter, num_bytes

MAX_SHARD_BYTES = 5 * 2**30
FP8_BLOCK = (128, 128)

logger = logging.getLogger(__name__)

_Layout = dict[str, tuple[str, list[int]]]
"""Type, as safetensors names it, and shape of each tensor."""


def hf_views(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `Glm.state_dict` under their published names, as views of the same memory."""
    return {published: view for name, tensor in state.items() for published, view in published_views(name, tensor)}


class _WithoutInitialValues(TorchFunctionMode):
    """Leaves parameters as they are made. On the meta device to draw them costs two seconds: it imports a compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        draws = getattr(func, "__module__", None) == nn.init.__name__
        return kwargs["tensor"] if draws else func(*args, **kwargs)


@torch.no_grad()
def load_pretrained(directory: Path, dtype: torch.dtype, device: torch.device, *, check_finite: bool) -> Glm:
    """Read config.json and safetensors; see `Glm.from_pretrained`."""
    config = GlmConfig.from_hf(directory / "config.json")
    with torch.device("meta"), _WithoutInitialValues():
        model = Glm(config).to(dtype)
        for router in model.routers:
            router.e_score_correction_bias = router.e_score_correction_bias.float()
    with Checkpoint(directory) as checkpoint:
        _check(model, checkpoint)  # before memory is taken
        assert {name for name, _ in model.named_buffers()} <= model.state_dict().keys()  # else some would be left empty
        model.to_empty(device=device)
        _fill(model, checkpoint, check_finite)
    return model


@torch.no_grad()
def load_weights(model: Glm, directory: Path, *, check_finite: bool = False) -> None:
    """Replace the weights of a model, of any type and on any device, by those of a checkpoint of its configuration.

    Raises:
        CheckpointError: As `Glm.from_pretrained`; if a tensor is missing, extra or misshapen the model is as it was. Or
            the model is spread over ranks.
    """
    _refuse_spread(model)
    with Checkpoint(directory) as checkpoint:
        _check(model, checkpoint)
        _fill(model, checkpoint, check_finite)


def _refuse_spread(model: Glm) -> None:
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "full_tensor"):
            raise CheckpointError(
                f"tensor {name!r} is spread over ranks: weights go into and out of a model that one process holds whole"
            )


def _check(model: Glm, checkpoint: Checkpoint) -> None:
    config = model.config
    prefix = f"model.layers.{config.num_hidden_layers}."
    if config.num_nextn_predict_layers and not any(name.startswith(prefix) for name in checkpoint.names):
        raise CheckpointError(
            f"{checkpoint.directory}: tensor '{prefix}eh_proj.weight' and all of the multi-token-prediction layer are "
            f"missing; set num_nextn_predict_layers to 0 in config.json if the checkpoint is to have none"
        )
    shapes = {name: target.shape for name, target in _targets(model, checkpoint).items()}
    checkpoint.check(shapes, also=set(_copies(config)))


def _fill(model: Glm, checkpoint: Checkpoint, check_finite: bool) -> None:
    targets = _targets(model, checkpoint)
    for name in checkpoint.names:
        if name in targets:
            checkpoint.read_into(name, targets[name], check_finite=check_finite)
    for name, original in _copies(model.config).items():
        if name not in checkpoint or checkpoint.holds(name, targets[original]):
            continue
        if name == "lm_head.weight":
            raise CheckpointError(
                f"{checkpoint.file_of(name)}: tensor {name!r} differs from {original!r}, to which config.json ties it; "
                f"set tie_word_embeddings to false"
            )
        logger.warning(
            "%s: tensor %r differs from %r; the multi-token-prediction layer shares the latter",
            checkpoint.file_of(name),
            name,
            original,
        )


def _targets(model: Glm, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What is to be read, by the checkpoint's names: experts one by one, or in stacks as transformers has them."""
    targets: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        targets |= {name: tensor} if name in checkpoint else dict(published_views(name, tensor))
    return targets


def _copies(config: GlmConfig) -> dict[str, str]:
    """Tensors that may be there as copies of another.

    GLM-4.5 checkpoints hold the embedding and the head in the MTP layer again, GLM-4.6's do not.
    """
    prefix = f"model.layers.{config.num_hidden_layers}."
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    copies = {"lm_head.weight": head} if config.tie_word_embeddings else {}
    if config.num_nextn_predict_layers:
        copies[f"{prefix}embed_tokens.weight"] = "model.embed_tokens.weight"
        copies[f"{prefix}shared_head.head.weight"] = head
    return copies


@torch.no_grad()
def save_pretrained(model: Glm, directory: Path, *, fp8: bool) -> None:
    """Write config.json, safetensors and SHA256SUMS; see `Glm.save_pretrained`."""
    if directory.exists():
        raise CheckpointError(f"{directory} exists already")
    _refuse_spread(model)
    views = hf_views(model.state_dict())
    for name, view in views.items():
        if not view.dtype.is_floating_point or view.itemsize < 2:
            raise CheckpointError(f"tensor {name!r} is held as {view.dtype}: save the model that it was made from")
    config = model.config.model_copy(update={"rope_theta": model.rope_theta})
    try:
        with atomic_directory(directory) as temporary:
            write_checkpoint(temporary, config, views, views.__getitem__, fp8=fp8)
    except OSError as error:
        raise CheckpointError(f"cannot write {directory}: {error.strerror}") from None


def write_checkpoint(
    directory: Path, config: GlmConfig, layout: Mapping[str, Tensor], read: Callable[[str], Tensor], *, fp8: bool
) -> None:
    """Fill a directory with config.json, safetensors and the checksums of all its files.

    A file of tensors that is there is whole, and not written again; so a killed call can be repeated.

    Args:
        directory: May hold other files, such as a tokenizer's.
        config: Of the model.
        layout: Published names with tensors of the right shape, on any device.
        read: Gives the values of a tensor; asked once for each that is written, in the order of `layout`.
        fp8: Quantise in blocks of 128x128.

    Raises:
        CheckpointError: A weight to be quantised is not finite.
        OSError: The directory cannot be written.
    """
    told = config.to_hf()
    if fp8:
        kept = [name for name, tensor in layout.items() if tensor.dim() == 2 and not is_quantized(name)]
        modules = [name.removesuffix(".weight") for name in kept]
        told["quantization_config"] = describe(Quantization("fp8", FP8_BLOCK), modules, "float32")
    write_file(directory / "config.json", json.dumps(told, indent=2) + "\n")
    with ThreadPoolExecutor(1) as hashing:
        _write_files(directory, layout, read, fp8, hashing)


def _write_files(
    directory: Path,
    tensors: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    fp8: bool,
    hashing: ThreadPoolExecutor,
) -> None:
    """Write tensors one by one, each converted when its turn comes, and the index and checksums of the files."""
    groups = _split({name: _layout_of(name, tensor, fp8) for name, tensor in tensors.items()})
    digests: dict[str, Future[str]] = {}
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        file = SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        layout = {name: told for part in group.values() for name, told in part.items()}
        if not (directory / file).exists():
            with atomic_file(directory / file) as temporary, TensorWriter(temporary, layout) as writer:
                for name in group:
                    for written, tensor in _published(name, read(name), fp8).items():
                        writer.write(written, tensor)
        digests[file] = hashing.submit(sha256, directory / file)  # while it is in the page cache
        weight_map |= dict.fromkeys(layout, file)
    if len(groups) > 1:
        total = sum(_size(part) for group in groups for part in group.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_file(directory / INDEX, json.dumps(index, indent=2) + "\n")
    sums = {file: digest.result() for file, digest in digests.items()}
    others = (file for file in directory.iterdir() if file.is_file() and not file.name.startswith("."))
    sums |= {file.name: sha256(file) for file in others if file.name not in (CHECKSUMS, *sums)}
    write_file(directory / CHECKSUMS, checksum_lines(sums))


def _split(layouts: dict[str, _Layout]) -> list[dict[str, _Layout]]:
    """What goes into each file; a weight and its scales stay together."""
    groups: list[dict[str, _Layout]] = [{}]
    size = 0
    for name, layout in layouts.items():
        if groups[-1] and size + _size(layout) > MAX_SHARD_BYTES:
            groups.append({})
            size = 0
        groups[-1][name] = layout
        size += _size(layout)
    return groups


def _size(layout: _Layout) -> int:
    return sum(num_bytes(*told) for told in layout.values())


def _layout_of(name: str, view: Tensor, fp8: bool) -> _Layout:
    shape = list(view.shape)
    if fp8 and is_quantized(name):
        scales = list(scales_shape(tuple(shape), FP8_BLOCK))
        return {name: ("F8_E4M3", shape), name + SCALE_SUFFIX["fp8"]: ("F32", scales)}
    return {name: (published_dtype(name), shape)}


def _published(name: str, view: Tensor, fp8: bool) -> dict[str, Tensor]:
    """A tensor as checkpoints hold it: bfloat16, or codes of that and their scales; the correction bias float32."""
    dtype = torch.float32 if published_dtype(name) == "F32" else torch.bfloat16
    tensor = view.to(dtype).cpu().contiguous()
    if not (fp8 and is_quantized(name)):
        return {name: tensor}
    try:
        q, scales = quantize_blocks(tensor, FP8_BLOCK)
    except ValueError as error:
        raise CheckpointError(f"tensor {name!r}: {error}") from None
    return {name: q, name + SCALE_SUFFIX["fp8"]: scales}
