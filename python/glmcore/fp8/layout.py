"""The two layouts in which FP8 checkpoints are published: which tensors are quantised, their names, and config.json."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from glmcore.errors import CheckpointError

Layout = Literal["fp8", "compressed-tensors"]
SCALE_SUFFIX: dict[Layout, str] = {"fp8": "_scale_inv", "compressed-tensors": "_scale"}
"""What comes after the name of a weight in that of its scales."""

_QUANTIZED = re.compile(
    r"\.(self_attn\.[qkvo]_proj|mlp\.(experts\.\d+\.|shared_experts\.)?(gate|up|down)_proj)\.weight$"
)


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint is quantised."""

    layout: Layout
    block: tuple[int, int]
    """Rows and columns; 0 columns for a scale a row."""

    @property
    def suffix(self) -> str:
        """What comes after the name of a weight in that of its scales."""
        return SCALE_SUFFIX[self.layout]

    def block_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of a block of a weight."""
        return (self.block[0], self.block[1] or shape[-1])


def is_quantized(name: str) -> bool:
    """Whether a tensor of a checkpoint is kept in FP8.

    True for attention projections, dense feed-forward layers, routed and shared experts, those of the MTP layer among
    them; embeddings, head, norms, routers, biases and `eh_proj` keep their precision. Source: slime, quantizer_fp8.py.
    """
    return _QUANTIZED.search(name) is not None


def published_views(name: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    """A tensor of a model's state under the names that checkpoints have for it, as views of the same memory.

    Experts in a stack, `X.experts.gate_up_proj` [E, 2 I, D] and `X.experts.down_proj` [E, D, I], come matrix by matrix;
    everything else keeps its name.
    """
    if name.endswith(".experts.gate_up_proj"):
        prefix = name.removesuffix("gate_up_proj")
        for expert, (gate, up) in enumerate(part.chunk(2) for part in tensor):
            yield f"{prefix}{expert}.gate_proj.weight", gate
            yield f"{prefix}{expert}.up_proj.weight", up
    elif name.endswith(".experts.down_proj"):
        prefix = name.removesuffix("down_proj")
        for expert, down in enumerate(tensor):
            yield f"{prefix}{expert}.down_proj.weight", down
    else:
        yield name, tensor


def published_dtype(name: str) -> Literal["BF16", "F32"]:
    """Type, as safetensors names it, in which checkpoints hold a tensor that is not quantised."""
    return "F32" if name.endswith("e_score_correction_bias") else "BF16"


def describe(quantization: Quantization, kept: list[str], scale_format: str) -> dict[str, Any]:
    """`quantization_config` of config.json; `kept` are the modules that stay in high precision.

    Source: `FineGrainedFP8Config` of transformers for `fp8`; for the other the scheme FP8_BLOCK of compressed-tensors.
    """
    rows, columns = quantization.block
    if quantization.layout == "fp8":
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [rows, columns],
            "modules_to_not_convert": sorted(kept),
            **({"scale_fmt": "ue8m0"} if scale_format == "ue8m0" else {}),
        }
    numbers = {"num_bits": 8, "type": "float", "symmetric": True}
    weights = numbers | {"strategy": "block", "block_structure": [rows, columns], "dynamic": False}
    activations = numbers | {"strategy": "group", "group_size": columns, "dynamic": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}},
        "ignore": sorted(kept),
    }


def read_quantization(config: dict[str, Any]) -> Quantization | None:
    """How the checkpoint with this config.json is quantised; None if it is not.

    Raises:
        CheckpointError: In a way that is not block-wise or row-wise e4m3.
    """
    told = config.get("quantization_config")
    if told is None:
        return None
    try:
        if told["quant_method"] == "fp8":
            rows, columns = told["weight_block_size"]
            return Quantization("fp8", (int(rows), int(columns)))
        [group] = told["config_groups"].values()
        weights = group["weights"]
        if told["quant_method"] == "compressed-tensors" and (weights["num_bits"], weights["type"]) == (8, "float"):
            if weights["strategy"] == "block":
                rows, columns = weights["block_structure"]
                return Quantization("compressed-tensors", (int(rows), int(columns)))
            if weights["strategy"] == "channel":
                return Quantization("compressed-tensors", (1, 0))
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise CheckpointError("quantization_config of config.json is neither block-wise nor row-wise e4m3")
