"""The state of PyTorch's random numbers of a rank, as tensors that go into a checkpoint."""

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

PREFIX = "random."


def tensors(rank: int) -> dict[str, Tensor]:
    """The states of this rank's generators, uint8."""
    state = {f"{PREFIX}{rank}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state[f"{PREFIX}{rank}.cuda"] = torch.cuda.get_rng_state()
    return state


def names(stored: Collection[str], rank: int) -> list[str]:
    """Those of the stored states that belong to a rank and can be used here."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return [name for device in devices if (name := f"{PREFIX}{rank}.{device}") in stored]


def restore(state: Mapping[str, Tensor], reseed_as: int | None) -> None:
    """Go on with saved states, or with `reseed_as` begin a sequence made of them and of that number."""
    for name, values in state.items():
        if reseed_as is None:
            set_state = torch.cuda.set_rng_state if name.endswith("cuda") else torch.set_rng_state
            set_state(values)
        elif name.endswith("cpu"):
            digest = hashlib.sha256(values.numpy().tobytes() + reseed_as.to_bytes(8, "little")).digest()
            torch.manual_seed(int.from_bytes(digest[:8], "little"))
