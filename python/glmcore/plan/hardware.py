"""What a GPU and its links can do on paper, and which share of it is taken as reached."""

from dataclasses import dataclass

from pydantic import Field

from glmcore.config import Config

GPUS_PER_NODE = 8
"""GPUs that NVLink joins in the boards that are planned with (HGX)."""


@dataclass(frozen=True)
class Gpu:
    """One GPU by its data sheet: SXM board, dense products, one direction of a link."""

    name: str
    memory_bytes: float
    bf16_flops: float
    """Dense bfloat16 operations a second."""
    memory_bandwidth: float
    """Bytes a second."""
    nvlink_bandwidth: float
    """Bytes a second in one direction, to the other GPUs of a node."""
    network_bandwidth: float
    """Bytes a second in one direction between nodes, for one GPU: a 400 Gb/s adapter each."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 80e9, 989.4e12, 3.35e12, 450e9, 50e9),
        Gpu("h200", 141e9, 989.4e12, 4.8e12, 450e9, 50e9),
        Gpu("b200", 180e9, 2250e12, 7.7e12, 900e9, 50e9),
    )
}
"""Source: NVIDIA's data sheets of H100 SXM5, H200 SXM5 and HGX B200, the figures without sparsity."""


class Assumptions(Config):
    """Shares of the data sheet's rates that are taken as reached. They are ours, none is published for GLM."""

    matmul: float = Field(default=0.70, gt=0, le=1)
    """Dense products: of `bf16_flops`."""
    grouped: float = Field(default=0.55, gt=0, le=1)
    """Grouped products of the routed experts: of `bf16_flops`."""
    attention: float = Field(default=0.50, gt=0, le=1)
    """Attention, forward and backward: of `bf16_flops`."""
    memory: float = Field(default=0.80, gt=0, le=1)
    """Element-wise work: of `memory_bandwidth`."""
    link: float = Field(default=0.75, gt=0, le=1)
    """Collectives: of `nvlink_bandwidth` and `network_bandwidth`."""
    overlap: float = Field(default=0.80, ge=0, le=1)
    """Share of the computing time under which the gathering of weights and the summing of gradients can hide."""
    reserved_gb: float = Field(default=4.0, ge=0)
    """Memory that the CUDA context, the libraries' work spaces and fragmentation take, in GB."""
