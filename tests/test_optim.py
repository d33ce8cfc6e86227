"""The optimiser does the same whatever ranks its matrices lie on."""

import pytest
import torch
import torch.distributed as dist
from distributed import run_ranks
from layouts import lay_out, local_of, random_gradients, tiny_model

from glmcore.train.config import OptimizerConfig
from glmcore.train.optim import Optimizer
from glmcore.train.shards import local

CONFIG = OptimizerConfig(max_grad_norm=0.5)
UNEVEN = {"n_routed_experts": 6, "hidden_size": 40, "intermediate_size": 56}
"""Sizes that four ranks cannot share out evenly."""


def stepped_alone(steps: int, **fields: object) -> tuple[dict, list[float]]:
    """What one process comes to."""
    model = tiny_model(**fields)
    alone, _ = dist.new_subgroups(1)
    optimizer = Optimizer(model, CONFIG, group=alone)
    norms = []
    for step in range(steps):
        for name, grad in random_gradients(model, step).items():
            model.get_parameter(name).grad = grad
        norms.append(optimizer.step(0.01 * (step + 1)))
    return {**dict(model.named_parameters()), **optimizer.state_tensors()}, norms


def largest_difference_from_one_process(rank: int, layout: str, num_ranks: int, fields: dict) -> dict:
    expected, norms_alone = stepped_alone(3, **fields)
    whole = tiny_model(**fields)
    model = lay_out(layout, num_ranks, rank, **fields)
    optimizer = Optimizer(model, CONFIG)
    norms = []
    for step in range(3):
        gradients = random_gradients(whole, step)
        for name, parameter in model.named_parameters():
            parameter.grad = local_of(gradients[name], parameter)
        norms.append(optimizer.step(0.01 * (step + 1)))
    ours = {**dict(model.named_parameters()), **optimizer.state_tensors()}
    errors, ragged = {}, {}
    for name, tensor in ours.items():
        mine, theirs = local(tensor.detach()), local(local_of(expected[name].detach(), tensor))
        if not torch.equal(mine, theirs):
            relative = float(((mine - theirs) / theirs).abs().max())
            rule = name.removeprefix("mean.").removeprefix("square.")
            (ragged if rule in optimizer.adam.parameters and mine.numel() % 16 else errors)[name] = relative
    sent = 0 if optimizer.muon.exchange is None else optimizer.muon.exchange.sent_elements / 3
    matrices = sum(
        parameter.numel() for name, parameter in whole.named_parameters() if name in optimizer.muon.parameters
    )
    return {
        "norms": norms,
        "alone": norms_alone,
        "errors": errors,
        "ragged": ragged,
        "sent": sent,
        "matrices": matrices,
    }


@pytest.mark.parametrize(
    ("num_ranks", "layout", "fields"),
    [
        (2, "plain", {}),
        (2, "fsdp", UNEVEN),
        (2, "pipeline", {}),
        (4, "fsdp", {}),
        (4, "hsdp", {}),
        (4, "tensor", {}),
        (4, "expert", UNEVEN),
        (4, "pipeline", {}),
    ],
)
def test_updates_are_those_of_one_process_bit_for_bit(num_ranks, layout, fields):
    for result in run_ranks(num_ranks, largest_difference_from_one_process, layout, num_ranks, fields):
        assert result["norms"] == pytest.approx(result["alone"], rel=1e-8)  # see global_norm
        assert result["errors"] == {}
        # The second moment is a sum of positive terms, off by one unit in the last place for each of the three steps;
        # half of that goes through the root into steps that are smaller than the parameters.
        assert max(result["ragged"].values(), default=0) <= 3 * 2**-23
