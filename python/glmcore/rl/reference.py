"""The policy that a KL term holds on to: the one that the stage began with."""

import copy

from glmcore.durable import atomic_file
from glmcore.model.glm import Glm
from glmcore.rundir import RunDirectory
from glmcore.tensors import read_tensors, write_tensors


def reference_policy(run: RunDirectory, model: Glm) -> Glm:
    """A frozen copy of the policy as it was before the first step; written down on the first call, read on later ones.

    Raises:
        CheckpointError: The file is damaged, or cannot be written.
    """
    file = run.path / "reference.safetensors"
    if not file.exists():
        with atomic_file(file) as temporary:
            write_tensors(temporary, {name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    reference = copy.deepcopy(model).requires_grad_(False)
    reference.load_state_dict(read_tensors(file))
    return reference
